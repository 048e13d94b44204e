"""Datasets as one flat table of transitions, which never crosses from one episode into the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from offlinerl.types import Batch


@dataclass(frozen=True, eq=False)
class Dataset:
    """Transitions, one a row, episode after episode, in C-contiguous numpy arrays.

    Attributes:
        obs: ``[rows, O]`` float32; pixels keep their uint8 and their shape, ``[rows, H, W, C]``.
        action: ``[rows, A]`` float32; a discrete action is its number, with A = 1.
        reward: ``[rows]`` float32, as the agent shall see it: ``provenance["reward"]`` names the rule.
        terminated: ``[rows]`` bool, where nothing may be bootstrapped from ``next_obs``.
        last: ``[rows]`` bool, the last row of each episode, whether it terminated or was cut off.
        next_obs: like ``obs``; the row's own observation where the source ends without a successor.
        name: what it was loaded as.
        provenance: where the rows come from, and what was done to them.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    last: np.ndarray
    next_obs: np.ndarray
    name: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.reward)

    @cached_property
    def episode_starts(self) -> np.ndarray:
        """``[episodes]`` the first row of each."""
        return np.flatnonzero(np.r_[True, self.last[:-1]])

    @property
    def episode_lengths(self) -> np.ndarray:
        """``[episodes]`` rows of each."""
        return np.diff(np.r_[self.episode_starts, len(self)])

    @property
    def episode_returns(self) -> np.ndarray:
        """``[episodes]`` undiscounted sums of ``reward``, float64."""
        return np.add.reduceat(self.reward, self.episode_starts, dtype=np.float64)

    @property
    def nbytes(self) -> int:
        """Bytes the six columns take."""
        columns = (self.obs, self.action, self.reward, self.terminated, self.last, self.next_obs)
        return sum(column.nbytes for column in columns)

    def transitions(self, gamma: float, n: int = 1) -> Batch:
        """The table as an agent trains on it, every field ``[rows, ...]`` in numpy; ``last`` says that the
        n-step window reached the end of its episode.

        Args:
            gamma: discount of one step.
            n: steps summed into a reward, fewer at the end of an episode.
        """
        reward, discount, tail = n_step(self.reward, self.terminated, self.last, gamma, n)
        last = (self.last | self.terminated)[tail]
        next_obs = self.next_obs if n == 1 else self.next_obs[tail]
        return Batch(self.obs, self.action, reward, discount, next_obs, last)


def n_step(
    reward: np.ndarray, terminated: np.ndarray, last: np.ndarray, gamma: float, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Discounted sums of up to n rewards, which stop where the episode does.

    Args:
        reward: ``[rows]``.
        terminated: ``[rows]`` bool.
        last: ``[rows]`` bool, true in the very last row.
        gamma: discount of one step.
        n: longest window, in steps.

    Returns:
        ``reward``: ``[rows]`` float32, ``sum_k gamma^k r_k`` over the k < n steps taken;
        ``discount``: ``[rows]`` float32, ``gamma^steps``, and 0 where the window ran into a terminal state;
        ``tail``: ``[rows]`` the last row of each window, whose successor is the one to bootstrap from.

    Raises:
        ValueError: n is less than 1.

    Source: Sutton and Barto, Reinforcement Learning, 2nd edition, 2018, equation 7.1.
    """
    if n < 1:
        raise ValueError(f"n-step windows take at least one step, not {n}")
    end = terminated | last
    total = reward.astype(np.float64)
    tail = np.arange(len(reward))
    going = tail[~end]  # the windows that may take another step
    for k in range(1, n):
        total[going] += gamma**k * reward[going + k]
        tail[going] += 1
        going = going[~end[going + k]]
    discount = gamma ** (tail - np.arange(len(reward)) + 1.0) * ~terminated[tail]
    return total.astype(np.float32), discount.astype(np.float32), tail
