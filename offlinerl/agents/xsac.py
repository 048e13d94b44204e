"""X-SAC: SAC with Extreme Q-Learning's value (Garg, Hejna, Geist & Ermon, ICLR 2023, section 5.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from offlinerl.agents.base import Noise, setting
from offlinerl.agents.sac import SAC, SACConfig
from offlinerl.learning import losses
from offlinerl.nn.critics import Value
from offlinerl.nn.layers import uniform
from offlinerl.types import Batch, Metrics


@dataclass(frozen=True)
class XSACConfig(SACConfig):
    beta: float = setting(
        2.0, "temperature of the Gumbel regression, in units of reward (paper, table 7)", above=0, per_seed=True
    )
    clip: float = setting(8.0, "upper bound of (Q - V) / beta in the Gumbel loss", above=0, per_seed=True)


class XSAC(SAC):
    """SAC whose critics bootstrap from a soft value ``V = beta log E_pi[exp(Q / beta)]``, fitted by Gumbel regression
    on actions sampled from the policy, instead of from a sampled value."""

    config_class = XSACConfig

    def build(self) -> None:
        super().build()
        self.value = Value(self.encoder("value"), self.config.hidden, self.init_rng("value"), init=uniform)

    def configure_optimizers(self):
        return self.adam(
            self.config.lr, value=self.value, critic=self.critic, actor=self.actor, temperature=self.temperature
        )

    def update_critic(self, batch: Batch, noise: Noise, alpha: Tensor) -> Metrics:
        with torch.no_grad():
            action, _ = self.actor(batch.obs, noise["next_action"])
            q = self.target_critic(batch.obs, action).amin(1)  # [S, B]
        error = q - self.value(batch.obs)
        loss = losses.gumbel(error, self.config.beta, self.config.clip, self.largest_of_all)
        value_loss = self.descend("value", loss)
        with torch.no_grad():
            target = batch.reward + batch.discount * self.value(batch.next_obs)  # [S, B]
        return dict(self.regress(batch, target), value_loss=value_loss)
