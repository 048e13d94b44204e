"""Faster steps for environments whose Python takes as long as their simulator, for generating datasets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

from offlinerl.envs import checks

Step = Callable[[np.ndarray], checks.Step]

FASTEST, RADIUS = 5.0, 0.45
"""Of a PointMaze: the bound of velocities at the beginning of a step, and the distance at which the goal is reached."""


def quicken(envs: Sequence[gym.Env]) -> None:
    """Gives environments of one kind a faster ``step``, if their kind is known here; others stay as they are.

    Observations, rewards and ends are the same to the bit, but there are no infos, nothing is rendered, and forces that
    no observation contains are not computed. All share the model of the first one, so that it stays in the cache.

    Args:
        envs: made from the same description, wrapped or not.
    """
    own = [env.unwrapped for env in envs]
    kind = type(own[0])
    steps = QUICK.get(f"{kind.__module__}:{kind.__qualname__}")
    for env in own if steps else ():
        if (step := steps(env, own[0])) is not None:
            env.step = step  # type: ignore[method-assign]


def _half_cheetah(env: Any, first: Any) -> Step | None:
    """For ``HalfCheetah-v5``."""
    if not env._exclude_current_positions_from_observation:
        return None
    model, data, skip, dt = first.model, env.data, env.frame_skip, env.dt
    qpos, qvel, ctrl = data.qpos, data.qvel, data.ctrl  # they show the simulator's memory, which stays where it is
    forwards, cost = env._forward_reward_weight, env._ctrl_cost_weight

    def step(action: np.ndarray) -> checks.Step:
        before = qpos[0]
        ctrl[:] = action
        mujoco.mj_step(model, data, skip)
        reward = forwards * ((qpos[0] - before) / dt) - cost * np.add.reduce(np.square(action))
        return np.concatenate((qpos[1:], qvel)), reward, False, False, {}

    return step


def _point_maze(env: Any, first: Any) -> Step | None:
    """For Gymnasium-Robotics' ``PointMaze`` with sparse rewards, whose episodes end at the goal."""
    if env.continuing_task or env.reward_type != "sparse":
        return None
    model, data = first.point_env.model, env.point_env.data
    qpos, qvel, ctrl = data.qpos, data.qvel, data.ctrl

    def step(action: np.ndarray) -> checks.Step:
        np.minimum(np.maximum(qvel, -FASTEST, out=qvel), FASTEST, out=qvel)
        mujoco.mj_forward(model, data)  # changes where the next step's solver starts, and so its last bits
        ctrl[:] = np.minimum(np.maximum(action, -1), 1)
        mujoco.mj_step(model, data)
        obs = np.concatenate((qpos, qvel))
        offset = obs[:2] - env.goal
        # The distance is computed in two ways there, which may differ in the last bit.
        reward = float(np.sqrt(np.add.reduce(offset * offset)) <= RADIUS)
        terminated = bool(np.sqrt(offset.dot(offset)) <= RADIUS)
        return dict(observation=obs, achieved_goal=obs[:2], desired_goal=env.goal), reward, terminated, False, {}

    return step


QUICK: dict[str, Callable[[Any, Any], Step | None]] = {
    "gymnasium.envs.mujoco.half_cheetah_v5:HalfCheetahEnv": _half_cheetah,
    "gymnasium_robotics.envs.maze.point_maze:PointMazeEnv": _point_maze,
}
"""By the class of an environment, what makes its faster step; None if its settings have none."""
