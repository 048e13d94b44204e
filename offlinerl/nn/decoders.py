"""Decoders, from latents to observations. Every parameter has a leading axis of seeds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from offlinerl.nn.encoders import Images, orthogonal_kernels
from offlinerl.nn.layers import Linear


class TransposedConvolution(nn.Module):
    """One transposed convolution per seed, ``[B, S I, H', W'] -> [B, S out, H, W]``, all seeds in one grouped call.

    Args:
        in_channels: I.
        out_channels: out.
        kernel: kernel size, in both directions.
        stride: in both directions.
        beyond: output padding, as ``(rows, columns)``: as many as the mirrored convolution ignored at the border.
        rng: S generators for the initial weights.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, beyond: tuple[int, int],
        rng: Sequence[Generator],
    ):  # fmt: skip
        super().__init__()
        self.stride, self.beyond = stride, beyond
        self.weight = orthogonal_kernels(rng, in_channels, out_channels, kernel, kernel)
        self.bias = nn.Parameter(torch.zeros(len(rng), out_channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.flatten(0, 1), self.bias.flatten()
        return nn.functional.conv_transpose2d(
            x, weight, bias, self.stride, output_padding=self.beyond, groups=len(self.weight)
        )


class ImageDecoder(nn.Module):
    """The mirrored layers of an image encoder, ``[S, B, Z] -> [S, B, H, W, C]``: logits, from which a sigmoid gives
    pixel values in [0, 1].

    Args:
        encoder: the one to mirror.
        latents: Z.
        rng: S generators for the initial weights.
    """

    def __init__(self, encoder: Images, latents: int, rng: Sequence[Generator]):
        super().__init__()
        self.first = Linear(latents, encoder.features, (len(rng),), rng)
        self.height, self.width, self.channels = encoder.shapes[-1]
        self.layers = nn.ModuleList()
        shapes = zip(encoder.layers, encoder.shapes[:-1], encoder.shapes[1:], strict=True)
        for layer, before, after in reversed([*shapes]):
            kernel, stride = layer.weight.shape[-1], layer.stride
            beyond = (before[0] - kernel) % stride, (before[1] - kernel) % stride
            self.layers.append(TransposedConvolution(after[2], before[2], kernel, stride, beyond, rng))

    def forward(self, z: Tensor) -> Tensor:
        S, B = z.shape[:2]
        x = torch.relu(self.first(z)).transpose(0, 1).reshape(B, -1, self.height, self.width)  # [B, S C', H', W']
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.relu(layer(x))
        return last(x).unflatten(1, (S, -1)).permute(1, 0, 3, 4, 2)  # [S, B, H, W, C]
