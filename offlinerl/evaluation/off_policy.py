"""What a policy would return, by weighing the episodes of another one: importance sampling and doubly robust.

All of these estimate ``J = E[sum_t gamma^t r_t]`` of a target policy pi from n episodes of a behaviour mu. They are
sums over steps of a weight times a value, ``sum_t gamma^t mean_i(w_i,t x_i,t)``, where
``rho_i,t = prod_{t' <= t} pi(a|s) / mu(a|s)`` is how much likelier the first steps of episode i are under pi. Weighted
estimators divide a step's weights by their mean over the episodes: a bias that vanishes as n grows, for a fraction of
the variance. An episode that has ended keeps its last weight and earns nothing more, also where it was recorded beyond
a terminal step. One that is cut off, by a time limit say, is taken for the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from offlinerl.data.dataset import Dataset
from offlinerl.util.errors import UserError

Term: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Logarithms of weights ``[n, T]`` and what they weigh, ``[n, T]``, discounted."""


@dataclass(frozen=True)
class Estimate:
    """Of a policy's expected discounted return, in units of reward.

    Attributes:
        value: the estimate.
        interval: its 95% interval.
        effective: as many of the behaviour's episodes would tell as much if their last weights were equal, from 1 to
            n (Kong, 1992); where it is small, neither the value nor the interval can be relied on. None if there are no
            weights.
    """

    value: float
    interval: tuple[float, float]
    effective: float | None = None


def importance_sampling(
    data: Dataset,
    target: np.ndarray,
    behavior: np.ndarray,
    gamma: float,
    *,
    log: bool = False,
    weighted: bool = False,
    draws: int = 2_000,
    seed: int = 0,
) -> Estimate:
    """Per-decision importance sampling, ``sum_t gamma^t mean_i(rho_i,t r_i,t)``.

    Precup, Sutton & Singh, Eligibility traces for off-policy policy evaluation, ICML 2000, section 3; weighted, the
    per-step normalised one of Thomas, Safe reinforcement learning, 2015, section 3.8.

    Args:
        data: n episodes of the behaviour.
        target: probabilities, or densities, of the data's actions under the target policy, ``[rows]``.
        behavior: and under the behaviour, ``[rows]``, above 0.
        gamma: discount factor of a step.
        log: whether these are their logarithms instead.
        weighted: divide the weights of a step by their mean over the episodes.
        draws: resamples of the episodes for the percentile bootstrap interval (Efron & Tibshirani, 1993, section 13.3).
        seed: of the resamples.

    Raises:
        UserError: the arrays do not fit the data, or are no probabilities.
    """
    log_rho = _log_weights(data, target, behavior, log)
    reward = _discounted(_padded(data, data.reward, 0.0), gamma)
    return _estimated([(log_rho, reward)], log_rho[:, -1], weighted, draws, seed)


def doubly_robust(
    data: Dataset,
    target: np.ndarray,
    behavior: np.ndarray,
    Q: np.ndarray,
    V: np.ndarray,
    gamma: float,
    *,
    final_V: np.ndarray | None = None,
    log: bool = False,
    weighted: bool = False,
    draws: int = 2_000,
    seed: int = 0,
) -> Estimate:
    """Doubly robust: importance sampling of what a model leaves unexplained,
    ``sum_t gamma^t mean_i(rho_i,t (r_i,t - Q_i,t) + rho_i,t-1 V_i,t)``.

    It has no bias where the probabilities are right, whatever the model, and little variance where the model is good.
    This sum is what the recursion ``D_t = V_t + rho_t (r_t + gamma D_t+1 - Q_t)`` of Jiang & Li, Doubly robust
    off-policy value evaluation for reinforcement learning, ICML 2016, equation 10, unrolls to; weighted, it is that of
    Thomas & Brunskill, Data-efficient off-policy policy evaluation for reinforcement learning, ICML 2016, section 5.

    Args:
        data: see ``importance_sampling``, as for the others not named here.
        target: see there.
        behavior: see there.
        Q: a model's values of the target policy at the data's observations and actions, ``[rows]``.
        V: and at the observations, ``[rows]``.
        gamma: see there.
        final_V: V of the last successor of every episode, ``[n]``, which stands for what episodes that were truncated
            had still to earn; it is not used where they terminated, at any step. By default nothing stands for it.
        log: see there.
        weighted: see there.
        draws: see there.
        seed: see there.

    Raises:
        UserError: see there.
    """
    _require_rows(data, Q=Q, V=V)
    log_rho = _log_weights(data, target, behavior, log)
    n, lengths = len(log_rho), data.episode_lengths
    log_before = np.c_[np.zeros(n), log_rho]  # [n, T + 1]
    unexplained = _padded(data, data.reward - np.asarray(Q, np.float64), 0.0)
    value = np.c_[_padded(data, V, 0.0), np.zeros(n)]
    if final_V is not None:
        terminated = np.logical_or.reduceat(data.terminated, data.episode_starts)
        value[np.arange(n), lengths] = np.where(terminated, 0.0, final_V)
    terms = [(log_rho, _discounted(unexplained, gamma)), (log_before, _discounted(value, gamma))]
    return _estimated(terms, log_rho[:, -1], weighted, draws, seed)


