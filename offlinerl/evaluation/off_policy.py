"""Off-policy evaluation of a policy from another policy's episodes: importance sampling and doubly robust estimators.

All of them estimate ``J = E[sum_t gamma^t r_t]`` of a target policy pi from n episodes of a behaviour policy mu. They
are sums over steps of a weight times a value, ``sum_t gamma^t mean_i(w_i,t x_i,t)``, where
``rho_i,t = prod_{t' <= t} pi(a|s) / mu(a|s)`` is the likelihood ratio of the first steps of episode i. Weighted
estimators divide the weights of a step by their mean over the episodes, which has a bias that vanishes as n grows, and
much less variance. After its end, an episode keeps its last weight and has rewards of 0, also if rows were recorded
beyond a terminal step. A truncated episode, for example at a time limit, is treated as complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from offlinerl.data.dataset import Dataset
from offlinerl.util.errors import UserError

Term: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Log-weights ``[n, T]`` and the discounted values that they weight, ``[n, T]``."""


@dataclass(frozen=True)
class Estimate:
    """An estimate of a policy's expected discounted return, in units of reward.

    Attributes:
        value: the estimate.
        interval: its 95% interval.
        effective: effective sample size by the episodes' last weights, from 1 to n (Kong, 1992), or 0 if all weights
            are zero. If it is small, neither the value nor the interval is reliable. None if there are no weights.
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
        data: n episodes of the behaviour policy.
        target: probabilities or densities of the data's actions under the target policy, ``[rows]``.
        behavior: those under the behaviour policy, ``[rows]``, above 0.
        gamma: discount factor per step.
        log: whether ``target`` and ``behavior`` are logarithms.
        weighted: divide the weights of a step by their mean over the episodes.
        draws: resamples of the episodes for the percentile bootstrap interval (Efron & Tibshirani, 1993, section 13.3).
        seed: of the resamples.

    Raises:
        UserError: the arrays do not have one number per row, or are not probabilities.
    """
    log_rho = _log_weights(data, target, behavior, log)
    reward = _discounted(_padded(data, data.reward), gamma)
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
    """Doubly robust estimation: importance sampling of the residual of a value model,
    ``sum_t gamma^t mean_i(rho_i,t (r_i,t - Q_i,t) + rho_i,t-1 V_i,t)``.

    It is unbiased if the probabilities are right, whatever the model, and has little variance if the model is good.
    The sum is the unrolled recursion ``D_t = V_t + rho_t (r_t + gamma D_t+1 - Q_t)`` of Jiang & Li, Doubly robust
    off-policy value evaluation for reinforcement learning, ICML 2016, equation 10; weighted, it is the estimator of
    Thomas & Brunskill, Data-efficient off-policy policy evaluation for reinforcement learning, ICML 2016, section 5.

    Args:
        data: see ``importance_sampling``.
        target: see ``importance_sampling``.
        behavior: see ``importance_sampling``.
        Q: the model's action values of the target policy for the data's observations and actions, ``[rows]``.
        V: the model's state values for the observations, ``[rows]``.
        gamma: see ``importance_sampling``.
        final_V: V of the last next observation of every episode, ``[n]``, to bootstrap from at truncations; ignored for
            episodes that terminated at any step. By default there is no bootstrapping.
        log: see ``importance_sampling``.
        weighted: see ``importance_sampling``.
        draws: see ``importance_sampling``.
        seed: see ``importance_sampling``.

    Raises:
        UserError: see ``importance_sampling``.
    """
    _require_rows(data, Q=Q, V=V)
    log_rho = _log_weights(data, target, behavior, log)
    n, lengths = len(log_rho), data.episode_lengths
    log_before = np.c_[np.zeros(n), log_rho]  # [n, T + 1]
    unexplained = _padded(data, data.reward - np.asarray(Q, np.float64))
    value = np.c_[_padded(data, V), np.zeros(n)]
    if final_V is not None:
        terminated = np.logical_or.reduceat(data.terminated, data.episode_starts)
        value[np.arange(n), lengths] = np.where(terminated, 0.0, final_V)
    terms = [(log_rho, _discounted(unexplained, gamma)), (log_before, _discounted(value, gamma))]
    return _estimated(terms, log_rho[:, -1], weighted, draws, seed)


