"""Policy networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Categorical, Independent, Normal

from offlinerl.learning.exploration import best_of
from offlinerl.learning.rng import EnvStreams
from offlinerl.nn.encoders import Encoder
from offlinerl.nn.layers import MLP, Init, orthogonal, uniform
from offlinerl.types import Spec


class DeterministicActor(nn.Module):
    """A deterministic policy, in units of [-1, 1]: ``[S, B, O] -> [S, B, A]``."""

    def __init__(
        self,
        encoder: Encoder,
        action_dim: int,
        hidden: Sequence[int],
        rng: Sequence[Generator],
        layer_norm: bool = False,
        init: Init = uniform,
        last_init: Init | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        sizes = [encoder.features, *hidden, action_dim]
        self.net = MLP(sizes, (len(rng),), rng, layer_norm=layer_norm, init=init, last_init=last_init)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.net(self.encoder(obs)))


class SquashedGaussianActor(nn.Module):
    """A Normal whose mean and log standard deviation depend on the state, squashed by tanh to [-1, 1].

    Haarnoja et al., Soft Actor-Critic, 2018, appendix C.
    """

    LOG_STD_RANGE = (-20.0, 2.0)

    def __init__(self, encoder: Encoder, action_dim: int, hidden: Sequence[int], rng: Sequence[Generator]):
        super().__init__()
        self.encoder = encoder
        self.net = MLP([encoder.features, *hidden, 2 * action_dim], (len(rng),), rng, init=uniform)

    def mean_and_std(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the Normal before the tanh, ``[S, B, A]`` each."""
        mean, log_std = self.net(self.encoder(obs)).chunk(2, -1)
        return mean, log_std.clamp(*self.LOG_STD_RANGE).exp()

    def forward(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reparameterised actions ``[S, B, A]`` and their log-probabilities ``[S, B]``, from standard normal ``noise``
        ``[S, B, A]``; or n of each per observation, ``[S, B, n, A]`` and ``[S, B, n]``, from noise ``[S, B, n, A]``."""
        mean, std = self.mean_and_std(obs)
        if noise.ndim > mean.ndim:
            mean, std = mean.unsqueeze(2), std.unsqueeze(2)
        x = mean + std * noise
        log_prob = -0.5 * noise.square() - std.log() - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(x)^2) in a numerically stable form
        log_slope = 2 * (math.log(2) - x - nn.functional.softplus(-2 * x))
        return torch.tanh(x), (log_prob - log_slope).sum(-1)


class GaussianActor(nn.Module):
    """A Normal with a state-independent log standard deviation: ``[S, B, O]`` -> a distribution over actions
    ``[S, B, A]`` in units of [-1, 1].

    Args:
        encoder: of the observations.
        action_dim: A.
        hidden: sizes of the hidden layers.
        rng: S generators for the initial weights.
        bounded: a tanh on the mean and samples clipped to [-1, 1], as in IQL and XQL; else the policy is unbounded, as
            in the policy-gradient papers.
        layers: further arguments of ``MLP``.
    """

    LOG_STD_RANGE = (-5.0, 2.0)

    def __init__(
        self, encoder: Encoder, action_dim: int, hidden: Sequence[int], rng: Sequence[Generator], bounded: bool = True,
        **layers: Any,
    ):  # fmt: skip
        super().__init__()
        self.encoder, self.bounded = encoder, bounded
        self.net = MLP([encoder.features, *hidden, action_dim], (len(rng),), rng, **layers)
        self.log_std = nn.Parameter(torch.zeros(len(rng), 1, action_dim))

    def std(self) -> Tensor:
        return self.log_std.clamp(*self.LOG_STD_RANGE).exp()  # [S, 1, A]

    def mean(self, obs: Tensor, kept: Sequence[Tensor] | None = None) -> Tensor:
        mean = self.net(self.encoder(obs), kept)  # [S, B, A]
        return torch.tanh(mean) if self.bounded else mean

    def forward(self, obs: Tensor, kept: Sequence[Tensor] | None = None) -> Independent:
        normal = Normal(self.mean(obs, kept), self.std(), validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def act(self, obs: Tensor, explore: EnvStreams | None = None) -> Tensor:
        """The mean, or a sample drawn with ``explore``: ``[S, E, O] -> [S, E, A]``."""
        mean = self.mean(obs)
        if explore is None:
            return mean
        sample = mean + self.std() * explore.normal(mean.shape[2:]).to(mean.device)
        return sample.clamp(-1, 1) if self.bounded else sample


class NoiseActor(nn.Module):
    """A policy that computes its action from an observation and noise, so that it may have several modes: ``[S, B, O],
    [S, B, A] -> [S, B, A]``, in units of [-1, 1], but unbounded; ``layers`` are further arguments of ``MLP``."""

    inputs = 0
    """Number of inputs besides features and noise."""

    def __init__(
        self, encoder: Encoder, action_dim: int, hidden: Sequence[int], rng: Sequence[Generator], **layers: Any
    ):  # fmt: skip
        super().__init__()
        self.encoder = encoder
        self.net = MLP([encoder.features + action_dim + self.inputs, *hidden, action_dim], (len(rng),), rng, **layers)

    def forward(self, obs: Tensor, *inputs: Tensor) -> Tensor:
        return self.of_features(self.encoder(obs), *inputs)

    def of_features(self, features: Tensor, *inputs: Tensor) -> Tensor:
        """The same, given the encoder's features, ``[S, B, F]``."""
        return self.net(torch.cat([features, *inputs], -1))


class Flow(NoiseActor):
    """The velocity at which noise becomes an action, given a point on the way and the time from 0 to 1: ``[S, B, O],
    [S, B, A], [S, B, 1] -> [S, B, A]`` (Lipman et al., Flow Matching, ICLR 2023)."""

    inputs = 1

    def generate(self, obs: Tensor, noise: Tensor, steps: int) -> Tensor:
        """The actions within [-1, 1] that noise ``[S, B, A]`` becomes, by the Euler method."""
        features, point = self.encoder(obs), noise
        for i in range(steps):
            time = torch.full_like(point[..., :1], i / steps)
            point = point + self.of_features(features, point, time) / steps
        return point.clamp(-1, 1)


class CategoricalActor(nn.Module):
    """A categorical distribution over action indices, ``[S, B, O]`` -> a distribution over ``[S, B, 1]``; ``layers``
    are further arguments of ``MLP``."""

    def __init__(
        self, encoder: Encoder, actions: int, hidden: Sequence[int], rng: Sequence[Generator], **layers: Any
    ):  # fmt: skip
        super().__init__()
        self.encoder = encoder
        self.net = MLP([encoder.features, *hidden, actions], (len(rng),), rng, **layers)

    def forward(self, obs: Tensor, kept: Sequence[Tensor] | None = None) -> Independent:
        return categorical(self.net(self.encoder(obs), kept))

    def act(self, obs: Tensor, explore: EnvStreams | None = None) -> Tensor:
        """The most likely action, or a sample drawn with ``explore``: ``[S, E, O] -> [S, E, 1]``."""
        return choice(self.net(self.encoder(obs)), explore)


def actor_of(
    spec: Spec, encoder: Encoder, hidden: Sequence[int], rng: Sequence[Generator], bounded: bool = True, **layers: Any
) -> GaussianActor | CategoricalActor:
    """The actor for a task's kind of actions; ``layers`` are further arguments of ``MLP``."""
    if spec.num_actions:
        return CategoricalActor(encoder, spec.num_actions, hidden, rng, **layers)
    return GaussianActor(encoder, spec.action_dim, hidden, rng, bounded, **layers)


def stochastic_policy(
    spec: Spec, encoder: Encoder, hidden: Sequence[int], rng: Sequence[Generator]
) -> GaussianActor | CategoricalActor:
    """The policy of the policy-gradient papers for a task's kind of actions.

    Its network has tanh activations, as in TRPO (Schulman et al., 2015, appendix D) and PPO (2017, section 6.1). The
    initial output hardly depends on the observation (Andrychowicz et al., 2021, section 3.2).
    """
    last = partial(orthogonal, gain=0.01)
    return actor_of(spec, encoder, hidden, rng, bounded=False, last_init=last, activation=torch.tanh)


def categorical(logits: Tensor) -> Independent:
    """The distribution over action indices ``[S, B, 1]`` with these logits, ``[S, B, actions]``."""
    return Independent(Categorical(logits=logits.unsqueeze(-2), validate_args=False), 1, validate_args=False)


def choice(logits: Tensor, explore: EnvStreams | None) -> Tensor:
    """The index with the largest logit ``[S, E, actions]``, or a sample drawn with ``explore``: ``[S, E, 1]``."""
    if explore is not None:  # the argmax of logits with Gumbel noise is a sample (Gumbel, 1954)
        uniform = explore.uniform(torch.finfo(torch.float32).tiny, 1, logits.shape[2:])
        logits = logits - torch.log(-torch.log(uniform.to(logits.device)))
    return best_of(logits)
