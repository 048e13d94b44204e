"""Cal-QL: Calibrated Q-Learning, offline RL pre-training for efficient online fine-tuning (Nakamoto, Zhai, Singh,
Mark, Ma, Finn, Kumar & Levine, NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from offlinerl.agents.base import Noise, setting
from offlinerl.agents.cql import CQL, CQLConfig
from offlinerl.types import Batch, Metrics


@dataclass(frozen=True)
class CalQLConfig(CQLConfig):
    gamma: float = setting(0.99, "discount factor per step", low=0, below=1)
    infinite_horizon: bool = setting(
        False, "in returns to go, the last reward of a truncated episode repeats forever, instead of nothing after it"
    )
    actor_lr: float = setting(1e-4, "Adam's learning rate of the actor and the temperature", above=0, per_seed=True)


class CalQL(CQL):
    """CQL whose values of the policy's actions are not pushed below the return of the data (paper, equation 5.1). They
    stay on the scale of real returns, so that fine-tuning does not begin by unlearning the policy: values that are far
    too low let anything that is tried online seem better.

    As in the authors' code, the target takes the best of several actions.
    """

    config_class = CalQLConfig

    @property
    def returns_to_go(self) -> str:
        return "infinite" if self.config.infinite_horizon else "finite"

    def update_critic(self, batch: Batch, noise: Noise, alpha: Tensor) -> Metrics:
        known = batch.to_go.isfinite()
        to_go = torch.where(known, batch.to_go, 0).sum(-1) / known.sum(-1).clamp(min=1)  # [S]
        return super().update_critic(batch, noise, alpha) | dict(to_go=to_go)

    def next_value(self, batch: Batch, noise: Noise) -> Tensor:
        actions, _ = self.actor(batch.next_obs, noise["next_action"])  # [S, B, samples, A]
        return self.target_critic.of_many(batch.next_obs, actions).amin(1).amax(-1)

    def sampled_values(self, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        q, log_density = super().sampled_values(batch, noise)  # [S, N, B, 3 samples]
        of_uniform, of_policy = q.tensor_split([self.config.samples], -1)
        of_policy = torch.maximum(of_policy, batch.to_go[:, None, :, None])
        return torch.cat([of_uniform, of_policy], -1), log_density

    def draw(self, batch_size: int) -> Noise:
        shape = (batch_size, self.config.samples, self.spec.action_dim)
        return super().draw(batch_size) | dict(next_action=self.rng.normal(shape))
