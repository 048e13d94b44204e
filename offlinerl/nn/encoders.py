"""Encoders, from observations to features, ``[S, B, ...] -> [S, B, F]``. Every network has its own encoder."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Generator, Tensor, nn

from offlinerl.envs.spaces import require_image_axes
from offlinerl.nn.layers import Linear, orthogonal
from offlinerl.types import Leaf, Spec
from offlinerl.util.errors import UserError
from offlinerl.util.threads import one_thread

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
    """Maps observations to the features that a network takes.

    Attributes:
        features: F, the number of features.
    """

    features: int

    @abstractmethod
    def forward(self, obs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """``[S, B, ...] -> [S, B, F]``."""


class Identity(Encoder):
    """Returns an observation vector unchanged."""

    def __init__(self, features: int):
        super().__init__()
        self.features = features

    def forward(self, obs: Tensor) -> Tensor:
        return obs


class Normalized(Encoder):
    """Standardises every dimension of a vector by its mean and standard deviation in a dataset, and clips the result to
    ``LIMIT``. Before they are set, the mean is 0 and the standard deviation 1.

    No epsilon is added to a standard deviation, however small, since it may only be small because of the user's units.
    A dimension that is constant in the dataset is only shifted. The limit matters for dimensions that are constant or
    nearly constant in the dataset but not when the policy acts.

    Args:
        features: O, the vector's size.
        path: of the vector in the observation.
    """

    LIMIT = 10.0
    """In standard deviations, as in Stable-Baselines3's ``VecNormalize``; at most 1% of all values are beyond it."""

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int, path: str = ""):
        super().__init__()
        self.features, self.path = features, path
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def set(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Set mean and standard deviation, ``[O]`` each, or those of one frame where the vector is a stack of frames;
        the standard deviation of a constant dimension is 0."""
        frames = self.features // len(mean)
        self.mean.copy_(torch.from_numpy(mean).repeat(frames))
        self.scale.copy_(torch.from_numpy(np.where(std > 0, std, 1.0)).repeat(frames))

    def forward(self, obs: Tensor) -> Tensor:
        return ((obs - self.mean) / self.scale).clamp(-self.LIMIT, self.LIMIT)


def orthogonal_kernels(rng: Sequence[Generator], *shape: int) -> nn.Parameter:
    """Convolution kernels of S seeds, ``[S, *shape]``: orthogonal with gain sqrt(2), each from its seed's generator."""
    kernels = torch.empty(len(rng), *shape)
    with one_thread():
        for of_seed, generator in zip(kernels, rng, strict=True):
            nn.init.orthogonal_(of_seed, math.sqrt(2), generator=generator)
    return nn.Parameter(kernels)


class Convolution(nn.Module):
    """One convolution per seed, ``[B, S I, H, W] -> [B, S out, H', W']``, all seeds in one grouped call."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, rng: Sequence[Generator]):
        super().__init__()
        self.stride = stride
        self.weight = orthogonal_kernels(rng, out_channels, in_channels, kernel, kernel)
        self.bias = nn.Parameter(torch.zeros(len(rng), out_channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.flatten(0, 1), self.bias.flatten()
        return nn.functional.conv2d(x, weight, bias, self.stride, groups=len(self.weight))


class Images(Encoder):
    """Convolutions over images, uint8 or float in [0, 1], ``[S, B, H, W, C]``, or ``[S, B, H, W]`` without channels.
    Layers whose kernel is larger than their input are left out.

    Args:
        shape: of an image, ``(H, W, C)`` or ``(H, W)``.
        rng: S generators for the initial weights.
        layers: channels, kernel and stride of every convolution.

    Attributes:
        shapes: ``(H, W, C)`` before the first layer and after every layer.
        channels_last: the memory format of the convolutions: True for channels last, False for contiguous, None for
            channels last if there is only one seed, whose frames then need no copy.

    Raises:
        UserError: the image is smaller than every kernel, or the order of its axes is wrong, such as channels first.
    """

    def __init__(self, shape: Sequence[int], rng: Sequence[Generator], layers: Layers = NATURE):
        super().__init__()
        require_image_axes(shape)
        height, width, channels = (*shape, 1)[:3]
        if min(height, width) < (least := min(kernel for _, kernel, _ in layers)):
            raise UserError(
                f"images of {height}x{width} are too small for convolutions, the smallest of which is {least}x{least}:"
                " use larger ones, or an encoder of your own"
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
    """The approximate posterior ``q(z|x)`` of an image's latents (Kingma & Welling, Auto-Encoding Variational Bayes,
    2013, equation 9): ``[S, B, H, W, C]`` -> the mean and the log variance of a Normal with independent dimensions,
    ``[S, B, Z]`` each.

    Args:
        shape: of an image, ``(H, W, C)``.
        latents: Z, the number of latents.
        rng: S generators for the initial weights.
        layers: channels, kernel and stride of every convolution.
    """

    def __init__(self, shape: Sequence[int], latents: int, rng: Sequence[Generator], layers: Layers):
        super().__init__()
        self.images = Images(shape, rng, layers)
        self.heads = Linear(self.images.features, 2 * latents, (len(rng),), rng, partial(orthogonal, gain=1.0))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.heads(self.images(obs)).chunk(2, -1)
        return mean, log_var


class Frozen(nn.Module):
    """The posterior mean of a pretrained encoder, ``[..., H, W, n C] -> [..., n Z]`` for the n frames of an image.

    Its weights are buffers shared by all seeds, not parameters: they are never trained, and a deep copy returns the
    same object. They are NaN until they are loaded.

    Args:
        shape: of a frame, ``(H, W, C)``.
        latents: Z, the number of latents per frame.
        layers: name of the convolutions in ``LAYERS``.
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
        H, W, C = self.shape
        n = int(obs.shape[-1]) // C
        frames = obs.reshape(-1, H, W, n, C).permute(0, 3, 1, 2, 4)
        mean, _ = self.posterior(frames.reshape(1, -1, H, W, C))
        return mean.reshape(*obs.shape[:-3], n * self.latents)


