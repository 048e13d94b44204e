"""X-TD3: TD3 with Extreme Q-Learning's loss (Garg, Hejna, Geist & Ermon, ICLR 2023, section 5.3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from offlinerl import losses
from offlinerl.agents.td3 import TD3
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
        gamma: float = 0.99,
        n_step: int = 1,
        tau: float = 0.005,
        actor_lr: float = 3e-4,
        critic_lr: float = 3e-4,
        hidden: Sequence[int] = (256, 256),
        critics: int = 2,
        policy_delay: int = 2,
        target_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        exploration: str = "gaussian",
        sigma: float = 0.1,
        layer_norm: bool = False,
    ):
        super().__init__(
            spec, seeds, gamma=gamma, n_step=n_step, tau=tau, actor_lr=actor_lr, critic_lr=critic_lr, hidden=hidden,
            critics=critics, policy_delay=policy_delay, target_noise=target_noise,
            target_noise_clip=target_noise_clip, exploration=exploration, sigma=sigma, layer_norm=layer_norm,
        )  # fmt: skip
        self.beta, self.clip = beta, clip

    def critic_loss(self, error: Tensor) -> Tensor:
        return losses.gumbel(error, self.beta, self.clip)
