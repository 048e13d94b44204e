"""AntMaze: D4RL's ant in D4RL's mazes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from offlinerl.envs.ant import Ant, model
from offlinerl.envs.mazes import CELL, MAZES, Maze

GOAL_RADIUS = 0.5
"""Distance in m between the torso and the goal within which the goal is reached."""


def world(maze: Maze) -> str:
    """MJCF of the walls, 2 m high, and of the mark at the goal."""
    walls = [
        '<geom type="box" size="2 2 1" pos="{} {} 1" contype="1" conaffinity="1" rgba=".35 .42 .52 1"/>'.format(
            *maze.centre(cell)
        )
        for cell in maze.cells("#")
    ]
    # Away from the world's origin, because MuJoCo ignores later changes to the position of a site that is there.
    goal = f'<site name="goal" type="cylinder" size="{GOAL_RADIUS} .01" pos="1 1 0" rgba=".1 .6 .3 1"/>'
    return "\n".join([*walls, goal])


class AntMaze(Ant):
    """D4RL's ant in a maze, on its way to a goal that it does not observe.

    The observation is a float32 vector of 29: the positions of the joints (15: the torso's x, y and z in m, its
    quaternion, 8 angles in rad) and their velocities (14; m/s, rad/s). An action is the torque of every motor in units
    of 30, ``[8]`` in [-1, 1], held for 0.1 s; values beyond the bounds are clipped.

    An episode starts at the cell ``r``. Its goal is the centre of the cell ``g`` + U(0, 1) + U(0, 0.5) m in x and in y.
    A step after which the torso is within 0.5 m of the goal has a reward of 1 and terminates the episode; all others
    have a reward of 0. ``info["success"]`` says whether it was such a step. As registered, episodes are truncated after
    700 steps in the umaze and after 1000 in the others.

    Args:
        maze: "umaze", "medium" or "large".
        starts: None, or rows and columns of the cells to start in, at the centre of one of them + U(0, 1) m in x and y.
        goals: rows and columns of the cells that the goal's is drawn from, instead of ``g``.
        goal_seed: None draws a new goal in every episode, as D4RL's v2 does. A number draws one goal from it for all
            episodes; in D4RL's v0 every environment has one goal.
        continuing_task: whether the episode continues at the goal, as in the collection of data.
        render_mode: None, "human", "rgb_array" or "depth_array".

    Raises:
        ValueError: there is no such maze.

    Source: Fu et al., D4RL, 2020 (arXiv 2004.07219), and its code.
    """

    def __init__(
        self,
        maze: str = "umaze",
        starts: Sequence[tuple[int, int]] | None = None,
        goals: Sequence[tuple[int, int]] | None = None,
        goal_seed: int | None = None,
        continuing_task: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if maze not in MAZES:
            raise ValueError(f"there is no maze {maze!r}; known: {', '.join(MAZES)}")
        self.maze, self.continuing_task = MAZES[maze], continuing_task
        self.starts, self.goals = starts, goals or self.maze.cells("g")
        shape = np.array([len(self.maze.rows[0]), len(self.maze.rows)])
        corners = self.maze.centre((0, 0)), self.maze.centre((shape[1] - 1, shape[0] - 1))
        camera = dict(
            lookat=np.append(np.mean(corners, 0), 0), distance=1.3 * CELL * shape.max(), elevation=-90.0, azimuth=90.0
        )
        super().__init__(model(world(self.maze)), camera, render_mode)
        self._one_goal = None if goal_seed is None else self.draw_goal(np.random.default_rng(goal_seed))

    @property
    def maze_walls(self) -> tuple[np.ndarray, float]:
        """The centres of the wall cells, ``[n, 2]``, x and y in m, and the width of a cell."""
        return np.array([self.maze.centre(cell) for cell in self.maze.cells("#")]), CELL

    def draw_goal(self, rng: np.random.Generator) -> np.ndarray:
        """The goal of an episode, x and y in m."""
        return self._draw_from(self.goals, rng) + rng.uniform(0, 0.5, 2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode. The seed determines everything in it except the actions."""
        super().reset(seed=seed)
        self.goal = self.draw_goal(self.np_random) if self._one_goal is None else self._one_goal
        self.model.site("goal").pos[:2] = self.goal
        self.stand(self._draw_from(self.starts, self.np_random) if self.starts else None)
        return self._observation(), {"success": self._reached()}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Holds the torques for 0.1 s."""
        self.move(action)
        success = self._reached()
        return self._observation(), float(success), success and not self.continuing_task, False, {"success": success}

    def _draw_from(self, cells: Sequence[tuple[int, int]], rng: np.random.Generator) -> np.ndarray:
        return self.maze.centre(cells[rng.integers(len(cells))]) + rng.uniform(0, 1, 2)

    def _reached(self) -> bool:
        return bool(np.linalg.norm(self.data.qpos[:2] - self.goal) <= GOAL_RADIUS)

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel], dtype=np.float32)