class Latents(Encoder):
    """The latents of images, ``[S, B, H, W, n C] -> [S, B, n Z]``. Latents, as stored in replay buffers and tables, are
    returned unchanged.

    Args:
        frozen: computes the latents. It is a module of the agent, not of the networks that use it.
        frames: n, the number of frames in an image.
    """

    def __init__(self, frozen: Frozen, frames: int):
        super().__init__()
        self.features = frames * frozen.latents
        object.__setattr__(self, "frozen", frozen)  # nn.Module would register it as a submodule

    def forward(self, obs: Tensor) -> Tensor:
        return self.frozen(obs) if obs.dtype == torch.uint8 else obs


class Parts(Encoder):
    """The concatenated features of all parts of an observation."""

    def __init__(self, parts: Mapping[str, Encoder]):
        super().__init__()
        self.paths = tuple(parts)
        self.parts = nn.ModuleList(parts.values())
        self.features = sum(part.features for part in parts.values())

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([part(obs[path]) for path, part in zip(self.paths, self.parts, strict=True)], -1)


def encoder_of(spec: Spec, rng: Sequence[Generator], normalize: bool = False, layers: Layers = NATURE) -> Encoder:
    """The encoder for a task's observations: identity for vectors, convolutions for images, and the concatenation of
    both for dictionaries.

    Args:
        spec: of the task.
        rng: S generators for the initial weights.
        normalize: whether vectors are normalised.
        layers: channels, kernel and stride of the convolutions.
    """

    def of(leaf: Leaf) -> Encoder:
        if len(leaf.shape) > 1:
            return Images(leaf.shape, rng, layers)
        return Normalized(leaf.shape[0], leaf.path) if normalize else Identity(leaf.shape[0])

    if spec.obs[0].path == "":
        return of(spec.obs[0])
    return Parts({leaf.path: of(leaf) for leaf in spec.obs})
