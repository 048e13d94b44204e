"""Networks whose parameters carry leading axes: S seeds, and N critics within a seed.

A slice of a stacked parameter is initialised from its own seed's generator, so a stack of seeds starts where
each seed would start alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Categorical, Independent, Normal
from torch.func import functional_call

from offlinerl.rng import Lanes, Streams
from offlinerl.types import Spec

Init = Callable[[Tensor, Tensor, Generator], None]
"""Fills a weight ``[I, out]`` and a bias ``[1, out]`` in place."""


def orthogonal(weight: Tensor, bias: Tensor, rng: Generator, gain: float = math.sqrt(2)) -> None:
    """Orthogonal weights (Saxe et al., 2014) with gain sqrt(2), as in the reference IQL and XQL; zero biases."""
    nn.init.orthogonal_(weight, gain, generator=rng)
    bias.zero_()


def uniform(weight: Tensor, bias: Tensor, rng: Generator, bound: float | None = None) -> None:
    """Both uniform in [-bound, bound], by default ``1 / sqrt(I)`` (Lillicrap et al., 2016, section 7; also what
    ``torch.nn.Linear`` does, and with it the reference TD3 and SAC)."""
    bound = 1 / math.sqrt(len(weight)) if bound is None else bound
    weight.uniform_(-bound, bound, generator=rng)
    bias.uniform_(-bound, bound, generator=rng)


class Linear(nn.Module):
    """One affine map for every entry of the leading axes.

    Args:
        in_features: I, size of the input.
        out_features: size of the output.
        lead: the leading axes, ``(S,)`` or ``(S, N)``.
        rng: S generators; the N slices of a seed are drawn one after another from its own.
        init: how a slice starts.
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
        product = torch.bmm if x.ndim == 3 else torch.matmul  # the same; acting is short enough to see the difference
        return product(x, self.weight) + self.bias


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
    """Linear layers with an activation between them: ``[*lead, B, sizes[0]] -> [*lead, B, sizes[-1]]``.

    Args:
        sizes: features of the input, of every hidden layer and of the output.
        lead: the leading axes of every parameter.
        rng: S generators for the initial weights.
        layer_norm: normalise before every activation.
        dropout: rate of dropout after every activation, applied only where ``forward`` is given masks.
        init: how the layers start.
        last_init: how the last one does, if not like the others.
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


class Value(nn.Module):
    """A state value a seed: ``[S, B, O] -> [S, B]``."""

    def __init__(
        self,
        obs_dim: int,
        hidden: Sequence[int],
        rng: Sequence[Generator],
        layer_norm: bool = False,
        init: Init = orthogonal,
        last_init: Init | None = None,
        activation: Callable[[Tensor], Tensor] = torch.relu,
    ):
        super().__init__()
        self.net = MLP(
            [obs_dim, *hidden, 1], (len(rng),), rng, layer_norm=layer_norm, init=init, last_init=last_init,
            activation=activation,
        )  # fmt: skip

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs).squeeze(-1)


class Critic(nn.Module):
    """N action values a seed: ``[S, B, O], [S, B, A] -> [S, N, B]``; with ``atoms``, the logits of N
    distributions over returns: ``[S, N, B, atoms]``."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        rng: Sequence[Generator],
        critics: int = 2,
        init: Init = orthogonal,
        last_init: Init | None = None,
        atoms: int | None = None,
    ):
        super().__init__()
        self.critics, self.atoms = critics, atoms
        sizes = [obs_dim + action_dim, *hidden, atoms or 1]
        self.net = MLP(sizes, (len(rng), critics), rng, init=init, last_init=last_init)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], -1).unsqueeze(1)  # [S, 1, B, O + A]
        x = self.net(x.expand(-1, self.critics, -1, -1))  # [S, N, B, atoms]
        return x if self.atoms else x.squeeze(-1)

    def first(self, obs: Tensor, action: Tensor) -> Tensor:
        """The first of the N alone, ``[S, B]``, or ``[S, B, atoms]``."""
        x = torch.cat([obs, action], -1).unsqueeze(1)  # [S, 1, B, O + A]
        first = {name: p[:, :1] for name, p in self.net.named_parameters()}
        x = functional_call(self.net, first, x).squeeze(1)  # [S, B, atoms]
        return x if self.atoms else x.squeeze(-1)