def until_terminal(data: Dataset) -> np.ndarray:
    """Which rows are of what an episode earns, ``[rows]`` bool: all up to its first terminal step, which may lie in the
    middle of what was recorded."""
    before = np.cumsum(data.terminated) - data.terminated  # terminal steps in earlier rows
    return before == np.repeat(before[data.episode_starts], data.episode_lengths)


def discounted_returns(data: Dataset, gamma: float) -> np.ndarray:
    """``[episodes]`` discounted sums of ``reward`` up to the first terminal step, float64."""
    step = np.arange(len(data)) - np.repeat(data.episode_starts, data.episode_lengths)
    earned = np.where(until_terminal(data), data.reward * gamma**step, 0.0)
    return np.array([rewards.sum() for rewards in np.split(earned, data.episode_starts[1:])])


def _log_weights(data: Dataset, target: np.ndarray, behavior: np.ndarray, log: bool) -> np.ndarray:
    """``log rho``, ``[n, T]``; a product of hundreds of ratios may be no number of 64 bits."""
    _require_rows(data, target=target, behavior=behavior)
    target, behavior = np.asarray(target, np.float64), np.asarray(behavior, np.float64)
    if not log:
        with np.errstate(divide="ignore", invalid="ignore"):  # -inf of what the target never does, NaN below 0
            target, behavior = np.log(target), np.log(behavior)
    if not (target < np.inf).all():
        raise UserError("the target's probabilities must be finite and at least 0")
    if not np.isfinite(behavior).all():
        raise UserError("the behaviour's probabilities must be finite and above 0, for it took these actions")
    return _padded(data, target - behavior, 0.0).cumsum(-1)


def _require_rows(data: Dataset, **columns: np.ndarray) -> None:
    for name, column in columns.items():
        if np.shape(column) != (len(data),):
            raise UserError(f"{name} must have one number for each of the {len(data)} rows, not {np.shape(column)}")


def _padded(data: Dataset, column: np.ndarray, fill: float) -> np.ndarray:
    """A column ``[rows]`` by episode and step, ``[n, T]`` float64, with T the length of the longest one, and ``fill``
    behind the first terminal step."""
    lengths = data.episode_lengths
    rows = np.full((len(lengths), lengths.max()), fill)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = np.where(until_terminal(data), column, fill)
    return rows


def _discounted(values: np.ndarray, gamma: float) -> np.ndarray:
    return values * gamma ** np.arange(values.shape[1])


def _estimated(terms: Sequence[Term], log_last: np.ndarray, weighted: bool, draws: int, seed: int) -> Estimate:
    """The estimate of ``sum_t mean_i(w_i,t x_i,t)`` over all terms, and of resamples of the episodes."""
    n = len(log_last)
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws).astype(float)  # [draws, n]
    low, high = np.percentile(_sum_of_steps(terms, times, weighted), [2.5, 97.5])
    value = _sum_of_steps(terms, np.ones((1, n)), weighted)[0]
    last = _relative(log_last)
    effective = last.sum() ** 2 / np.square(last).sum() if last.any() else 0.0
    return Estimate(float(value), (float(low), float(high)), float(effective))


def _sum_of_steps(terms: Sequence[Term], times: np.ndarray, weighted: bool) -> np.ndarray:
    """``sum_t sum_i c_i w_i,t x_i,t / N_t`` for every row c of ``times``, ``[draws]``: N_t is n or, weighted, the sum
    of the step's weights. A step at which nothing has any weight adds nothing."""
    total = np.zeros(len(times))
    for log_weight, value in terms:
        if weighted:
            weight = _relative(log_weight)
            norm = times @ weight  # [draws, T]
            total += np.divide(times @ (weight * value), norm, out=np.zeros_like(norm), where=norm > 0).sum(-1)
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # of a weight beyond all numbers, what is 0 stays 0
                weighed = np.where(value == 0, 0.0, np.exp(log_weight) * value)
            total += times @ weighed.sum(-1) / times.shape[1]
    return total


def _relative(log_weight: np.ndarray) -> np.ndarray:
    """Weights over the largest one of their step, 0 where there is none."""
    largest = log_weight.max(0)
    return np.exp(log_weight - np.where(np.isfinite(largest), largest, 0.0))
