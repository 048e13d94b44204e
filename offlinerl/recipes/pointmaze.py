"""A controller that drives a point through Gymnasium-Robotics' PointMaze."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from offlinerl.envs.mazes import Maze
from offlinerl.learning.rng import EnvStreams
from offlinerl.recipes.antmaze import next_cells
from offlinerl.rollout.policy import Policy
from offlinerl.util.trees import Tree

P_GAIN, D_GAIN = 10.0, 1.0
"""Gains of D4RL's controller: force per m of position error, and per m/s of velocity."""

DOWNWARDS = np.float32([-1, 1])
"""Rows are counted against y, and columns along x."""


class Controller(Policy):
    """Drives points to the goals that they observe.

    The waypoint is the centre of the next cell on a shortest path, or the goal once in its cell. The action is P
    (waypoint - position) - D velocity + N(0, noise), clipped to [-1, 1].

    Args:
        envs: E ``PointMaze`` environments, wrapped or not, that observe ``[observation, desired_goal]``.
        streams: of one seed, where the noise is drawn from.
        noise: its standard deviation; 0.5 in D4RL's data.

    Source: Fu et al., D4RL, 2020, and its ``waypoint_controller.py``.
    """

    def __init__(self, envs: Sequence[gym.Env], streams: EnvStreams, noise: float = 0.5) -> None:
        maze = envs[0].unwrapped.maze
        self.origin, self.scale = np.float32([maze.y_map_center, -maze.x_map_center]), maze.maze_size_scaling
        self.onwards = self.centre_of(ways(maze_of(maze.maze_map))).astype(np.float32)  # [H, W, H, W, 2]
        self.seeds, self.streams, self.noise = streams.seeds, streams, noise

    def begin(self, where: np.ndarray, episodes: np.ndarray) -> None:
        self.streams.begin(where, episodes)

    def act(self, obs: Tree, explore: bool = False) -> Tensor:
        position, velocity, goal = np.split(obs[0].numpy(), (2, 4), axis=1)  # [E, 2]
        force = P_GAIN * (self.waypoints(position, goal) - position) - D_GAIN * velocity
        force += self.noise * self.streams.normal((2,))[0].numpy()
        return torch.from_numpy(np.minimum(np.maximum(force, -1), 1))[None]

    def waypoints(self, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """The points' next waypoints, ``[E, 2]`` float32: x and y in m."""
        cells = self.cell_of(np.concatenate([position, goal]))
        cell, target = cells[: len(goal)], cells[len(goal) :]
        arrived = (cell == target).all(1, keepdims=True)
        return np.where(arrived, goal, self.onwards[cell[:, 0], cell[:, 1], target[:, 0], target[:, 1]])

    def cell_of(self, xy: np.ndarray) -> np.ndarray:
        """Row and column ``[..., 2]`` of the cells at x and y in m, as Gymnasium-Robotics counts them."""
        return np.floor((xy[..., ::-1] - self.origin) * DOWNWARDS / self.scale).astype(int)

    def centre_of(self, cell: np.ndarray) -> np.ndarray:
        """x and y in m, ``[..., 2]``, of the centres of cells given by row and column."""
        return ((cell + 0.5) * self.scale * DOWNWARDS + self.origin)[..., ::-1]


def ways(maze: Maze) -> np.ndarray:
    """The next cell from any cell towards any free one, ``[H, W, H, W, 2]``; the latter itself if there is no path."""
    shape = len(maze.rows), len(maze.rows[0])
    found = np.empty((*shape, *shape, 2), int)
    found[:] = np.stack(np.indices(shape), -1)
    for goal in maze.free:
        for cell, onwards in next_cells(maze, goal).items():
            found[(*cell, *goal)] = onwards
    return found


def maze_of(maze_map: Sequence[Sequence[int | str]]) -> Maze:
    """The maze of a Gymnasium-Robotics map, whose walls are 1."""
    return Maze(tuple("".join("#" if cell == 1 else "." for cell in row) for row in maze_map))
