"""Adroit's pen, whose episodes end as D4RL's do."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from offlinerl.envs import robotics

ENV_ID = "offlinerl/AdroitHandPen-v0"

DROPPED = 0.075
"""Height in m below which the pen has been dropped."""


def register() -> None:
    """Registers ``offlinerl/AdroitHandPen-v0`` with Gymnasium. The simulator is loaded when one is first made."""
    if ENV_ID not in gym.registry:
        gym.register(ENV_ID, entry_point=f"{__name__}:Pen", max_episode_steps=100)


class Pen(gym.Wrapper):
    """``AdroitHandPen-v1`` of Gymnasium-Robotics, except that an episode terminates when the pen is dropped. Each
    further step would cost 5.

    Args:
        kwargs: of ``AdroitHandPen-v1``.

    Source: Rajeswaran et al., Learning Complex Dexterous Manipulation, 2018; Fu et al., D4RL, 2020.
    """

    def __init__(self, **kwargs: Any):
        robotics.load()
        super().__init__(gym.make("AdroitHandPen-v1", disable_env_checker=True, **kwargs).unwrapped)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        hand: Any = self.unwrapped
        dropped = bool(hand.data.xpos[hand.obj_body_id].ravel()[2] < DROPPED)
        return obs, reward, terminated or dropped, truncated, info
