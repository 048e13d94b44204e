"""Datasets as one flat table of transitions, which never cross from one episode into the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from offlinerl.types import Batch
from offlinerl.util.trees import Tree, first_leaf, tree_leaves, tree_map


@dataclass(frozen=True, eq=False)
class Dataset:
    """Transitions, one a row, episode after episode, in C-contiguous numpy arrays. Every observation is kept once.

    Attributes:
        observations: a tree of ``[M, ...]``: a vector ``[M, O]`` float32, an image ``[M, H, W, C]`` in its own dtype,
            or a dictionary of such by path.
        at: ``[rows]`` int64, which observation a row begins with; they rise.
        next_at: ``[rows]`` int64, its successor, which is the next one; the row's own where the source ends without.
        action: ``[rows, A]`` float32; a discrete action is its number, with A = 1.
        reward: ``[rows]`` float32, as the agent shall see it: ``provenance["reward"]`` names the rule.
        terminated: ``[rows]`` bool, where nothing may be bootstrapped from the successor.
        last: ``[rows]`` bool, the last row of each episode, whether it terminated or was cut off.
        name: what it was loaded as.
        provenance: where the rows come from, and what was done to them.
    """

    observations: Tree
    at: np.ndarray
    next_at: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    last: np.ndarray
    name: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_rows(cls, obs: Tree, next_obs: Tree, **columns: Any) -> Dataset:
        """From rows with a successor each, ``[rows, ...]``, most of which are the next row's observation too."""
        rows = len(first_leaf(obs))
        following, own = np.zeros(rows, bool), np.ones(rows, bool)  # the successor is the next row's, the row's own
        following[:-1] = True
        for (_, here), (_, successor) in zip(tree_leaves(obs), tree_leaves(next_obs), strict=True):
            following[:-1] &= _same(successor[:-1], here[1:])
            own &= _same(successor, here)
        apart = ~(following | own)
        at = np.arange(rows) + np.r_[0, np.cumsum(apart)[:-1]]
        total = rows + int(apart.sum())

        def merged(here: np.ndarray, successor: np.ndarray) -> np.ndarray:
            both = np.empty((total, *here.shape[1:]), here.dtype)
            both[at], both[at[apart] + 1] = here, successor[apart]
            return both

        observations = tree_map(merged, obs, next_obs) if apart.any() else obs
        return cls(observations, at, at + ~(own & ~following), **columns)

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def obs(self) -> Tree:
        """The observation of every row, a tree of ``[rows, ...]``."""
        return tree_map(lambda leaf: leaf if len(leaf) == len(self) else leaf[self.at], self.observations)

    @property
    def next_obs(self) -> Tree:
        """And its successor."""
        return tree_map(lambda leaf: leaf[self.next_at], self.observations)

    def transitions(self, gamma: float, n: int = 1) -> Batch:
        """The rows as an agent trains on them, every field ``[rows, ...]`` in numpy; ``last`` says that the n-step
        window reached the end of its episode.

        Args:
            gamma: discount of one step.
            n: steps summed into a reward, fewer at the end of an episode.
        """
        reward, discount, tail = n_step_sums(self.reward, self.terminated, self.last, gamma, n)
        next_obs = tree_map(lambda leaf: leaf[self.next_at[tail]], self.observations)
        return Batch(self.obs, self.action, reward, discount, next_obs, (self.last | self.terminated)[tail])

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
        """Bytes of all columns."""
        columns = (self.observations, self.at, self.next_at, self.action, self.reward, self.terminated, self.last)
        return sum(column.nbytes for _, column in tree_leaves(columns))


def _same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """``[rows]`` bool, where two columns hold the same."""
    return (one == other).all(tuple(range(1, one.ndim)))


def n_step_sums(
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
