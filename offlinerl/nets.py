"""Networks whose parameters carry leading axes: S seeds, and N critics within a seed.

A slice of a stacked parameter is initialised from its own seed's generator, so a stack of seeds starts where
each seed would start alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Independent, Normal

from offlinerl.rng import Streams

HIDDEN_GAIN = math.sqrt(2)


class Linear(nn.Module):
    """One affine map for every entry of the leading axes.

    Weights are orthogonal (Saxe et al., 2014) with gain sqrt(2), as in the reference IQL and XQL; biases
    start at zero.

    Args:
        in_features: I, size of the input.
        out_features: size of the output.
        lead: the leading axes, ``(S,)`` or ``(S, N)``.
        rng: S generators; the N slices of a seed are drawn one after another from its own.
    """

    def __init__(self, in_features: int, out_features: int, lead: tuple[int, ...], rng: Sequence[Generator]):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*lead, in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(*lead, 1, out_features))
        with torch.no_grad():
            for of_seed, generator in zip(self.weight, rng, strict=True):
                for slice in of_seed.view(-1, in_features, out_features):
                    nn.init.orthogonal_(slice, HIDDEN_GAIN, generator=generator)

    def forward(self, x: Tensor) -> Tensor:  # [*lead, B, I] -> [*lead, B, out]
        return torch.matmul(x, self.weight) + self.bias


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al., 2016) over the last axis, with a gain and a bias a slice."""

    def __init__(self, features: int, lead: tuple[int, ...], eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(*lead, 1, features))
        self.bias = nn.Parameter(torch.zeros(*lead, 1, features))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], eps=self.eps) * self.weight + self.bias


def dropout_masks(rng: Streams, rate: float, batch_size: int, hidden: Sequence[int]) -> tuple[Tensor, ...]:
    """Which units of every hidden layer stay, each ``[S, B, width]`` bool; ``rate`` is exact to 2^-16."""
    threshold = -(2**15) + round(rate * 2**16)
    return tuple(rng.bits((batch_size, width)) >= threshold for width in hidden)


def drop(x: Tensor, kept: Tensor, rate: float) -> Tensor:
    """Dropout (Srivastava et al., 2014) by a given mask instead of hidden random state."""
    return torch.where(kept, x * (1.0 / (1.0 - rate)), 0.0)


class MLP(nn.Module):
    """Linear layers with ReLU between them: ``[*lead, B, sizes[0]] -> [*lead, B, sizes[-1]]``.

    Args:
        sizes: features of the input, of every hidden layer and of the output.
        lead: the leading axes of every parameter.
        rng: S generators for the initial weights.
        layer_norm: normalise before every ReLU.
        dropout: rate of dropout after every ReLU, applied only where ``forward`` is given masks.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        lead: tuple[int, ...],
        rng: Sequence[Generator],
        layer_norm: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.layers = nn.ModuleList(Linear(i, o, lead, rng) for i, o in zip(sizes[:-1], sizes[1:], strict=True))
        self.norms = nn.ModuleList(LayerNorm(size, lead) for size in sizes[1:-1] if layer_norm)
        self.dropout = dropout

    def forward(self, x: Tensor, kept: Sequence[Tensor] | None = None) -> Tensor:
        *hidden, last = self.layers
        for i, layer in enumerate(hidden):
            x = layer(x)
            if self.norms:
                x = self.norms[i](x)
            x = torch.relu(x)
            if kept is not None:
                x = drop(x, kept[i], self.dropout)
        return last(x)


class Value(nn.Module):
    """A state value a seed: ``[S, B, O] -> [S, B]``."""

    def __init__(self, obs_dim: int, hidden: Sequence[int], rng: Sequence[Generator], layer_norm: bool = False):
        super().__init__()
        self.net = MLP([obs_dim, *hidden, 1], (len(rng),), rng, layer_norm=layer_norm)

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs).squeeze(-1)


class Critic(nn.Module):
    """N action values a seed: ``[S, B, O], [S, B, A] -> [S, N, B]``."""

    def __init__(
        self, obs_dim: int, action_dim: int, hidden: Sequence[int], rng: Sequence[Generator], critics: int = 2
    ):
        super().__init__()
        self.critics = critics
        self.net = MLP([obs_dim + action_dim, *hidden, 1], (len(rng), critics), rng)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], -1).unsqueeze(1)  # [S, 1, B, O + A]
        x = x.expand(-1, self.critics, -1, -1)  # [S, N, B, O + A]
        return self.net(x).squeeze(-1)


class GaussianActor(nn.Module):
    """A Normal policy with a tanh on its mean alone and a log-deviation that does not see the state.

    The policy of IQL and XQL: ``[S, B, O]`` -> a distribution over actions ``[S, B, A]`` in units of [-1, 1].
    """

    LOG_STD_RANGE = (-5.0, 2.0)

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        rng: Sequence[Generator],
        dropout: float = 0.0,
    ):
        super().__init__()
        self.net = MLP([obs_dim, *hidden, action_dim], (len(rng),), rng, dropout=dropout)
        self.log_std = nn.Parameter(torch.zeros(len(rng), 1, action_dim))

    def std(self) -> Tensor:
        return self.log_std.clamp(*self.LOG_STD_RANGE).exp()  # [S, 1, A]

    def mean(self, obs: Tensor, kept: Sequence[Tensor] | None = None) -> Tensor:
        return torch.tanh(self.net(obs, kept))  # [S, B, A]

    def forward(self, obs: Tensor, kept: Sequence[Tensor] | None = None) -> Independent:
        normal = Normal(self.mean(obs, kept), self.std(), validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def act(self, obs: Tensor, explore: Streams | None = None) -> Tensor:
        """The mean, or a sample drawn from ``explore`` and clipped: ``[S, E, O] -> [S, E, A]``."""
        mean = self.mean(obs)
        if explore is None:
            return mean
        return (mean + self.std() * explore.to(mean.device).normal(mean.shape[1:])).clamp(-1, 1)


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """Move a target network a fraction ``tau`` of the way to the online one (Lillicrap et al., 2016)."""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, tau)
