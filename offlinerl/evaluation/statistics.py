"""Statistics of evaluations: intervals, choosing among policies, and comparisons of agents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

CAUTION = -1.0
"""Standard errors to add to a policy's mean when choosing among policies. It is negative, so that a policy that was
only lucky in its first episodes is not chosen."""


@dataclass(frozen=True)
class Evaluation:
    """Episodes of every seed's policy; each array is ``[S, episodes]``. ``success`` is None if no step reported it."""

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

    def of(self, rows: Sequence[int]) -> Evaluation:
        """The evaluation of some of the policies."""
        success = None if self.success is None else self.success[rows]
        return Evaluation(self.returns[rows], self.lengths[rows], success, self.scores[rows])

    def facts(self) -> dict[str, Any]:
        """Summary statistics as plain data; those over all seeds are NaN if a policy has diverged."""
        known = np.where(np.isnan(self.returns), np.nan, 1.0)
        return dict(
            mean=self.mean, ci95=list(self.interval()), per_seed=self.per_seed.tolist(),
            mean_return=float(self.returns.mean()), mean_length=float((known * self.lengths).mean()),
            success=None if self.success is None else float((known * self.success).mean()),
        )  # fmt: skip

    def interval(self) -> tuple[float, float]:
        return bootstrap(self.scores)


def bootstrap(scores: np.ndarray, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of the mean of scores ``[S, episodes]``.

    Seeds are resampled, so that the interval includes the variation between trainings; with one seed it cannot. Starts
    are resampled too. Episode i of every seed begins in the same start, so all seeds share one resample of the starts,
    or the luck of the starts would seem to average out over the seeds (the pigeonhole bootstrap: Owen, Annals of
    Applied Statistics 1, 2007).
    """
    rng = np.random.default_rng(seed)
    S, episodes = scores.shape
    means = np.empty(draws)
    for i in range(0, draws, 500):  # in chunks, to bound the memory
        size = min(500, draws - i)
        seeds = rng.integers(S, size=(size, S, 1))
        chosen = rng.integers(episodes, size=(size, 1, episodes))
        means[i : i + size] = scores[seeds, chosen].mean((1, 2))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def standing(per_seed: Sequence[float]) -> tuple[int, float]:
    """Sort key that orders evaluations by their scores per seed: first by the number of scores that are not NaN, since
    those of diverged policies are, then by the sum of these scores."""
    known = [score for score in per_seed if not math.isnan(score)]
    return len(known), sum(known)


def of_replicates(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The mean of a few bootstrap replicates ``[S]``, and the 95% interval of what they estimate.

    The standard deviation of the replicates is the standard error (Efron & Tibshirani, 1993, algorithm 6.1). Student's
    t accounts for estimating it from S replicates, and the factor ``1 + 1 / S`` for the variance of their mean.
    """
    S = len(values)
    mean = float(values.mean())
    half = student(S - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / S)
    return mean, (mean - float(half), mean + float(half))


def student(freedom: int) -> float:
    """The 97.5% quantile of Student's t with ``freedom`` degrees of freedom: exact for 1, within 2% from 2 on.

    Abramowitz & Stegun, Handbook of mathematical functions, 1964, equation 26.7.5.
    """
    if freedom == 1:
        return math.tan(0.475 * math.pi)
    z = NormalDist().inv_cdf(0.975)
    return (
        z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * freedom**4)
    )  # fmt: skip


def confidence_bounds(count: np.ndarray, total: np.ndarray, squares: np.ndarray, width: float) -> np.ndarray:
    """Mean returns of P policies plus ``width`` standard errors, ``[..., P]``.

    The standard deviation is pooled over all policies, since each has few episodes. A policy with a return that is not
    finite has the bound -inf, whatever the width, and is left out of the standard deviation.

    Args:
        count: number of episodes of each policy, ``[..., P]``, at least 1.
        total: sums of the returns, ``[..., P]``.
        squares: sums of the squared returns, ``[..., P]``.
        width: number of standard errors to add, below 0 for a lower bound.
    """
    sound, mean, variance = _of_means(count, total, squares)
    return np.where(sound, mean + width * np.sqrt(variance), -np.inf)


