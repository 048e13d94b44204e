"""D4RL's Franka Kitchen, on the simulator of gymnasium-robotics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from offlinerl.envs import robotics

ENV_ID = "offlinerl/Kitchen-v0"
MAX_EPISODE_STEPS = 280
TASKS = ("microwave", "kettle", "light switch", "slide cabinet")
"""The four tasks of D4RL's kitchen-complete and kitchen-partial."""


def register() -> None:
    """Registers ``offlinerl/Kitchen-v0`` with Gymnasium. The simulator is loaded when one is first made."""
    if ENV_ID not in gym.registry:
        gym.register(ENV_ID, entry_point=f"{__name__}:Kitchen", max_episode_steps=MAX_EPISODE_STEPS)


OBJECT_NOISE = np.array([5e-3] * 2 + [5e-4] * 6 + [5e-3] * 3 + [0.1] * 3 + [5e-3] * 3 + [0.1] * 3 + [5e-3])
"""Amplitude of the sensor noise on the 21 positions of the objects' joints, as configured in D4RL."""


class Kitchen(gym.Env[np.ndarray, np.ndarray]):
    """A Franka arm with household objects to bring into place, with D4RL's observations and rewards.

    The observation is a float32 vector of 60: the robot's 9 joint positions (rad; the last two, the fingers, in m), the
    21 positions of the objects' joints, and the goal for these 30, which is constant, and zero where no task sets one.
    An action is 9 joint velocities in [-1, 1], in units of 2 rad/s (2 m/s for the fingers), held for 0.08 s; values
    beyond the bounds are clipped.

    A task gives a reward of 1 in the step that completes it, and only once; the episode terminates when all are
    complete. ``info`` holds ``completed``, the names of the tasks completed so far in the order of ``tasks``, and
    ``success``, whether these are all of them.

    Args:
        tasks: what to do, among "microwave", "kettle", "light switch", "slide cabinet", "hinge cabinet", "bottom
            burner" and "top burner".
        noise: fraction of the sensors' noise amplitude that is added, uniformly, to the positions of robot and objects;
            0.1 in D4RL's data. The robot's controller starts from the noisy reading, so the noise affects the motion
            too.
        render_mode: None, "human", "rgb_array" or "depth_array".

    Raises:
        ValueError: a task is unknown.

    Source: Gupta et al., Relay Policy Learning, 2019; Fu et al., D4RL, 2020.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 12}

    def __init__(self, tasks: Sequence[str] = TASKS, noise: float = 0.1, render_mode: str | None = None) -> None:
        kitchen_env = robotics.load("gymnasium_robotics.envs.franka_kitchen.kitchen_env")

        self.tasks = tuple(tasks)
        self.noise = noise
        self.render_mode = render_mode
        # The simulator's own object noise is off by one joint: 20 times too much on the kettle's x.
        self.franka = kitchen_env.KitchenEnv(
            list(tasks), robot_noise_ratio=noise, object_noise_ratio=0.0, render_mode=render_mode
        )
        self.goal = np.zeros(30, np.float32)
        for task in tasks:
            self.goal[kitchen_env.OBS_ELEMENT_INDICES[task]] = kitchen_env.OBS_ELEMENT_GOALS[task]
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (60,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (9,), np.float32)

    @property
    def model(self) -> Any:
        """The simulator's ``mujoco.MjModel``."""
        return self.franka.model

    @property
    def data(self) -> Any:
        """The simulator's ``mujoco.MjData``: the true state, without noise."""
        return self.franka.data

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode. The seed determines everything in it except the actions."""
        super().reset(seed=seed)
        observation, _ = self.franka.reset(seed=seed)
        return self._observation(observation), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Holds the nine joint velocities for 0.08 s."""
        observation, reward, terminated, truncated, _ = self.franka.step(action)
        return self._observation(observation), reward, terminated, truncated, self._info()

    def render(self) -> np.ndarray | None:
        """An image ``[480, 480, 3]`` of uint8 (a depth map in "depth_array"), or None if it goes to a screen or
        nowhere."""
        return self.franka.render()

    def close(self) -> None:
        """Releases the renderer."""
        self.franka.close()

    def _observation(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        state = observation["observation"]  # robot qpos 9, qvel 9, objects' qpos 21, qvel 20
        objects = state[18:39] + self.noise * OBJECT_NOISE * self.np_random.uniform(-1, 1, 21)
        return np.concatenate([state[:9], objects, self.goal], dtype=np.float32)

    def _info(self) -> dict[str, Any]:
        done = self.franka.episode_task_completions
        completed = tuple(task for task in self.tasks if task in done)
        return {"completed": completed, "success": len(completed) == len(self.tasks)}
