"""X-SAC: SAC with Extreme Q-Learning's value (Garg, Hejna, Geist & Ermon, ICLR 2023, section 5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from offlinerl.agents.base import Noise
from offlinerl.agents.sac import SAC
from offlinerl.learning import losses
from offlinerl.nn.critics import Value
from offlinerl.nn.layers import uniform
from offlinerl.types import Batch, Metrics, Spec


class XSAC(SAC):
    """SAC whose critics bootstrap from a soft value that Gumbel regression fits on the policy's own actions,
    ``V = beta log E_pi[exp(Q / beta)]``, instead of from a sampled one.

    Args:
        beta: temperature of the Gumbel regression, in units of reward (paper, table 7).
        clip: upper bound of ``(Q - V) / beta`` in it.

    The others are SAC's.
    """

    def __init__(
        self,
        spec: Spec,
        seeds: Sequence[int] = (0,),
        *,
        beta: float = 2.0,
        clip: float = 8.0,
        hidden: Sequence[int] = (256, 256),
        **settings: Any,
    ):
        super().__init__(spec, seeds, hidden=hidden, **settings)
        self.beta, self.clip = beta, clip
        self.value = Value(self.encoder("value"), hidden, self.init_rng("value"), init=uniform)

    def configure_optimizers(self):
        return self.adam(self.lr, value=self.value, critic=self.critic, actor=self.actor, temperature=self.temperature)

    def update_critic(self, batch: Batch, noise: Noise, alpha: Tensor) -> Metrics:
        with torch.no_grad():
            action, _ = self.actor(batch.obs, noise["next_action"])
            q = self.target_critic(batch.obs, action).amin(1)  # [S, B]
        value_loss = self.descend("value", losses.gumbel(q - self.value(batch.obs), self.beta, self.clip))
        with torch.no_grad():
            target = batch.reward + batch.discount * self.value(batch.next_obs)  # [S, B]
        return dict(self.regress(batch, target), value_loss=value_loss)
