"""D4PG: Distributed Distributional Deep Deterministic Policy Gradient (Barth-Maron et al., ICLR 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from offlinerl.agents.base import Noise, fixed, setting
from offlinerl.agents.td3 import TD3, TD3Config
from offlinerl.learning import losses
from offlinerl.types import Batch, Metrics
from offlinerl.util.errors import UserError


@dataclass(frozen=True)
class D4PGConfig(TD3Config):
    num_atoms: int = setting(51, "number of atoms of the critic's distribution", low=2)
    v_min: float = setting(-150.0, "lowest return that the critic can represent, in units of reward")
    v_max: float = setting(150.0, "highest return that the critic can represent, in units of reward")
    n_step: int = 5
    actor_lr: float = 1e-4
    critic_lr: float = 1e-4
    critics: int = fixed(1)
    policy_delay: int = fixed(1)
    target_noise: float = fixed(0.0)
    target_noise_clip: float = fixed(0.0)
    sigma: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.v_min < self.v_max:
            raise UserError(f"v_min must be less than v_max, not {self.v_min:g} with {self.v_max:g}")


class D4PG(TD3):
    """DDPG whose critic is a categorical distribution of n-step returns (paper, algorithm 1). The paper's parallel
    actors are the environments that collect data, and its prioritised replay is a training setting."""

    config_class = D4PGConfig

    def build(self) -> None:
        super().build()
        config = self.config
        self.register_buffer("support", torch.linspace(config.v_min, config.v_max, config.num_atoms), persistent=False)

    def update_critic(self, batch: Batch, noise: Noise) -> Metrics:
        with torch.no_grad():
            logits = self.target_critic(batch.next_obs, self.next_action(batch, noise))[:, 0]  # [S, B, atoms]
            target = losses.project(logits.softmax(-1), self.support, batch.reward, batch.discount)  # [S, B, atoms]
        logits = self.critic(batch.obs, batch.action)[:, 0]  # [S, B, atoms]
        loss = losses.cross_entropy(logits, target)  # [S, B]
        critic_loss = self.descend("critic", self.weighted(batch, loss))
        return dict(critic_loss=critic_loss, q=self.expected(logits.detach()).mean(-1), priority=loss.detach())

    def action_value(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.expected(self.critic.first(obs, action))

    def expected(self, logits: Tensor) -> Tensor:
        """The mean return, ``[S, B, atoms] -> [S, B]``."""
        return (logits.softmax(-1) * self.support).sum(-1)