class DeterministicActor(nn.Module):
    """A policy that is a function, in units of [-1, 1]: ``[S, B, O] -> [S, B, A]``."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        rng: Sequence[Generator],
        layer_norm: bool = False,
        init: Init = uniform,
        last_init: Init | None = None,
    ):
        super().__init__()
        sizes = [obs_dim, *hidden, action_dim]
        self.net = MLP(sizes, (len(rng),), rng, layer_norm=layer_norm, init=init, last_init=last_init)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.net(obs))


class SquashedGaussianActor(nn.Module):
    """A Normal whose mean and log-deviation see the state, squashed by tanh into units of [-1, 1].

    Haarnoja et al., Soft Actor-Critic, 2018, appendix C.
    """

    LOG_STD_RANGE = (-20.0, 2.0)

    def __init__(self, obs_dim: int, action_dim: int, hidden: Sequence[int], rng: Sequence[Generator]):
        super().__init__()
        self.net = MLP([obs_dim, *hidden, 2 * action_dim], (len(rng),), rng, init=uniform)

    def mean_and_std(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Of the Normal before the tanh, ``[S, B, A]`` each."""
        mean, log_std = self.net(obs).chunk(2, -1)
        return mean, log_std.clamp(*self.LOG_STD_RANGE).exp()

    def forward(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reparameterised actions ``[S, B, A]`` and their log-probabilities ``[S, B]``, from standard normal
        ``noise`` ``[S, B, A]``."""
        mean, std = self.mean_and_std(obs)
        x = mean + std * noise
        log_prob = -0.5 * noise.square() - std.log() - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(x)^2), in a form that neither overflows nor cancels
        log_slope = 2 * (math.log(2) - x - nn.functional.softplus(-2 * x))
        return torch.tanh(x), (log_prob - log_slope).sum(-1)


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

    def act(self, obs: Tensor, explore: Lanes | None = None) -> Tensor:
        """The mean, or a sample drawn from ``explore`` and clipped: ``[S, E, O] -> [S, E, A]``."""
        mean = self.mean(obs)
        if explore is None:
            return mean
        return (mean + self.std() * explore.normal(mean.shape[2:]).to(mean.device)).clamp(-1, 1)


class Policy(nn.Module):
    """A stochastic policy of the policy-gradient papers: ``[S, B, O]`` -> a distribution over actions ``[S, B, A]``.

    Its network has tanh between its layers, as in TRPO (Schulman et al., 2015, appendix D) and PPO (2017, section
    6.1), and nearly the same output for every observation at the start (Andrychowicz et al., 2021, section 3.2).
    """

    def __init__(self, obs_dim: int, outputs: int, hidden: Sequence[int], rng: Sequence[Generator]):
        super().__init__()
        last = partial(orthogonal, gain=0.01)
        self.net = MLP([obs_dim, *hidden, outputs], (len(rng),), rng, last_init=last, activation=torch.tanh)

    def forward(self, obs: Tensor) -> Independent:
        raise NotImplementedError

    def act(self, obs: Tensor, explore: Lanes | None = None) -> Tensor:
        """The likeliest action, or a sample drawn from ``explore``: ``[S, E, O] -> [S, E, A]``."""
        raise NotImplementedError


class GaussianPolicy(Policy):
    """A Normal in units of [-1, 1], though without bounds; its log-deviation does not see the state."""

    LOG_STD_RANGE = (-5.0, 2.0)

    def __init__(self, obs_dim: int, action_dim: int, hidden: Sequence[int], rng: Sequence[Generator]):
        super().__init__(obs_dim, action_dim, hidden, rng)
        self.log_std = nn.Parameter(torch.zeros(len(rng), 1, action_dim))

    def std(self) -> Tensor:
        return self.log_std.clamp(*self.LOG_STD_RANGE).exp()  # [S, 1, A]

    def forward(self, obs: Tensor) -> Independent:
        mean = self.net(obs)
        normal = Normal(mean, self.std().expand_as(mean), validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def act(self, obs: Tensor, explore: Lanes | None = None) -> Tensor:
        mean = self.net(obs)
        if explore is None:
            return mean
        return mean + self.std() * explore.normal(mean.shape[2:]).to(mean.device)


class CategoricalPolicy(Policy):
    """Discrete actions, given by their number: ``outputs`` of them, A = 1."""

    def forward(self, obs: Tensor) -> Independent:
        categorical = Categorical(logits=self.net(obs).unsqueeze(-2), validate_args=False)
        return Independent(categorical, 1, validate_args=False)

    def act(self, obs: Tensor, explore: Lanes | None = None) -> Tensor:
        logits = self.net(obs)  # [S, E, actions]
        if explore is not None:  # the largest of logits with Gumbel noise is a sample (Gumbel, 1954)
            uniform = explore.uniform(torch.finfo(torch.float32).tiny, 1, logits.shape[2:])
            logits = logits - torch.log(-torch.log(uniform.to(logits.device)))
        return logits.argmax(-1, keepdim=True).float()


class RunningNorm(nn.Module):
    """The mean and the variance of every dimension of all that was seen, a seed: what is to be normalised by them
    is ``[S, B, D]``. Before anything was seen it changes nothing.

    Chan, Golub & LeVeque, 1979, for the merging of two sets' moments.
    """

    def __init__(self, seeds: int, size: int, limit: float = 10.0):
        super().__init__()
        self.limit = limit
        self.register_buffer("mean", torch.zeros(seeds, 1, size))
        self.register_buffer("var", torch.ones(seeds, 1, size))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def see(self, x: Tensor) -> None:
        """Take ``[S, B, D]`` into account."""
        count, total = x.shape[1], self.count + x.shape[1]
        share = (count / total).to(x.dtype)
        mean = x.mean(1, keepdim=True)
        apart = (mean - self.mean).square()
        self.var += share * (x.var(1, correction=0, keepdim=True) - self.var + (1 - share) * apart)
        self.mean += share * (mean - self.mean)
        self.count.copy_(total)

    def scale(self, x: Tensor) -> Tensor:
        """In units of the deviation, and within the limit."""
        return (x * (self.var + 1e-8).rsqrt()).clamp(-self.limit, self.limit)

    def forward(self, x: Tensor) -> Tensor:
        """Likewise, from the mean on."""
        return self.scale(x - self.mean)


def stochastic_policy(spec: Spec, hidden: Sequence[int], rng: Sequence[Generator]) -> Policy:
    """The policy for a task's kind of actions."""
    if spec.num_actions:
        return CategoricalPolicy(spec.obs_dim, spec.num_actions, hidden, rng)
    return GaussianPolicy(spec.obs_dim, spec.action_dim, hidden, rng)


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """Move a target network a fraction ``tau`` of the way to the online one (Lillicrap et al., 2016)."""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, tau)
