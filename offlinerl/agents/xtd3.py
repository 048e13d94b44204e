"""X-TD3: TD3 with Extreme Q-Learning's loss (Garg, Hejna, Geist & Ermon, ICLR 2023, section 5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from offlinerl.agents.td3 import TD3
from offlinerl.learning import losses
from offlinerl.types import Spec


class XTD3(TD3):
    """TD3 whose critics are regressed by the Gumbel loss, to the soft maximum of their noisy targets instead of
    the mean.

    Args:
        beta: temperature of the Gumbel regression, in units of reward (paper, table 7).
        clip: upper bound of ``(target - Q) / beta`` in it.

    The others are TD3's.
    """

    def __init__(
        self,
        spec: Spec,
        seeds: Sequence[int] = (0,),
        *,
        beta: float = 5.0,
        clip: float = 8.0,
        **settings: Any,
    ):
        super().__init__(spec, seeds, **settings)
        self.beta, self.clip = beta, clip

    def critic_loss(self, error: Tensor) -> Tensor:
        return losses.gumbel(error, self.beta, self.clip)