def until_terminal(data: Dataset) -> np.ndarray:
    """Mask of the rows up to the first terminal step of their episode, ``[rows]`` bool. The terminal step may be
    followed by more recorded rows."""
    before = np.cumsum(data.terminated) - data.terminated  # terminal steps in earlier rows
    return before == np.repeat(before[data.episode_starts], data.episode_lengths)


def discounted_returns(data: Dataset, gamma: float) -> np.ndarray:
    """Discounted returns of the episodes up to their first terminal step, ``[episodes]`` float64."""
    step = np.arange(len(data)) - np.repeat(data.episode_starts, data.episode_lengths)
    earned = np.where(until_terminal(data), data.reward * gamma**step, 0.0)
    return np.array([rewards.sum() for rewards in np.split(earned, data.episode_starts[1:])])


def _log_weights(data: Dataset, target: np.ndarray, behavior: np.ndarray, log: bool) -> np.ndarray:
    """``log rho``, ``[n, T]``; a product of hundreds of ratios could overflow or underflow float64."""
    _require_rows(data, target=target, behavior=behavior)
    target, behavior = np.asarray(target, np.float64), np.asarray(behavior, np.float64)
    if not log:
        with np.errstate(divide="ignore", invalid="ignore"):  # -inf where the target never acts so; NaN below 0
            target, behavior = np.log(target), np.log(behavior)
    if not (target < np.inf).all():
        raise UserError("the target's probabilities must be finite and at least 0")
    if not np.isfinite(behavior).all():
        raise UserError("the behaviour's probabilities must be finite and above 0, because it took these actions")
    return _padded(data, target - behavior).cumsum(-1)


def _require_rows(data: Dataset, **columns: np.ndarray) -> None:
    for name, column in columns.items():
        if np.shape(column) != (len(data),):
            raise UserError(f"{name} must have one number for each of the {len(data)} rows, not {np.shape(column)}")


def _padded(data: Dataset, column: np.ndarray) -> np.ndarray:
    """A column ``[rows]`` by episode and step, ``[n, T]`` float64, where T is the length of the longest episode, with 0
    after the first terminal step and after the end of an episode."""
    lengths = data.episode_lengths
    rows = np.zeros((len(lengths), lengths.max()))
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = np.where(until_terminal(data), column, 0.0)
    return rows


def _discounted(values: np.ndarray, gamma: float) -> np.ndarray:
    return values * gamma ** np.arange(values.shape[1])


def _estimated(terms: Sequence[Term], log_last: np.ndarray, weighted: bool, draws: int, seed: int) -> Estimate:
    """The estimate ``sum_t mean_i(w_i,t x_i,t)`` over all terms, with a bootstrap interval over episodes."""
    n = len(log_last)
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws).astype(float)  # [draws, n]
    low, high = np.percentile(_sum_of_steps(terms, times, weighted), [2.5, 97.5])
    value = _sum_of_steps(terms, np.ones((1, n)), weighted)[0]
    last = _relative(log_last)
    effective = last.sum() ** 2 / np.square(last).sum() if last.any() else 0.0
    return Estimate(float(value), (float(low), float(high)), float(effective))


def _sum_of_steps(terms: Sequence[Term], times: np.ndarray, weighted: bool) -> np.ndarray:
    """``sum_t sum_i c_i w_i,t x_i,t / N_t`` for every row c of ``times``, ``[draws]``: N_t is n or, if weighted, the
    sum of the step's weights. A step whose weights are all zero adds nothing."""
    total = np.zeros(len(times))
    for log_weight, value in terms:
        if weighted:
            weight = _relative(log_weight)
            norm = times @ weight  # [draws, T]
            total += np.divide(times @ (weight * value), norm, out=np.zeros_like(norm), where=norm > 0).sum(-1)
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # an infinite weight times 0 is 0 here
                weighed = np.where(value == 0, 0.0, np.exp(log_weight) * value)
            total += times @ weighed.sum(-1) / times.shape[1]
    return total


def _relative(log_weight: np.ndarray) -> np.ndarray:
    """Weights divided by the largest one of their step; 0 where all are zero."""
    largest = log_weight.max(0)
    return np.exp(log_weight - np.where(np.isfinite(largest), largest, 0.0))