def next_to_play(count: np.ndarray, total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """The index of the policy, of P, that should play the next episode to find the best one in few episodes, ``[...]``.

    The leader is the policy with the highest lower bound, ``confidence_bounds(..., CAUTION)``. The challenger is the
    one with the largest expected improvement, ``E max(mu_i - mu_leader, 0)``, where each mean is normal with its
    standard error. These are the two candidates of TTEI (Qin, Klabjan & Russo, Improving the expected improvement
    algorithm, NeurIPS 2017). Of the two, the one with fewer episodes plays, as in UGapE (Gabillon, Ghavamzadeh &
    Lazaric, Best arm identification: a unified approach to fixed budget and fixed confidence, NeurIPS 2012). For the
    arguments see ``confidence_bounds``.
    """
    leader = confidence_bounds(count, total, squares, CAUTION).argmax(-1)[..., None]
    sound, mean, variance = _of_means(count, total, squares)
    deviation = np.sqrt(variance + np.take_along_axis(variance, leader, -1))
    z = (mean - np.take_along_axis(mean, leader, -1)) / deviation
    below = np.vectorize(math.erfc, otypes=[float])(-z / math.sqrt(2)) / 2  # the normal distribution function
    improvement = deviation * (z * below + np.exp(-np.square(z) / 2) / math.sqrt(2 * math.pi))
    improvement = np.where(sound, improvement, -np.inf)  # below the leader's -1: a diverged policy never plays
    np.put_along_axis(improvement, leader, -1, -1)
    two = np.concatenate([improvement.argmax(-1)[..., None], leader], -1)
    return np.take_along_axis(two, np.take_along_axis(count, two, -1).argmin(-1)[..., None], -1)[..., 0]


def _of_means(count: np.ndarray, total: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, ...]:
    """Whether all returns are finite, the mean if they are, and the variance of the mean, ``[..., P]`` each. The
    variance is kept above 0, so that of equal means those with fewer episodes are less certain."""
    sound = np.isfinite(total) & np.isfinite(squares)
    total, squares = np.where(sound, total, 0), np.where(sound, squares, 0)
    errors = np.maximum(squares - total**2 / count, 0).sum(-1, keepdims=True)
    freedom = np.where(sound, count - 1, 0).sum(-1, keepdims=True)
    return sound, total / count, np.maximum(errors / np.maximum(freedom, 1), np.finfo(np.float32).tiny) / count


def expected_maximum(values: np.ndarray) -> np.ndarray:
    """The expected maximum over k policies drawn at random with replacement, for k from 1 to P, ``[P]``.

    ``sum_i v_(i) ((i / P)^k - ((i - 1) / P)^k)`` over the values in ascending order: expected validation performance
    (Dodge et al., Show your work, EMNLP 2019, equation 7), which Kurenkov & Kolesnikov, Showing your offline
    reinforcement learning work, ICML 2022, section 4, use for online performance by the number of deployed policies.

    Args:
        values: of the policies, ``[P]``.
    """
    P = len(values)
    below = (np.arange(P + 1) / P) ** np.arange(1, P + 1)[:, None]  # [k, P + 1]
    return np.diff(below, axis=1) @ np.sort(values)


Strata = Sequence[np.ndarray]
"""Scores of an agent's trainings on each of M tasks, ``[..., N]`` each; N may differ between tasks."""


def interquartile_mean(scores: Strata) -> np.ndarray:
    """The mean of the middle half of the trainings, pooled over all tasks.

    A quarter of them, rounded down, is left out at either end: Agarwal et al., Deep reinforcement learning at the edge
    of the statistical precipice, NeurIPS 2021, section 4.3. The result is NaN if any score is NaN.
    """
    pooled = np.sort(np.concatenate(scores, -1), -1)
    n = pooled.shape[-1]
    middle = pooled[..., n // 4 : n - n // 4].mean(-1)
    return np.where(np.isnan(pooled).any(-1), np.nan, middle)


def mean_of_tasks(scores: Strata) -> np.ndarray:
    return np.mean([task.mean(-1) for task in scores], 0)


def median_of_tasks(scores: Strata) -> np.ndarray:
    """The median over tasks of the mean over each task's trainings."""
    return np.median([task.mean(-1) for task in scores], 0)


AGGREGATES = {"IQM": interquartile_mean, "mean": mean_of_tasks, "median": median_of_tasks}


def probability_of_improvement(x: Strata, y: Strata) -> np.ndarray:
    """The probability that a training of X scores higher than one of Y on a random task.

    The mean over tasks of the Mann-Whitney statistic: the fraction of pairs of trainings in which X is higher, where a
    tie counts one half (Agarwal et al., 2021, section 4.3). NaN counts as the lowest score.
    """
    each = []
    for of_x, of_y in zip(x, y, strict=True):
        a, b = (np.where(np.isnan(of), -np.inf, of) for of in (of_x[..., :, None], of_y[..., None, :]))
        each.append((((a > b) + 1.0 * (a >= b)) / 2).mean((-2, -1)))
    return np.mean(each, 0)


def chance_of_improvement(x: Strata, y: Strata, draws: int = 10_000, seed: int = 0) -> float:
    """The probability that X would reach at least its ``probability_of_improvement`` over Y if both were equally good.

    A permutation test (Pitman, Significance tests which may be applied to samples from any populations, 1937): on every
    task, the trainings are assigned to X and Y at random. Up to the finite number of draws it is exact, however few
    trainings there are.
    """
    rng, have, found = np.random.default_rng(seed), probability_of_improvement(x, y), []
    for i in range(0, draws, 500):  # in chunks, to bound the memory
        size = min(500, draws - i)
        both = [np.broadcast_to(np.concatenate(of), (size, sum(map(len, of)))) for of in zip(x, y, strict=True)]
        shuffled = [(rng.permuted(task, axis=1), len(of_x)) for task, of_x in zip(both, x, strict=True)]
        given = [task[:, :n] for task, n in shuffled], [task[:, n:] for task, n in shuffled]
        found.append(probability_of_improvement(*given) >= have - 1e-9)  # the order of summation may change the mean
    return float(np.concatenate(found).mean())


def performance_profile(scores: Strata, thresholds: np.ndarray) -> np.ndarray:
    """The fraction of trainings that score above each of T thresholds, averaged over tasks, ``[T, ...]``.

    The run-score distribution of Agarwal et al., 2021, equation 2.
    """
    at = thresholds.reshape(-1, *[1] * scores[0].ndim)
    return np.mean([(task > at).mean(-1) for task in scores], 0)


def stratified_bootstrap(
    statistic: Callable[..., np.ndarray], *agents: Strata, draws: int = 10_000, seed: int = 0
) -> np.ndarray:
    """The 95% percentile bootstrap interval of a statistic of the scores of one or several agents, ``[2, ...]``.

    The trainings of each task are resampled with replacement (Agarwal et al., 2021, section 4.1); tasks are not. The
    interval is NaN if any task has only one training, since all its resamples are equal.

    Args:
        statistic: a function of as many ``Strata`` as there are agents; the draws are the last axis of its result.
        agents: scores of every agent.
        draws: number of resamples.
        seed: of the resamples.
    """
    if min(task.shape[-1] for scores in agents for task in scores) < 2:
        known = np.asarray(statistic(*agents))
        return np.full((2, *known.shape), np.nan)
    rng, found = np.random.default_rng(seed), []
    for i in range(0, draws, 500):  # in chunks, to bound the memory
        size = min(500, draws - i)
        resampled = [
            [task[..., rng.integers(task.shape[-1], size=(size, task.shape[-1]))] for task in scores]
            for scores in agents
        ]
        found.append(statistic(*resampled))
    return np.percentile(np.concatenate(found, -1), [2.5, 97.5], axis=-1)
