"""Network layers stacked over seeds: every parameter has a leading axis S."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

from offlinerl.learning.rng import Streams
from offlinerl.learning.seeds import Number, per_seed
from offlinerl.util.threads import one_thread

Init = Callable[[Tensor, Tensor, Generator], None]
"""Fills a weight ``[I, out]`` and a bias ``[1, out]`` in place."""


def orthogonal(weight: Tensor, bias: Tensor, rng: Generator, gain: float = math.sqrt(2)) -> None:
    """Orthogonal weights (Saxe et al., 2014), by default with gain sqrt(2), as in the reference IQL and XQL; zero
    biases."""
    with one_thread():
        nn.init.orthogonal_(weight, gain, generator=rng)
    bias.zero_()


def uniform(weight: Tensor, bias: Tensor, rng: Generator, bound: float | None = None) -> None:
    """Weights and biases uniform in [-bound, bound], by default ``1 / sqrt(I)`` (Lillicrap et al., 2016, section 7;
    also the default of ``torch.nn.Linear``, and so of the reference TD3 and SAC)."""
    bound = 1 / math.sqrt(len(weight)) if bound is None else bound
    weight.uniform_(-bound, bound, generator=rng)
    bias.uniform_(-bound, bound, generator=rng)


def xavier(weight: Tensor, bias: Tensor, rng: Generator) -> None:
    """Weights uniform in +-sqrt(6 / (I + out)) (Glorot & Bengio, 2010, equation 16); zero biases."""
    bound = math.sqrt(6 / sum(weight.shape))
    weight.uniform_(-bound, bound, generator=rng)
    bias.zero_()


def normal(weight: Tensor, bias: Tensor, rng: Generator, std: float = 0.02) -> None:
    """Normal weights with a small standard deviation, as in transformers (Radford et al., GPT, 2018); zero biases."""
    weight.normal_(0, std, generator=rng)
    bias.zero_()


class Linear(nn.Module):
    """A linear layer for every entry of the leading axes.

    Args:
        in_features: I, size of the input.
        out_features: size of the output.
        lead: the leading axes, ``(S,)`` or ``(S, N)``.
        rng: S generators; the N slices of a seed are drawn one after another from the seed's generator.
        init: initialisation of a slice.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        lead: tuple[int, ...],
        rng: Sequence[Generator],
        init: Init = orthogonal,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*lead, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(*lead, 1, out_features))
        with torch.no_grad():
            for weights, biases, generator in zip(self.weight, self.bias, rng, strict=True):
                slices = weights.view(-1, in_features, out_features), biases.view(-1, 1, out_features)
                for weight, bias in zip(*slices, strict=True):
                    init(weight, bias, generator)

    def forward(self, x: Tensor) -> Tensor:  # [*lead, B, I] -> [*lead, B, out]
        if self.weight.shape[-1] == 1:
            # Batched matrix-vector products are slow in libraries; the compiler fuses this form with what precedes it.
            return (x * self.weight.mT).sum(-1, keepdim=True) + self.bias
        product = torch.bmm if x.ndim == 3 else torch.matmul  # bmm has less overhead, which shows when acting
        return product(x, self.weight) + self.bias


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al., 2016) over the last axis, with a gain and a bias for every leading entry."""

    def __init__(self, features: int, lead: tuple[int, ...], eps: float = 1e-6):
        super().__init__()
        self.features, self.eps = features, eps
        self.weight = nn.Parameter(torch.ones(*lead, 1, features))
        self.bias = nn.Parameter(torch.zeros(*lead, 1, features))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (self.features,), eps=self.eps) * self.weight + self.bias


def dropout_masks(rng: Streams, rate: float, batch_size: int, hidden: Sequence[int]) -> tuple[Tensor, ...]:
    """Masks of the units that are kept in every hidden layer: 1 for kept, 0 for dropped, each ``[S, B, width]``; the
    rate is exact to 2^-16. The dtype is float, since a CPU is many times slower with bool masks."""
    threshold = -(2**15) + round(rate * 2**16)
    return tuple(rng.bits((batch_size, width)).ge_(threshold).float() for width in hidden)


def drop(x: Tensor, kept: Tensor, rate: float) -> Tensor:
    """Dropout (Srivastava et al., 2014) with a given mask instead of hidden random state."""
    return x * (kept * (1.0 / (1.0 - rate)))


class MLP(nn.Module):
    """Linear layers with an activation between them: ``[*lead, B, sizes[0]] -> [*lead, B, sizes[-1]]``.

    Args:
        sizes: features of the input, of every hidden layer and of the output.
        lead: the leading axes of every parameter.
        rng: S generators for the initial weights.
        layer_norm: whether to apply LayerNorm before every activation.
        dropout: rate of dropout after every activation, applied only if ``forward`` is given masks.
        init: initialisation of the layers.
        last_init: initialisation of the last layer, if different.
        activation: between the layers.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        lead: tuple[int, ...],
        rng: Sequence[Generator],
        layer_norm: bool = False,
        dropout: float = 0.0,
        init: Init = orthogonal,
        last_init: Init | None = None,
        activation: Callable[[Tensor], Tensor] = torch.relu,
    ):
        super().__init__()
        inits = [init] * (len(sizes) - 2) + [last_init or init]
        self.layers = nn.ModuleList(
            Linear(i, o, lead, rng, start) for i, o, start in zip(sizes[:-1], sizes[1:], inits, strict=True)
        )
        self.norms = nn.ModuleList(LayerNorm(size, lead) for size in sizes[1:-1] if layer_norm)
        self.dropout, self.activation = dropout, activation

    def forward(self, x: Tensor, kept: Sequence[Tensor] | None = None) -> Tensor:
        *hidden, last = self.layers
        for i, layer in enumerate(hidden):
            x = layer(x)
            if self.norms:
                x = self.norms[i](x)
            x = self.activation(x)
            if kept is not None:
                x = drop(x, kept[i], self.dropout)
        return last(x)


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, tau: Number) -> None:
    """Move a target network towards the online network by a fraction ``tau`` (Lillicrap et al., 2016)."""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, per_seed(tau, slow))
