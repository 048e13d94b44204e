"""IQL: Implicit Q-Learning (Kostrikov, Nair & Levine, ICLR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from offlinerl.agents.xql import XQL
from offlinerl.learning import losses
from offlinerl.types import Spec


class IQL(XQL):
    """XQL's update with an expectile in place of the soft maximum, squared errors and no LayerNorm.

    Args:
        expectile: the expectile V is regressed to, in (0.5, 1).

    The others are XQL's.
    """

    def __init__(
        self,
        spec: Spec,
        seeds: Sequence[int] = (0,),
        *,
        expectile: float = 0.7,
        temperature: float = 3.0,
        gamma: float = 0.99,
        n_step: int = 1,
        tau: float = 0.005,
        lr: float = 3e-4,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        decay_steps: int | None = None,
    ):
        super().__init__(
            spec, seeds, temperature=temperature, gamma=gamma, n_step=n_step, tau=tau, lr=lr, hidden=hidden,
            dropout=dropout, decay_steps=decay_steps, value_layer_norm=False,
        )  # fmt: skip
        self.expectile = expectile

    def value_loss(self, error: Tensor) -> Tensor:
        return losses.expectile(error, self.expectile)

    def critic_loss(self, error: Tensor) -> Tensor:
        return losses.squared(error)
