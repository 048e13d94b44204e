"""The episodes of an evaluation, and how sure their mean is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """Episodes of every seed's policy, each array ``[S, episodes]``; ``success`` is None if no step reported it."""

    returns: np.ndarray
    lengths: np.ndarray
    success: np.ndarray | None
    scores: np.ndarray

    @property
    def per_seed(self) -> np.ndarray:
        """Mean score of every seed, ``[S]``."""
        return self.scores.mean(-1)

    @property
    def mean(self) -> float:
        return float(self.scores.mean())

    def facts(self) -> dict[str, Any]:
        """Its figures, as plain data."""
        return dict(
            mean=self.mean, ci95=list(self.interval()), per_seed=self.per_seed.tolist(),
            mean_return=float(self.returns.mean()), mean_length=float(self.lengths.mean()),
            success=None if self.success is None else float(self.success.mean()),
        )  # fmt: skip

    def interval(self) -> tuple[float, float]:
        return bootstrap(self.scores)


def bootstrap(scores: np.ndarray, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of the mean of scores ``[S, episodes]``.

    Seeds are resampled, and episodes within each (Davison & Hinkley, 1997, section 3.8), so that the
    interval shows how another training would score and not only how another evaluation would; with one
    seed it can only show the latter.
    """
    rng = np.random.default_rng(seed)
    S, episodes = scores.shape
    means = np.empty(draws)
    for i in range(0, draws, 500):  # in portions, to bound the memory
        size = min(500, draws - i)
        seeds = rng.integers(S, size=(size, S, 1))
        chosen = rng.integers(episodes, size=(size, S, episodes))
        means[i : i + size] = scores[seeds, chosen].mean((1, 2))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
