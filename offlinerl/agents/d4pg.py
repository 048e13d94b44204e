"""D4PG: Distributed Distributional Deep Deterministic Policy Gradient (Barth-Maron et al., ICLR 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from offlinerl.agents.base import Noise
from offlinerl.agents.td3 import TD3
from offlinerl.learning import losses
from offlinerl.types import Batch, Metrics, Spec


class D4PG(TD3):
    """DDPG whose critic is a categorical distribution of n-step returns (paper, algorithm 1). Its parallel actors
    are the environments that collect for it, and its prioritised replay is a setting of training.

    Args:
        num_atoms: of the distribution.
        v_min: the lowest return the critic can tell, in units of reward.
        v_max: the highest.

    The others are TD3's.
    """

    def __init__(
        self,
        spec: Spec,
        seeds: Sequence[int] = (0,),
        *,
        num_atoms: int = 51,
        v_min: float = -150.0,
        v_max: float = 150.0,
        gamma: float = 0.99,
        n_step: int = 5,
        tau: float = 0.005,
        actor_lr: float = 1e-4,
        critic_lr: float = 1e-4,
        hidden: Sequence[int] = (256, 256),
        exploration: str = "gaussian",
        sigma: float = 0.3,
        layer_norm: bool = False,
    ):
        if not v_min < v_max:
            raise ValueError(f"v_min {v_min} must be less than v_max {v_max}")
        self.atoms = num_atoms  # before the critic is built
        super().__init__(
            spec, seeds, gamma=gamma, n_step=n_step, tau=tau, actor_lr=actor_lr, critic_lr=critic_lr, hidden=hidden,
            critics=1, policy_delay=1, target_noise=0.0, exploration=exploration, sigma=sigma, layer_norm=layer_norm,
        )  # fmt: skip
        self.register_buffer("support", torch.linspace(v_min, v_max, num_atoms), persistent=False)

    def update_critic(self, batch: Batch, noise: Noise) -> Metrics:
        with torch.no_grad():
            logits = self.target_critic(batch.next_obs, self.next_action(batch, noise))[:, 0]  # [S, B, atoms]
            target = losses.project(logits.softmax(-1), self.support, batch.reward, batch.discount)  # [S, B, atoms]
        logits = self.critic(batch.obs, batch.action)[:, 0]  # [S, B, atoms]
        loss = losses.cross_entropy(logits, target)  # [S, B]
        metrics = dict(critic_loss=self.descend("critic", self.weighted(batch, loss)))
        metrics["q"] = self.expected(logits.detach()).mean(-1)
        if batch.weight is not None:
            metrics["priority"] = loss.detach()
        return metrics

    def action_value(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.expected(self.critic.first(obs, action))

    def expected(self, logits: Tensor) -> Tensor:
        """The mean return, ``[S, B, atoms] -> [S, B]``."""
        return (logits.softmax(-1) * self.support).sum(-1)
