"""X-TD3: TD3 with Extreme Q-Learning's loss (Garg, Hejna, Geist & Ermon, ICLR 2023, section 5.3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from offlinerl.agents.base import setting
from offlinerl.agents.td3 import TD3, TD3Config
from offlinerl.learning import losses


@dataclass(frozen=True)
class XTD3Config(TD3Config):
    beta: float = setting(
        5.0, "temperature of the Gumbel regression, in units of reward (paper, table 7)", above=0, per_seed=True
    )
    clip: float = setting(8.0, "upper bound of (target - Q) / beta in the Gumbel loss", above=0, per_seed=True)


class XTD3(TD3):
    """TD3 whose critics are trained with the Gumbel loss, so that they regress to the soft maximum of their noisy
    targets instead of the mean."""

    config_class = XTD3Config

    def critic_loss(self, error: Tensor) -> Tensor:
        return losses.gumbel(error, self.config.beta, self.config.clip, self.largest_of_all)
