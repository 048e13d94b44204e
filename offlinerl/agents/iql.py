"""IQL: Implicit Q-Learning (Kostrikov, Nair & Levine, ICLR 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from offlinerl.agents.base import fixed, setting
from offlinerl.agents.xql import XQL, XQLConfig
from offlinerl.learning import losses


@dataclass(frozen=True)
class IQLConfig(XQLConfig):
    beta: None = fixed(None)
    clip: None = fixed(None)
    huber: None = fixed(None)
    expectile: float = setting(0.7, "expectile to which V is regressed", above=0, below=1, per_seed=True)
    temperature: float = 3.0
    value_layer_norm: bool = False


class IQL(XQL):
    """XQL's update with expectile regression in place of Gumbel regression, squared errors and no LayerNorm."""

    config_class = IQLConfig

    def value_loss(self, error: Tensor) -> Tensor:
        return losses.expectile(error, self.config.expectile)

    def critic_loss(self, error: Tensor) -> Tensor:
        return losses.squared(error)
