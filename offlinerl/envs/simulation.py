"""MuJoCo models as environments, with their rendering."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer


class Simulation(gym.Env[np.ndarray, np.ndarray]):
    """A MuJoCo model whose motors are driven in [-1, 1], without a task.

    Args:
        model: with A motors.
        frame_skip: simulator steps for which an action is held.
        obs_size: length of the observations.
        camera: attributes of the camera, a ``mujoco.MjvCamera``.
        render_mode: None, "human", "rgb_array" or "depth_array".
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"]}

    def __init__(
        self, model: mujoco.MjModel, frame_skip: int, obs_size: int, camera: Mapping[str, Any], render_mode: str | None
    ) -> None:
        self.model, self.data = model, mujoco.MjData(model)
        self.frame_skip, self.render_mode = frame_skip, render_mode
        self.metadata = {**self.metadata, "render_fps": round(1 / (frame_skip * model.opt.timestep))}
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (obs_size,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (model.nu,), np.float32)
        self._camera = camera
        self._renderer: MujocoRenderer | None = None

    def move(self, action: np.ndarray) -> None:
        """Holds an action ``[A]`` for ``frame_skip`` steps; values beyond the bounds are clipped."""
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data, self.frame_skip)
        if self.render_mode == "human":
            self.render()

    def render(self) -> np.ndarray | None:
        """An image ``[480, 480, 3]`` of uint8 (a depth map in "depth_array"), or None if it goes to a screen or
        nowhere."""
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self.model.vis.global_.offwidth = self.model.vis.global_.offheight = 480
            self._renderer = MujocoRenderer(self.model, self.data, dict(self._camera), 480, 480)
        return self._renderer.render(self.render_mode)

    def close(self) -> None:
        """Releases the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
