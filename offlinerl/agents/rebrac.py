"""ReBRAC: revisiting the minimalist approach to offline RL (Tarasov, Kurenkov, Nikulin & Kolesnikov, NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from offlinerl.agents.base import Noise, setting
from offlinerl.agents.td3 import TD3, TD3Config
from offlinerl.learning import losses
from offlinerl.types import Batch


@dataclass(frozen=True)
class ReBRACConfig(TD3Config):
    actor_bc: float = setting(
        0.01, "weight of the behaviour cloning penalty in the actor's loss (paper, beta 1)", low=0, per_seed=True
    )
    critic_bc: float = setting(
        0.01, "weight of the penalty on the next actions in the critics' targets (paper, beta 2)", low=0, per_seed=True
    )
    actor_lr: float = 1e-3
    critic_lr: float = 1e-3
    hidden: tuple[int, ...] = (256, 256, 256)


class ReBRAC(TD3):
    """TD3+BC with a behaviour-cloning penalty in the critics' targets too, separate weights for the two penalties,
    LayerNorm in the critics and deeper networks (paper, section 3, equations 1 to 3). ``critic_bc`` is in units of
    reward. Here LayerNorm comes before the activations, and all layers are initialised as in TD3; in the authors' code
    it comes after them, and the last layers are initialised near zero.
    """

    config_class = ReBRACConfig
    critic_layer_norm = True
    next_actions = True

    def next_value(self, batch: Batch, noise: Noise) -> Tensor:
        action = self.next_action(batch, noise)
        far = losses.squared(action - batch.next_action).sum(-1) * (1 - batch.last)  # [S, B]
        return self.target_critic(batch.next_obs, action).amin(1) - self.config.critic_bc * far

    def actor_loss(self, batch: Batch) -> Tensor:
        action = self.actor(batch.obs)  # [S, B, A]
        q = self.critic(batch.obs, action).amin(1)  # [S, B]
        scale = 1 / self.mean_of_all(q.detach().abs().mean(-1, keepdim=True))  # [S, 1]
        return self.config.actor_bc * losses.squared(action - batch.action).sum(-1) - scale * q
