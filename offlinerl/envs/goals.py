"""Environments with goals, as agents that learn to reach any goal see them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np

from offlinerl.envs import spaces
from offlinerl.util.errors import UserError

ACHIEVED, DESIRED = "achieved_goal", "desired_goal"
"""The parts of the observations of Gymnasium-Robotics' ``GoalEnv`` that say what is reached and what should be."""


def goal_of(env: gym.Env, info: dict[str, Any]) -> np.ndarray | None:
    """The goal of the episode that a ``reset`` with this ``info`` began, ``[G]`` float32: ``info["goal"]``, as in
    OGBench, else the attribute ``goal``, as in our AntMaze. None if there is neither, or it is not made of numbers."""
    goal = info.get("goal", getattr(env.unwrapped, "goal", None))
    with suppress(TypeError, ValueError):
        return None if goal is None else np.asarray(goal, np.float32).ravel()
    return None


def tells_success(env: gym.Env) -> bool:
    """Whether the ``info`` of a step says if it succeeded. This resets the environment and steps it once."""
    env.reset(seed=0)
    env.action_space.seed(0)
    return bool({"success", "is_success"} & {*env.step(env.action_space.sample())[4]})


def shows_goal(env: gym.Env) -> bool:
    """Whether a ``GoalSeen`` already adds the goal to the observations."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, GoalSeen):
            return True
        env = env.env
    return False


class GoalSeen(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """An environment whose observations end with the goal of the episode, which they do not have by themselves; see
    ``goal_of``.

    Args:
        env: its observations are vectors ``[O]``; with the goal they are ``[O + G]`` float32.
        size: G.

    Raises:
        UserError: the observations are not vectors, or a goal is missing or has another size.
    """

    def __init__(self, env: gym.Env, size: int):
        gym.utils.RecordConstructorArgs.__init__(self, size=size)
        gym.Wrapper.__init__(self, env)
        self.size, self.goal = size, np.zeros(size, np.float32)
        space = env.observation_space
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise UserError(f"{spaces.name_of(env)} observes {space}, and goals can be added only to vectors")
        beyond = np.full(size, np.inf, np.float32)
        low, high = np.append(space.low, -beyond), np.append(space.high, beyond)
        self.observation_space = gym.spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode, which has one goal."""
        observation, info = self.env.reset(**kwargs)
        goal = goal_of(self.env, info)
        if goal is None or len(goal) != self.size:
            have = "no goal" if goal is None else f"a goal of {len(goal)} numbers"
            raise UserError(f"{spaces.name_of(self.env)} has {have}, but a policy here needs one of {self.size}")
        self.goal = goal
        return self._with_goal(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        observation, *rest = self.env.step(action)
        return self._with_goal(observation), *rest

    def _with_goal(self, observation: np.ndarray) -> np.ndarray:
        return np.concatenate([observation, self.goal], dtype=np.float32)
