"""SAC: Soft Actor-Critic with a learned temperature (Haarnoja et al., 2018, arXiv 1812.05905)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offlinerl.agents.base import Agent, Config, Noise, setting
from offlinerl.learning import densities, losses
from offlinerl.nn.actors import SquashedGaussianActor
from offlinerl.nn.critics import Critic
from offlinerl.nn.layers import soft_update, uniform
from offlinerl.types import Batch, Metrics


class Temperature(nn.Module):
    """alpha, the weight of the entropy in units of reward, one per seed: ``[S, 1]``."""

    def __init__(self, seeds: int, start: float):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full((seeds, 1), start).log())

    def forward(self) -> Tensor:
        return self.log_alpha.exp()


@dataclass(frozen=True)
class SACConfig(Config):
    gamma: float = setting(0.99, "discount factor per step", low=0, high=1, per_seed=True)
    n_step: int = setting(1, "number of steps in the n-step return", low=1)
    tau: float = setting(0.005, "update rate of the target critics", above=0, high=1, per_seed=True)
    lr: float = setting(3e-4, "Adam's learning rate", above=0, per_seed=True)
    hidden: tuple[int, ...] = setting((256, 256), "sizes of the hidden layers of every network")
    critics: int = setting(2, "number of critics; the targets take their minimum", low=1)
    alpha: float = setting(1.0, "initial temperature", above=0)
    learn_alpha: bool = setting(
        True, "adapt the temperature until the policy's entropy is target_entropy (paper, section 5)"
    )
    target_entropy: float | None = setting(
        None, "target of the policy's entropy, in nats; null: minus the number of action dimensions"
    )


class SAC(Agent):
    """Maximum-entropy actor-critic (paper, algorithm 1)."""

    config_class = SACConfig

    def build(self) -> None:
        config, A = self.config, self.spec.action_dim
        self.target_entropy = -float(A) if config.target_entropy is None else config.target_entropy
        self.critic = Critic(self.encoder("critic"), A, config.hidden, self.init_rng("critic"), config.critics, uniform)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor = SquashedGaussianActor(self.encoder("actor"), A, config.hidden, self.init_rng("actor"))
        self.temperature = Temperature(len(self.seeds), config.alpha)

    def configure_optimizers(self):
        return self.adam(self.config.lr, critic=self.critic, actor=self.actor, temperature=self.temperature)

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        alpha = self.temperature().detach()  # [S, 1]
        metrics = self.update_critic(batch, noise, alpha)
        action, log_prob = self.actor(batch.obs, noise["action"])
        q = self.critic(batch.obs, action).amin(1)  # [S, B]
        metrics["actor_loss"] = self.descend("actor", alpha * log_prob - q)
        log_prob = log_prob.detach()
        if self.config.learn_alpha:
            self.descend("temperature", -self.temperature.log_alpha * (log_prob + self.target_entropy))
        soft_update(self.target_critic, self.critic, self.config.tau)
        return metrics | dict(alpha=alpha.squeeze(-1), entropy=-log_prob.mean(-1))

    def update_critic(self, batch: Batch, noise: Noise, alpha: Tensor) -> Metrics:
        with torch.no_grad():
            action, log_prob = self.actor(batch.next_obs, noise["next_action"])
            next_value = self.target_critic(batch.next_obs, action).amin(1) - alpha * log_prob  # [S, B]
        return self.regress(batch, batch.reward + batch.discount * next_value)

    def regress(self, batch: Batch, target: Tensor) -> Metrics:
        """One gradient step of the critics towards the target ``[S, B]``."""
        error = target.unsqueeze(1) - (q := self.critic(batch.obs, batch.action))  # [S, N, B]
        loss = self.weighted(batch, 0.5 * losses.squared(error))
        priority = error.detach().abs().mean(1)  # [S, B]
        return dict(critic_loss=self.descend("critic", loss), q=q.detach().mean((1, 2)), priority=priority)

    def draw(self, batch_size: int) -> Noise:
        rng, shape = self.rng, (batch_size, self.spec.action_dim)
        return dict(action=rng.normal(shape), next_action=rng.normal(shape))

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        mean, std = self.actor.mean_and_std(obs)
        if explore:
            mean = mean + std * self.exploring(obs).normal(mean.shape[2:]).to(mean.device)
        return self.to_env(torch.tanh(mean))

    def log_prob(self, obs: Tensor, action: Tensor, explore: bool = False) -> Tensor:
        return densities.squashed_normal(action, *self.actor.mean_and_std(obs), *self.bounds)
