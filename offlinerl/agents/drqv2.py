"""DrQ-v2: data-augmented reinforcement learning from pixels (Yarats, Fergus, Lazaric & Pinto, ICLR 2022)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from offlinerl.agents.base import Agent, Config, Noise, setting
from offlinerl.learning import losses
from offlinerl.learning.exploration import linear
from offlinerl.nn.actors import DeterministicActor
from offlinerl.nn.critics import Critic
from offlinerl.nn.encoders import Encoder
from offlinerl.nn.layers import LayerNorm, Linear, orthogonal, soft_update
from offlinerl.types import Batch, Metrics

MARGIN = 1e-6
"""Distance that actions in an update keep from their bounds."""


@dataclass(frozen=True)
class DrQv2Config(Config):
    convolutions: str = "sac_ae"
    shift: int = 4
    gamma: float = setting(0.99, "discount factor per step", low=0, high=1, per_seed=True)
    n_step: int = setting(3, "number of steps in the n-step return", low=1)
    tau: float = setting(0.01, "update rate of the target critics", above=0, high=1, per_seed=True)
    lr: float = setting(1e-4, "Adam's learning rate of all networks", above=0, per_seed=True)
    features: int = setting(50, "number of features of an observation that the actor and the critics see", low=1)
    hidden: tuple[int, ...] = setting((1024, 1024), "sizes of the hidden layers of actor and critics")
    sigma: float = setting(1.0, "initial standard deviation of the noise, in units of half the action range", low=0)
    final_sigma: float = setting(0.1, "standard deviation of the noise after sigma_steps", low=0)
    sigma_steps: int = setting(
        100_000, "steps (updates, on a dataset) over which sigma changes linearly to final_sigma", low=1
    )
    noise_clip: float = setting(0.3, "clipping bound of the noise in updates", low=0)


class Trunk(Encoder):
    """Projects the output of the convolutions to a few features, ``[S, B, R] -> [S, B, F]``. The actor has its own, and
    the critics share another one, as in the authors' code."""

    def __init__(self, encoded: int, features: int, rng: list[Generator]):
        super().__init__()
        self.features = features
        self.linear = Linear(encoded, features, (len(rng),), rng, partial(orthogonal, gain=1.0))
        self.norm = LayerNorm(features, (len(rng),), eps=1e-5)

    def forward(self, encoded: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.linear(encoded)))


class DrQv2(Agent):
    """DDPG with n-step returns and clipped double Q-learning on randomly shifted images, with scheduled exploration
    noise (paper, algorithm 1).

    The encoder and the actor have no target networks. Images are shifted before ``update`` gets them, as in the paper's
    ``aug(x)``; see the setting ``shift``. Steps are counted as the agent's steps, each of which repeats its action for
    two frames.
    """

    config_class = DrQv2Config

    def build(self) -> None:
        config, A, init = self.config, self.spec.action_dim, self.init_rng
        layers = partial(orthogonal, gain=1.0)
        self.encode = self.encoder("critic")  # f
        R, F = self.encode.features, config.features
        self.critic = Critic(Trunk(R, F, init("critic trunk")), A, config.hidden, init("critic"), 2, layers)
        self.actor = DeterministicActor(
            Trunk(R, F, init("actor trunk")), A, config.hidden, init("actor"), init=layers
        )  # pi
        self.target = copy.deepcopy(self.critic).requires_grad_(False)

    def configure_optimizers(self):
        seeing = torch.nn.ModuleList([self.encode, self.critic])  # only the critic loss trains the encoder
        return self.adam(self.config.lr, critic=seeing, actor=self.actor)

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        h = self.encode(batch.obs)  # [S, B, R]
        with torch.no_grad():
            next_h = self.encode(batch.next_obs)
            next_action = noisy(self.actor(next_h), noise["next_action"])
            target = batch.reward + batch.discount * self.target(next_h, next_action).amin(1)  # [S, B]
        q = self.critic(h, batch.action)  # [S, N, B]
        critic_loss = self.descend("critic", self.weighted(batch, losses.squared(target.unsqueeze(1) - q)))  # eq. 1
        h = h.detach()
        action = noisy(self.actor(h), noise["action"])
        actor_loss = self.descend("actor", -self.critic(h, action).amin(1))  # eq. 2
        soft_update(self.target, self.critic, self.config.tau)
        priority = (target.unsqueeze(1) - q.detach()).abs().mean(1)  # [S, B]
        return dict(critic_loss=critic_loss, actor_loss=actor_loss, q=q.detach().mean((1, 2)), priority=priority)

    def scheduled_sigma(self) -> float:
        """The standard deviation of the noise at the current step (equation 3, whose end points are swapped in the
        paper)."""
        config = self.config
        return linear(config.sigma, config.final_sigma, config.sigma_steps, self.progress)

    def draw(self, batch_size: int) -> Noise:
        """The noise of both actions, ``[S, B, A]`` each: clip(N(0, sigma^2), -c, c)."""
        rng, shape, clip = self.rng, (batch_size, self.spec.action_dim), self.config.noise_clip
        sigma = self.scheduled_sigma()
        return {name: (sigma * rng.normal(shape)).clamp(-clip, clip) for name in ("next_action", "action")}

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        action = self.actor(self.encode(obs))
        if explore:
            noise = self.exploring(obs).normal((self.spec.action_dim,)).to(action.device)
            action = (action + self.scheduled_sigma() * noise).clamp(-1, 1)
        return self.to_env(action)

    def log_prob(self, obs: Tensor, action: Tensor, explore: bool = False) -> Tensor | None:
        if not explore or not (sigma := self.scheduled_sigma()):
            return None
        return self.clipped_normal(action, self.actor(self.encode(obs)), action.new_tensor(sigma))


def noisy(action: Tensor, noise: Tensor) -> Tensor:
    """Actions with noise, clipped to their bounds; the gradient passes through the clipping unchanged, as in the
    authors' code."""
    action = action + noise
    return action + (action.clamp(MARGIN - 1, 1 - MARGIN) - action).detach()
