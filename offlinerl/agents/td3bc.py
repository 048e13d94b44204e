"""TD3+BC: a minimalist approach to offline reinforcement learning (Fujimoto & Gu, NeurIPS 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from offlinerl.agents.base import setting
from offlinerl.agents.td3 import TD3, TD3Config
from offlinerl.learning import losses
from offlinerl.types import Batch


@dataclass(frozen=True)
class TD3BCConfig(TD3Config):
    alpha: float = setting(2.5, "weight of the Q-value relative to the behaviour cloning term", above=0, per_seed=True)


class TD3BC(TD3):
    """TD3 with a behaviour-cloning term in the actor's loss. The action values are scaled so that their mean absolute
    value is alpha in every batch, which makes the loss independent of the rewards' scale (paper, equations 3 and 5).
    """

    config_class = TD3BCConfig

    def actor_loss(self, batch: Batch) -> Tensor:
        action = self.actor(batch.obs)  # [S, B, A]
        q = self.action_value(batch.obs, action)  # [S, B]
        scale = self.config.alpha / self.mean_of_all(q.detach().abs().mean(-1, keepdim=True))  # [S, 1]
        return losses.squared(action - batch.action).mean(-1) - scale * q
