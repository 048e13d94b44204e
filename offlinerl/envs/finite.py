"""Finite Markov decision processes as environments, to compare what agents learn with exact solutions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike

from offlinerl.tabular import FiniteMDP, distribution_function, grid_world

FINITE_ID = "offlinerl/FiniteMDP-v0"
GRID_ID = "offlinerl/GridWorld-v0"


def register() -> None:
    """Registers ``offlinerl/FiniteMDP-v0`` and ``offlinerl/GridWorld-v0`` with Gymnasium."""
    if FINITE_ID not in gym.registry:
        gym.register(FINITE_ID, entry_point=f"{__name__}:Finite")
        gym.register(GRID_ID, entry_point=f"{__name__}:GridWorld", max_episode_steps=100)


def kwargs_of(mdp: FiniteMDP, random_horizon: bool = False) -> dict[str, Any]:
    """The arguments for which ``Finite`` is an environment of ``mdp``, as plain numbers and lists."""
    arrays = {name: getattr(mdp, name).tolist() for name in ("transition", "reward", "start")}
    return {**arrays, "gamma": float(mdp.gamma), "random_horizon": random_horizon}


class Finite(gym.Env[np.ndarray, np.int64]):
    """A finite Markov decision process, see ``offlinerl.tabular.FiniteMDP``.

    The observation is the state, one-hot in float32 ``[states]``; an action is a number from 0. The reward is the
    expected reward of the action. An episode terminates on reaching a terminal state: one that every action leads back
    to, with a reward of 0.

    With ``random_horizon`` an episode also terminates after every step with probability ``1 - gamma``. It then reaches
    step t with probability ``gamma^t`` times that of the process, so the expected undiscounted sum of its rewards is
    the discounted return. A sampled policy gradient can then be compared with the exact one without the weights
    ``gamma^t``, which the usual estimators omit.

    Args:
        transition: probability of every next state, ``[states, actions, states]``.
        reward: expected reward of every action, ``[states, actions]``.
        start: distribution of the initial state, ``[states]``.
        gamma: discount per step, in [0, 1); without ``random_horizon`` it has no effect on an episode.
        random_horizon: whether to terminate at random.

    Raises:
        UserError: these are not a Markov decision process; see ``FiniteMDP``.

    Source: Puterman, Markov Decision Processes, 1994, section 5.3, on discounting as a random horizon.
    """

    def __init__(
        self,
        transition: ArrayLike,
        reward: ArrayLike,
        start: ArrayLike,
        gamma: float,
        random_horizon: bool = False,
    ) -> None:
        self.mdp = FiniteMDP(transition, reward, gamma, start)
        self.random_horizon = random_horizon
        states, actions = self.mdp.reward.shape
        self.observation_space = gym.spaces.Box(0, 1, (states,), np.float32)
        self.action_space = gym.spaces.Discrete(actions)
        self._terminal = self.mdp.terminal
        self._start = distribution_function(self.mdp.start)
        self._successors = distribution_function(self.mdp.transition)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode. The seed determines everything in it except the actions."""
        super().reset(seed=seed)
        self._state = self._draw(self._start)
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes an action, given by its number."""
        reward = float(self.mdp.reward[self._state, action])
        self._state = self._draw(self._successors[self._state, action])
        ends = self.random_horizon and self.np_random.random() >= self.mdp.gamma
        return self._observation(), reward, bool(ends or self._terminal[self._state]), False, {}

    def _draw(self, sums: np.ndarray) -> int:
        return int(np.searchsorted(sums, self.np_random.random(), side="right"))

    def _observation(self) -> np.ndarray:
        observation = np.zeros(self.observation_space.shape, np.float32)
        observation[self._state] = 1
        return observation


class GridWorld(Finite):
    """``offlinerl.tabular.grid_world``, with a reward of -1 per step: one of two opposite corners is to be reached.

    Actions are right, left, up and down. As registered, an episode is truncated after 100 steps.

    Args:
        height: of the grid, in cells.
        width: of the grid, in cells.

    Raises:
        UserError: the grid has fewer than three cells.
    """

    def __init__(self, height: int = 4, width: int = 4) -> None:
        super().__init__(**kwargs_of(grid_world(height, width)))
