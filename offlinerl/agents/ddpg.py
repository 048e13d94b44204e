"""DDPG: Deep Deterministic Policy Gradient (Lillicrap et al., ICLR 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from offlinerl.agents.base import fixed
from offlinerl.agents.td3 import TD3, TD3Config
from offlinerl.nn.layers import uniform


@dataclass(frozen=True)
class DDPGConfig(TD3Config):
    tau: float = 0.001
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    hidden: tuple[int, ...] = (400, 300)
    critics: int = fixed(1)
    policy_delay: int = fixed(1)
    target_noise: float = fixed(0.0)
    target_noise_clip: float = fixed(0.0)
    exploration: str = "ou"
    sigma: float = 0.2


class DDPG(TD3):
    """TD3 with one critic, no policy delay, no target smoothing, and the paper's exploration noise and initialisation
    of the last layers; without its batch normalisation and weight decay, which later implementations omit too."""

    config_class = DDPGConfig
    last_init = staticmethod(partial(uniform, bound=3e-3))
