"""Encoders: from observations to features, ``[S, B, ...] -> [S, B, F]``. Every network has one of its own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Generator, Tensor, nn

from offlinerl.nn.layers import Linear, orthogonal
from offlinerl.types import Leaf, Spec
from offlinerl.util.errors import UserError

Layers = Sequence[tuple[int, int, int]]
"""Channels, kernel and stride of every convolution."""

NATURE: Layers = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Mnih et al., Nature 2015, methods."""

SAC_AE: Layers = ((32, 3, 2), (32, 3, 1), (32, 3, 1), (32, 3, 1))
"""Yarats et al., Improving Sample Efficiency in Model-Free Reinforcement Learning from Images, 2019, appendix B.1."""

MINATAR: Layers = ((16, 3, 1),)
"""Young & Tian, MinAtar, 2019, section 4."""

WORLD_MODELS: Layers = ((32, 4, 2), (64, 4, 2), (128, 4, 2), (256, 4, 2))
"""Ha & Schmidhuber, World Models, 2018, appendix A.1; for images of 64x64."""

LAYERS = dict(nature=NATURE, sac_ae=SAC_AE, minatar=MINATAR, world_models=WORLD_MODELS)
"""Convolutions by name."""


class Encoder(nn.Module, ABC):
    """What a network sees of an observation.

    Attributes:
        features: F.
    """

    features: int

    @abstractmethod
    def forward(self, obs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """``[S, B, ...] -> [S, B, F]``."""


class Identity(Encoder):
    """A vector as it is."""

    def __init__(self, features: int):
        super().__init__()
        self.features = features

    def forward(self, obs: Tensor) -> Tensor:
        return obs


class Normalized(Encoder):
    """A vector, every dimension of which is shifted by its mean and scaled by its deviation in a dataset, and held
    within ``LIMIT``. Until these are set, by mean 0 and deviation 1.

    Nothing is added to a deviation, however small: it is small in the user's units, and in smaller ones it would not
    be. A dimension that is constant in the dataset is only shifted, for it has no scale. The limit is for what was
    constant there, or nearly, and is not where the policy acts.

    Args:
        features: O.
        path: of the vector in the observation.
    """

    LIMIT = 10.0
    """Deviations, as in Stable-Baselines3's ``VecNormalize``; at most one value in a hundred lies further out."""

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int, path: str = ""):
        super().__init__()
        self.features, self.path = features, path
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def set(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Normalise by these from now on, ``[O]`` each, or of one frame where the vector is a stack of frames; the
        deviation of a constant dimension is 0."""
        frames = self.features // len(mean)
        self.mean.copy_(torch.from_numpy(mean).repeat(frames))
        self.scale.copy_(torch.from_numpy(np.where(std > 0, std, 1.0)).repeat(frames))

    def forward(self, obs: Tensor) -> Tensor:
        return ((obs - self.mean) / self.scale).clamp(-self.LIMIT, self.LIMIT)


def orthogonal_kernels(rng: Sequence[Generator], *shape: int) -> nn.Parameter:
    """Kernels of S seeds, ``[S, *shape]``, each seed's from its own generator: orthogonal, with gain sqrt(2)."""
    kernels = torch.empty(len(rng), *shape)
    for of_seed, generator in zip(kernels, rng, strict=True):
        nn.init.orthogonal_(of_seed, math.sqrt(2), generator=generator)
    return nn.Parameter(kernels)


class Convolution(nn.Module):
    """One convolution a seed, ``[B, S I, H, W] -> [B, S out, H', W']``, all seeds in one call as groups."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, rng: Sequence[Generator]):
        super().__init__()
        self.stride = stride
        self.weight = orthogonal_kernels(rng, out_channels, in_channels, kernel, kernel)
        self.bias = nn.Parameter(torch.zeros(len(rng), out_channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.flatten(0, 1), self.bias.flatten()
        return nn.functional.conv2d(x, weight, bias, self.stride, groups=len(self.weight))


LEAST_SIDE = 16
"""What a first axis is below where it is that of the channels, and both others are from here on."""


class Images(Encoder):
    """Convolutions over an image ``[S, B, H, W, C]``, uint8 or float in [0, 1]; one without channels is ``[S, B, H,
    W]``. Layers whose kernel is larger than what is left of the image are left out.

    Args:
        shape: of an image, ``(H, W, C)`` or ``(H, W)``.
        rng: S generators for the initial weights.
        layers: of the network.

    Attributes:
        shapes: ``(H, W, C)`` before the first layer and after every one.
        channels_last: whether the channels of a pixel lie side by side, as they do in a frame, or the pixels of a
            channel; None: where there is one seed, whose frames need no copy then.

    Raises:
        UserError: the image is smaller than every kernel, or its axes are others, as where channels come first.
    """

    def __init__(self, shape: Sequence[int], rng: Sequence[Generator], layers: Layers = NATURE):
        super().__init__()
        height, width, channels = (*shape, 1)[:3]
        if len(shape) > 3 or height < LEAST_SIDE <= min(width, channels):
            raise UserError(
                f"images of shape {tuple(shape)} have other axes than height, width and channels: put them in this"
                " order, those of several frames as channels of one image"
            )
        if min(height, width) < (least := min(kernel for _, kernel, _ in layers)):
            raise UserError(
                f"images of {height}x{width} are too small for convolutions, the smallest of which is {least}x{least}:"
                " take larger ones, or an encoder of your own"
            )
        self.layers, self.shapes = nn.ModuleList(), [(height, width, channels)]
        for out, kernel, stride in layers:
            if kernel > min(height, width):
                continue
            self.layers.append(Convolution(channels, out, kernel, stride, rng))
            height, width, channels = (height - kernel) // stride + 1, (width - kernel) // stride + 1, out
            self.shapes.append((height, width, channels))
        self.features = height * width * channels
        self.channels_last: bool | None = None

    def forward(self, obs: Tensor) -> Tensor:
        x = obs / 255 - 0.5 if obs.dtype == torch.uint8 else obs - 0.5
        S, B, H, W = x.shape[:4]
        x = x.view(S, B, H, W, -1).permute(1, 0, 4, 2, 3).reshape(B, -1, H, W)  # [B, S C, H, W]
        channels_last = S == 1 if self.channels_last is None else self.channels_last
        x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.reshape(B, S, -1).transpose(0, 1)  # [S, B, F]


class Posterior(nn.Module):
    """What an image's latents may be, ``q(z|x)`` (Kingma & Welling, Auto-Encoding Variational Bayes, 2013, equation 9):
    ``[S, B, H, W, C]`` -> the mean and the logarithm of the variance of a Normal with independent dimensions, ``[S, B,
    Z]`` each.

    Args:
        shape: of an image, ``(H, W, C)``.
        latents: Z.
        rng: S generators for the initial weights.
        layers: of the network.
    """

    def __init__(self, shape: Sequence[int], latents: int, rng: Sequence[Generator], layers: Layers):
        super().__init__()
        self.images = Images(shape, rng, layers)
        self.heads = Linear(self.images.features, 2 * latents, (len(rng),), rng, partial(orthogonal, gain=1.0))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.heads(self.images(obs)).chunk(2, -1)
        return mean, log_var


class Frozen(nn.Module):
    """The mean of a posterior that was learnt before, ``[..., H, W, n C] -> [..., n Z]`` for the n frames of an image.

    Its weights are no parameters but buffers, without an axis of seeds: nothing trains them, all seeds share them, and
    its copies are itself. They are not numbers until they are loaded.

    Args:
        shape: of a frame, ``(H, W, C)``.
        latents: Z.
        layers: of the network, by their name in ``LAYERS``.
    """

    def __init__(self, shape: Sequence[int], latents: int, layers: str):
        super().__init__()
        self.shape, self.latents = tuple(shape), latents
        self.posterior = Posterior(self.shape, latents, [Generator()], LAYERS[layers])
        for module in self.posterior.modules():
            for name, weight in [*module.named_parameters(recurse=False)]:
                delattr(module, name)
                module.register_buffer(name, torch.full_like(weight, math.nan, requires_grad=False))

    def __deepcopy__(self, memo: dict[int, object]) -> Frozen:
        return self

    @torch.no_grad()
    def forward(self, obs: Tensor) -> Tensor:
        frames = obs.unflatten(-1, (-1, self.shape[-1])).movedim(-2, -4)  # [..., n, H, W, C]
        mean, _ = self.posterior(frames.reshape(1, -1, *self.shape))
        return mean.view(*frames.shape[:-3], -1).flatten(-2)


class Latents(Encoder):
    """The latents of images, ``[S, B, H, W, n C] -> [S, B, n Z]``; or latents as they are, which is what replays and
    tables hold.

    Args:
        frozen: gives them. It belongs to the agent, and not to every network that sees by it.
        frames: n, of an image.
    """

    def __init__(self, frozen: Frozen, frames: int):
        super().__init__()
        self.features = frames * frozen.latents
        object.__setattr__(self, "frozen", frozen)  # nn.Module would make it a part of every network

    def forward(self, obs: Tensor) -> Tensor:
        return self.frozen(obs) if obs.dtype == torch.uint8 else obs


class Parts(Encoder):
    """The features of every part of an observation, one behind the other."""

    def __init__(self, parts: Mapping[str, Encoder]):
        super().__init__()
        self.paths = tuple(parts)
        self.parts = nn.ModuleList(parts.values())
        self.features = sum(part.features for part in parts.values())

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([part(obs[path]) for path, part in zip(self.paths, self.parts, strict=True)], -1)


def encoder_of(spec: Spec, rng: Sequence[Generator], normalize: bool = False, layers: Layers = NATURE) -> Encoder:
    """The encoder for a task's observations: identity for vectors, convolutions for images, both side by side for a
    dictionary of them.

    Args:
        spec: the task's.
        rng: S generators for the initial weights.
        normalize: whether vectors are shifted and scaled.
        layers: of convolutions over images.
    """

    def of(leaf: Leaf) -> Encoder:
        if len(leaf.shape) > 1:
            return Images(leaf.shape, rng, layers)
        return Normalized(leaf.shape[0], leaf.path) if normalize else Identity(leaf.shape[0])

    if spec.obs[0].path == "":
        return of(spec.obs[0])
    return Parts({leaf.path: of(leaf) for leaf in spec.obs})
