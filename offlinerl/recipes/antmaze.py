"""Collects AntMaze data as D4RL did: a policy that walks in a given direction is guided through a maze."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from offlinerl.data.episode import Episode
from offlinerl.envs.antmaze import GOAL_RADIUS
from offlinerl.envs.mazes import CELL, MAZES, Maze
from offlinerl.learning.rng import EnvStreams
from offlinerl.rollout.policy import Policy, apart
from offlinerl.util.trees import Tree

PLAY = {"medium": [(2, 6), (5, 1), (6, 5)], "large": [(1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9)]}
"""Rows and columns of D4RL's hand-picked goals. In the medium maze, none is the goal of an evaluation."""

STEPS = 1000
"""Steps in an episode of the data, in every maze."""

Cell = tuple[int, int]


def collecting(name: str) -> dict[str, Any]:
    """The environment in which D4RL collected a dataset, for ``offlinerl.envs.make``: episodes do not end at the goal.

    Args:
        name: ``<maze>`` with the start and the goal of an evaluation, ``<maze>-play`` with hand-picked goals and starts
            in any other cell, or ``<maze>-diverse`` with starts and goals in any cell.
    """
    maze, _, kind = name.partition("-")
    kwargs: dict[str, Any] = dict(continuing_task=True)
    if kind:
        free = MAZES[maze].free
        goals = free if kind == "diverse" else PLAY[maze]
        starts = free if kind == "diverse" else [cell for cell in free if cell not in goals]
        kwargs |= dict(starts=starts, goals=goals)
    return {"id": f"offlinerl/AntMaze-{maze}-v0", "kwargs": kwargs, "max_episode_steps": STEPS}


@cache
def next_cells(maze: Maze, goal: Cell) -> dict[Cell, Cell]:
    """The next cell on a shortest path to a goal's cell, found by breadth-first search from the goal; a cell is a row
    and a column. Wall cells beside the path have one too, for an ant that leans over them."""
    found, queue, free = {goal: goal}, deque([goal]), set(maze.free)
    while queue:
        row, column = cell = queue.popleft()
        for beside in ((row, column - 1), (row, column + 1), (row + 1, column), (row - 1, column)):
            if beside not in found:
                found[beside] = cell
                if beside in free:
                    queue.append(beside)
    return found


def cell_of(maze: Maze, xy: np.ndarray) -> Cell:
    """Row and column of the cell in which an ant at x and y in m is counted: as in D4RL, a cell extends from its centre
    to the next one's. By D4RL's rule, an ant between a centre and a wall also counts as beyond the wall; here it stays
    inside."""
    at = np.asarray(xy, float) / CELL
    column, row = np.rint(at).astype(int)
    before = at < (column, row)
    cell, free = (int(row) + maze.start[0], int(column) + maze.start[1]), maze.free
    if before[0] and (beside := (cell[0], cell[1] - 1)) in free:
        cell = beside
    if before[1] and (beside := (cell[0] - 1, cell[1])) in free:
        cell = beside
    return cell


def direction(maze: Maze, xy: np.ndarray, goal: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The unit vector from an ant to its next waypoint: the goal, or the centre of the next cell plus an offset.

    Args:
        maze: in which the ant is.
        xy: position of the ant, in m.
        goal: position of the goal, in m.
        offset: in m.
    """
    target = cell_of(maze, goal)
    cell = next_cells(maze, target).get(cell_of(maze, xy), target)
    way = (goal if cell == target else maze.centre(cell) + offset) - xy
    return way / max(float(np.linalg.norm(way)), 1e-6)


class Navigator(Policy):
    """Guides a policy through mazes to the goals of the episodes.

    The waypoint is the centre of the next cell on a shortest path + U(0, 1) m in x and y, drawn at every step. Noise is
    added to the actions, which are clipped to [-1, 1].

    Args:
        walker: S policies that observe ``offlinerl/AntDirection-v0``.
        envs: S * E ``AntMaze`` environments, wrapped or not, in the order of a ``Pool``.
        noise: standard deviation of the action noise; 0.2 in D4RL's data.
        explore: whether the walker samples its actions, as in D4RL's data; OGBench takes the mean.
        lanes: numbers of a seed's E environments; by default from 0.

    Source: Fu et al., D4RL, 2020, and its ``generate_ant_maze_datasets.py``.
    """

    def __init__(
        self,
        walker: Policy,
        envs: Sequence[gym.Env],
        noise: float = 0.2,
        explore: bool = True,
        lanes: Sequence[int] | None = None,
    ) -> None:
        self.mazes, self.noise, self.explore = [env.unwrapped for env in envs], noise, explore
        self.seeds, self.device = walker.seeds, "cpu"
        lanes = range(len(envs) // len(self.seeds)) if lanes is None else lanes
        self.walker = apart(walker, lanes)
        self.streams = EnvStreams(self.seeds, lanes, "navigation")
        self.begun = np.zeros(len(envs), bool)  # the others made all their episodes before a restart, and have no goal

    def begin(self, where: np.ndarray, episodes: np.ndarray) -> None:
        self.begun |= where.reshape(-1)
        self.streams.begin(where, episodes)
        self.walker.begin(where, episodes)

    def act(self, obs: Tree, explore: bool = False) -> Tensor:
        offset = self.streams.uniform(0, 1, (2,)).numpy()  # [S, E, 2]
        ways = [
            direction(env.maze, xy, env.goal, off) if begun else np.zeros(2)
            for env, begun, xy, off in zip(
                self.mazes, self.begun, obs[..., :2].reshape(-1, 2).numpy(), offset.reshape(-1, 2), strict=True
            )
        ]
        way = torch.from_numpy(np.float32(ways)).view(*obs.shape[:2], 2)
        action = self.walker.act(torch.cat([obs[..., 2:], way], -1).to(self.walker.device), self.explore).cpu()
        return (action + self.noise * self.streams.normal(action.shape[2:])).clamp(-1, 1)


def relabelled(episode: Episode, goal: Sequence[float]) -> Episode:
    """The episode with the rewards for an evaluation's goal: a step after which the torso is within 0.5 m of it has a
    reward of 1 and is terminal. The ant walks on, so that terminal steps may be followed by others.

    Args:
        episode: of ``AntMaze``, T steps.
        goal: x and y in m.
    """
    reached = np.linalg.norm(episode.observations[1:, :2] - goal, axis=1) <= GOAL_RADIUS  # [T]
    return episode._replace(rewards=reached.astype(episode.rewards.dtype), terminations=reached)
