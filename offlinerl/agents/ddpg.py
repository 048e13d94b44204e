"""DDPG: Deep Deterministic Policy Gradient (Lillicrap et al., ICLR 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from offlinerl.agents.td3 import TD3
from offlinerl.nn.layers import uniform
from offlinerl.types import Spec


class DDPG(TD3):
    """TD3 with one critic, no delay, no smoothing and the paper's noise and last layers; without the paper's batch
    normalisation and weight decay, which later implementations leave out too.

    Args:
        exploration: "ou" as in the paper, "gaussian" or "parameter".
        sigma: of it, in units of half the action's range.

    The others are TD3's.
    """

    last_init = staticmethod(partial(uniform, bound=3e-3))

    def __init__(
        self,
        spec: Spec,
        seeds: Sequence[int] = (0,),
        *,
        gamma: float = 0.99,
        n_step: int = 1,
        tau: float = 0.001,
        actor_lr: float = 1e-4,
        critic_lr: float = 1e-3,
        hidden: Sequence[int] = (400, 300),
        exploration: str = "ou",
        sigma: float = 0.2,
        layer_norm: bool = False,
    ):
        super().__init__(
            spec, seeds, gamma=gamma, n_step=n_step, tau=tau, actor_lr=actor_lr, critic_lr=critic_lr, hidden=hidden,
            critics=1, policy_delay=1, target_noise=0.0, exploration=exploration, sigma=sigma, layer_norm=layer_norm,
        )  # fmt: skip
