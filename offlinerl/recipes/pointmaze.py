"""A point that is driven through Gymnasium-Robotics' PointMaze."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from offlinerl.envs.antmaze import Maze
from offlinerl.learning.rng import EnvStreams
from offlinerl.recipes.antmaze import next_cells
from offlinerl.rollout.policy import Policy
from offlinerl.util.trees import Tree

P_GAIN, D_GAIN = 10.0, 1.0
"""Of D4RL's controller: force per m of error, and per m/s of velocity."""


class Controller(Policy):
    """Drives points to the goals that they observe.

    The waypoint is the centre of the next cell of a shortest path, or the goal in its own cell. The action is
    P (waypoint - position) - D velocity + N(0, noise), clipped to [-1, 1].

    Args:
        envs: E environments ``PointMaze``, wrapped or not, that observe ``[observation, desired_goal]``.
        streams: of one seed, where the noise is drawn from.
        noise: deviation; D4RL's data has 0.5.

    Source: Fu et al., D4RL, 2020, and its ``waypoint_controller.py``.
    """

    def __init__(self, envs: Sequence[gym.Env], streams: EnvStreams, noise: float = 0.5) -> None:
        self.mazes = [env.unwrapped.maze for env in envs]
        self.cells = [maze_of(maze.maze_map) for maze in self.mazes]
        self.seeds, self.streams, self.noise = streams.seeds, streams, noise

    def begin(self, where: np.ndarray, episodes: np.ndarray) -> None:
        self.streams.begin(where, episodes)

    def act(self, obs: Tree, explore: bool = False) -> Tensor:
        position, velocity, goal = obs[..., :2], obs[..., 2:4], obs[..., 4:6]  # [1, E, 2]
        waypoint = np.float32([self.waypoint(e, position[0, e], goal[0, e]) for e in range(len(self.mazes))])
        force = P_GAIN * (torch.from_numpy(waypoint) - position) - D_GAIN * velocity
        return (force + self.noise * self.streams.normal((2,))).clamp(-1, 1)

    def waypoint(self, e: int, position: Tensor, goal: Tensor) -> np.ndarray:
        """Where the point of an environment is to go next, x and y in m."""
        maze = self.mazes[e]
        here, target = (tuple(map(int, maze.cell_xy_to_rowcol(xy.double().numpy()))) for xy in (position, goal))
        following = next_cells(self.cells[e], target).get(here, target)
        return goal.numpy() if here == target else maze.cell_rowcol_to_xy(np.array(following))


def maze_of(maze_map: Sequence[Sequence[int | str]]) -> Maze:
    """The cells of a map of Gymnasium-Robotics, whose walls are 1."""
    return Maze(tuple("".join("#" if cell == 1 else "." for cell in row) for row in maze_map))
