"""Random shift augmentation of images (Yarats et al., DrQ-v2, ICLR 2022, section 3.1).

The paper pads an image by repeating its border, crops it at a random position and applies bilinear interpolation. Its
code shifts by whole pixels, where interpolation has no effect. The result is the crop alone, which is computed here by
gathering rows and columns, without padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from offlinerl.learning.rng import Streams
from offlinerl.types import Batch, Spec
from offlinerl.util.trees import Tree


def offsets(rng: Streams, batch_size: int, most: int) -> dict[str, Tensor]:
    """Random offsets of the images of every batch row, in pixel rows and columns: uniform from ``-most`` to ``most``,
    ``[S, B, 2]`` each for observations and for next observations."""
    drawn = rng.integers(2 * most + 1, (2, batch_size, 2)) - most  # [S, 2, B, 2]
    return dict(obs=drawn[:, 0], next_obs=drawn[:, 1])


def shifted(batch: Batch, by: dict[str, Tensor], spec: Spec) -> Batch:
    """A batch with shifted images; all frames of a row are shifted by the same offset.

    Args:
        batch: ``[S, B, ...]``, or ``[S, B, T, ...]``.
        by: see ``offsets``.
        spec: tells which leaves are images.
    """

    def of(obs: Tree, offset: Tensor) -> Tree:
        if spec.obs[0].path == "":
            return shift(obs, offset, len(spec.obs[0].shape))
        ranks = {leaf.path: len(leaf.shape) for leaf in spec.obs}
        return {path: shift(x, offset, ranks[path]) if ranks[path] > 1 else x for path, x in obs.items()}

    return batch._replace(**{name: of(getattr(batch, name), by[name]) for name in by if hasattr(batch, name)})


def shift(images: Tensor, offset: Tensor, rank: int = 3) -> Tensor:
    """Shift images by whole pixels; pixels from beyond the border repeat the border.

    Args:
        images: ``[S, B, H, W, C]``; or ``[S, B, T, H, W, C]``, where all T have the same offset.
        offset: ``[S, B, 2]`` int64: output pixel (i, j) is input pixel (i, j) plus this offset, in rows and columns.
        rank: number of axes of an image, 2 if it has no channels.
    """
    if images.ndim > 2 + rank:
        T = images.shape[2]
        moved = shift(images.flatten(1, 2), offset.repeat_interleave(T, 1), rank)
        return moved.unflatten(1, (-1, T))
    S, B, H, W = images.shape[:4]
    at = images.device
    rows = (torch.arange(H, device=at) + offset[..., :1]).clamp(0, H - 1)  # [S, B, H]
    columns = (torch.arange(W, device=at) + offset[..., 1:]).clamp(0, W - 1)  # [S, B, W]
    s, b = torch.arange(S, device=at).view(S, 1, 1, 1), torch.arange(B, device=at).view(B, 1, 1)
    return images[s, b, rows.unsqueeze(-1), columns.unsqueeze(-2)]
