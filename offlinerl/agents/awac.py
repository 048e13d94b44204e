"""AWAC: accelerating online reinforcement learning with offline datasets (Nair, Gupta, Dalal & Levine, 2020)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from offlinerl.agents.base import Agent, Config, Noise, setting
from offlinerl.learning import losses
from offlinerl.nn.actors import GaussianActor
from offlinerl.nn.critics import Critic
from offlinerl.nn.layers import soft_update, uniform
from offlinerl.types import Batch, Metrics


@dataclass(frozen=True)
class AWACConfig(Config):
    temperature: float = setting(
        1.0, "inverse temperature of the advantage weights, 1 / lambda in the paper", low=0, per_seed=True
    )
    gamma: float = setting(0.99, "discount factor per step", low=0, high=1, per_seed=True)
    n_step: int = setting(1, "number of steps in the n-step return", low=1)
    tau: float = setting(0.005, "update rate of the target critics", above=0, high=1, per_seed=True)
    lr: float = setting(3e-4, "Adam's learning rate", above=0, per_seed=True)
    hidden: tuple[int, ...] = setting((256, 256), "sizes of the hidden layers of every network")


class AWAC(Agent):
    """An actor-critic whose policy is trained by advantage-weighted regression on the dataset's actions, and whose
    critics evaluate that policy (paper, algorithm 1)."""

    config_class = AWACConfig

    def build(self) -> None:
        hidden, A, init = self.config.hidden, self.spec.action_dim, self.init_rng
        self.critic = Critic(self.encoder("critic"), A, hidden, init("critic"), init=uniform)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor = GaussianActor(self.encoder("actor"), A, hidden, init("actor"))

    def configure_optimizers(self):
        return self.adam(self.config.lr, critic=self.critic, actor=self.actor)

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        with torch.no_grad():
            next_q = self.target(batch.next_obs, self.sample(batch.next_obs, noise["next_action"])).amin(1)
            target = batch.reward + batch.discount * next_q  # [S, B]
        error = target.unsqueeze(1) - self.critic(batch.obs, batch.action)  # [S, N, B]
        critic_loss = self.descend("critic", losses.squared(error))
        with torch.no_grad():
            value = self.critic(batch.obs, self.sample(batch.obs, noise["action"])).amin(1)  # [S, B]
            advantage = self.critic(batch.obs, batch.action).amin(1) - value
        log_prob = self.actor(batch.obs).log_prob(batch.action)  # [S, B]
        # paper, equation 13, without the normalising constant
        actor_loss = self.descend("actor", losses.awr(log_prob, advantage, self.config.temperature))
        soft_update(self.target, self.critic, self.config.tau)
        return dict(
            critic_loss=critic_loss, actor_loss=actor_loss, value=value.mean(-1), advantage=advantage.mean(-1)
        )  # fmt: skip

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """The policy's actions, from standard normal noise ``[S, B, A]``."""
        return (self.actor.mean(obs) + self.actor.std() * noise).clamp(-1, 1)

    def draw(self, batch_size: int) -> Noise:
        rng, shape = self.rng, (batch_size, self.spec.action_dim)
        return dict(action=rng.normal(shape), next_action=rng.normal(shape))

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        return self.to_env(self.actor.act(obs, self.exploring(obs) if explore else None))

    def log_prob(self, obs: Tensor, action: Tensor, explore: bool = False) -> Tensor:
        return self.clipped_normal(action, self.actor.mean(obs), self.actor.std())
