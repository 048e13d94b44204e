"""CQL: Conservative Q-Learning for offline reinforcement learning (Kumar, Zhou, Tucker & Levine, NeurIPS 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from offlinerl.agents.base import Noise, fixed, setting
from offlinerl.agents.sac import SAC, SACConfig
from offlinerl.learning import losses
from offlinerl.learning.seeds import per_seed
from offlinerl.types import Batch, Metrics


@dataclass(frozen=True)
class CQLConfig(SACConfig):
    lr: float = setting(3e-4, "Adam's learning rate of the critics", above=0, per_seed=True)
    actor_lr: float = setting(3e-5, "Adam's learning rate of the actor and the temperature", above=0, per_seed=True)
    cql_alpha: float = setting(
        5.0, "weight of the conservative term, as in the authors' code: twice the paper's alpha", low=0, per_seed=True
    )
    samples: int = setting(10, "actions sampled from each of three proposals to estimate the conservative term", low=1)
    n_step: int = fixed(1)


class CQL(SAC):
    """SAC whose critics are also pushed down where they are large and up on the dataset's actions: CQL(H) (paper,
    equation 4), so that they give a lower bound of a policy's value. As in the authors' code, the squared error is not
    halved and the target has no entropy term.
    """

    config_class = CQLConfig

    def configure_optimizers(self):
        rates = dict(critic=self.config.lr, actor=self.config.actor_lr, temperature=self.config.actor_lr)
        return self.adam(rates, critic=self.critic, actor=self.actor, temperature=self.temperature)

    def update_critic(self, batch: Batch, noise: Noise, alpha: Tensor) -> Metrics:
        with torch.no_grad():
            target = batch.reward + batch.discount * self.next_value(batch, noise)  # [S, B]
        q = self.critic(batch.obs, batch.action)  # [S, N, B]
        gap = self.soft_maximum(batch, noise) - q
        loss = losses.squared(target.unsqueeze(1) - q) + per_seed(self.config.cql_alpha, gap) * gap
        return dict(
            critic_loss=self.descend("critic", loss), q=q.detach().mean((1, 2)), gap=gap.detach().mean((1, 2))
        )  # fmt: skip

    def next_value(self, batch: Batch, noise: Noise) -> Tensor:
        """The value of the policy's action in the next state, ``[S, B]``."""
        action, _ = self.actor(batch.next_obs, noise["next_action"])
        return self.target_critic(batch.next_obs, action).amin(1)

    def soft_maximum(self, batch: Batch, noise: Noise) -> Tensor:
        """The soft maximum of Q over all actions, ``[S, N, B]``."""
        q, log_density = self.sampled_values(batch, noise)
        return losses.soft_maximum(q, log_density.unsqueeze(1))

    def sampled_values(self, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        """The values ``[S, N, B, 3 samples]`` of uniform actions, the policy's actions at ``s`` and its actions at the
        next state (paper, appendix F), and the log-densities ``[S, B, 3 samples]`` that these were sampled with."""
        with torch.no_grad():
            action, log_prob = self.actor(batch.obs, noise["sampled"])  # [S, B, samples, A] and [S, B, samples]
            next_action, next_log_prob = self.actor(batch.next_obs, noise["next_sampled"])
            log_uniform = torch.full_like(log_prob, -self.spec.action_dim * math.log(2))
            actions = torch.cat([noise["uniform"], action, next_action], 2)
            log_density = torch.cat([log_uniform, log_prob, next_log_prob], 2)  # [S, B, 3 samples]
        return self.critic.of_many(batch.obs, actions), log_density

    def draw(self, batch_size: int) -> Noise:
        rng, shape = self.rng, (batch_size, self.config.samples, self.spec.action_dim)
        many = dict(sampled=rng.normal(shape), next_sampled=rng.normal(shape), uniform=rng.uniform(-1, 1, shape))
        return super().draw(batch_size) | many
