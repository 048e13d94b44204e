"""Maze2D: D4RL's point in D4RL's mazes."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from offlinerl.envs.mazes import MAZES
from offlinerl.envs.simulation import Simulation

GOALS = dict(umaze=(1, 1), medium=(6, 6), large=(7, 9))
"""Row and column of each maze's goal."""

RADIUS = 0.5
"""Distance to the goal within which a step has the sparse reward."""

FASTEST = 5.0
"""Bound of the velocities in x and y at the beginning of a step."""

NOISE = 0.1
"""Half-width of the uniform noise on initial positions, and standard deviation of the Gaussian noise on velocities."""

OFFSET = 0.2
"""A cell's row and column minus the x and y of its centre: where D4RL places the point's origin."""

MODEL = """
<mujoco model="maze2d">
  <option timestep="0.01" gravity="0 0 0" iterations="20"/>
  <default>
    <joint type="slide" damping="1"/>
    <geom friction=".5 .1 .1" density="1000" margin=".002" condim="1"/>
  </default>
  <visual>
    <headlight ambient=".6 .6 .6" diffuse=".4 .4 .4" specular="0 0 0"/>
  </visual>
  <asset>
    <texture type="skybox" builtin="flat" rgb1="1 1 1" width="8" height="8"/>
  </asset>
  <worldbody>
    <geom type="plane" size="40 40 .25" pos="0 0 -.1" contype="0" conaffinity="0" rgba=".9 .91 .92 1"/>
    <body name="point">
      <joint name="x" axis="1 0 0"/>
      <joint name="y" axis="0 1 0"/>
      <geom size=".1" rgba=".8 .5 .2 1"/>
    </body>
    <site type="cylinder" size="{radius} .01" pos="{goal[0]} {goal[1]} -.09" rgba=".1 .6 .3 1"/>{walls}
  </worldbody>
  <actuator>
    <motor joint="x" ctrllimited="true" ctrlrange="-1 1" gear="100"/>
    <motor joint="y" ctrllimited="true" ctrlrange="-1 1" gear="100"/>
  </actuator>
</mujoco>
"""

WALL = '\n    <geom type="box" size=".5 .5 .2" pos="{} {} 0" rgba=".35 .42 .52 1"/>'


class Maze2D(Simulation):
    """A point that is pushed through a maze, to stay at a goal that it does not observe.

    The observation is a float32 vector of 4: x and y in m, of which x grows with the row and y with the column, and
    their velocities in m/s, which are clipped to +-5 before every step. An action is the force in x and y in units of
    100 N, ``[2]`` in [-1, 1], held for 0.01 s; values beyond the bounds are clipped.

    An episode starts at the row and column of a free cell + U(-0.1, 0.1) m, and has no terminal state. The goal is at
    the row and column of its cell; ``info["success"]`` says whether the point is within 0.5 m of it. As registered,
    episodes are truncated after 300 steps in the umaze, 600 in the medium and 800 in the large maze.

    Args:
        maze: "umaze", "medium" or "large".
        dense: whether the reward is exp(-distance to the goal) instead of 1 within 0.5 m of it and 0 elsewhere.
        render_mode: None, "human", "rgb_array" or "depth_array".

    Raises:
        ValueError: there is no such maze.

    Source: Fu et al., D4RL, 2020 (arXiv 2004.07219), and its code.
    """

    def __init__(self, maze: str = "umaze", dense: bool = False, render_mode: str | None = None) -> None:
        if maze not in GOALS:
            raise ValueError(f"there is no maze {maze!r}; known: {', '.join(GOALS)}")
        self.maze, self.dense, self.goal = MAZES[maze], dense, np.array(GOALS[maze], float)
        centres, _ = self.maze_walls
        middle, width = (centres.max(0) + centres.min(0)) / 2, np.ptp(centres, 0).max() + 1
        camera = dict(lookat=np.append(middle, 0), distance=1.3 * width, elevation=-90.0, azimuth=90.0)
        model = MODEL.format(radius=RADIUS, goal=self.goal, walls="".join(WALL.format(*centre) for centre in centres))
        super().__init__(mujoco.MjModel.from_xml_string(model), 1, 4, camera, render_mode)

    @property
    def maze_walls(self) -> tuple[np.ndarray, float]:
        """The centres of the wall cells, ``[n, 2]``, x and y in m, and the width of a cell."""
        return np.array(self.maze.cells("#")) - OFFSET, 1.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode. The seed determines everything in it except the actions."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        cell = self.maze.free[self.np_random.integers(len(self.maze.free))]
        self.data.qpos[:] = cell + self.np_random.uniform(-NOISE, NOISE, 2)
        self.data.qvel[:] = NOISE * self.np_random.standard_normal(2)
        mujoco.mj_forward(self.model, self.data)
        return self._observation(), {"success": self._distance() <= RADIUS}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Pushes for 0.01 s."""
        self.data.qvel[:] = np.clip(self.data.qvel, -FASTEST, FASTEST)
        self.move(action)
        distance = self._distance()
        reward = np.exp(-distance) if self.dense else distance <= RADIUS
        return self._observation(), float(reward), False, False, {"success": distance <= RADIUS}

    def _distance(self) -> float:
        return float(np.linalg.norm(self.data.qpos - self.goal))

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel], dtype=np.float32)
