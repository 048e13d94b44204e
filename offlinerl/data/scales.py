"""The scales of observations: mean and standard deviation of every dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from offlinerl.data.columns import BLOCK, blocks
from offlinerl.util.trees import Tree, tree_leaves

Moments = dict[str, tuple[np.ndarray, np.ndarray]]
"""Mean and standard deviation ``[O]``, float64, of every vector of an observation by its path."""

APART = 1000.0
"""Ratio of two standard deviations above which a network loses the smaller one."""

STEADY = 0.5
"""Autocorrelation of a dimension at a lag of one row, below which it is mostly noise."""

WEIGHED = 1 << 22
"""Numbers summed at a time."""

QUIETLY = np.errstate(invalid="ignore", over="ignore")
"""Silences warnings: a NaN or an infinity makes a dimension constant here, and is reported elsewhere."""


def moments(observations: Tree) -> Moments:
    """Mean and standard deviation of every dimension of the vectors ``[M, O]`` among the leaves; images are left out.

    A dimension is constant, with a standard deviation of exactly 0, if it varies by no more than the float32 rounding
    error of its mean. This is relative to the dimension's own magnitude, so that no choice of units turns a signal into
    a constant.
    """
    return {path: _moments(leaf) for path, leaf in tree_leaves(observations) if leaf.ndim == 2}


@QUIETLY
def _moments(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, std = mean_and_deviation(column, (0,))
    single = np.finfo(np.float32)
    return mean, np.where(std > np.maximum(single.eps * abs(mean), single.tiny), std, 0.0)


def mean_and_deviation(column: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation in float64 over some axes, including the first; computed in blocks of rows."""
    count = math.prod(column.shape[axis] for axis in axes)
    size = min(BLOCK, max(1, WEIGHED // max(1, math.prod(column.shape[1:]))))

    def mean_of(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return np.sum([function(block.astype(np.float64)).sum(axes) for block in blocks(column, rows=size)], 0) / count

    mean = mean_of(lambda block: block)
    return mean, np.sqrt(mean_of(lambda block: np.square(block - mean)))


def far_apart(observations: Tree, found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str | None:
    """A sentence that names the dimensions with the smallest and the largest standard deviation, if these differ by
    more than a factor of ``APART``; else None.

    Constant dimensions do not count. For the smallest, neither do dimensions that are mostly noise if there are others,
    such as the reading of a joint that never moves: a network loses nothing without them.

    Args:
        observations: a tree of ``[M, ...]``, in time order.
        found: their ``moments``.
    """
    varying = {(path, d): std[d] for path, (_, std) in found.items() for d in np.flatnonzero(std)}
    if not varying or max(varying.values()) <= APART * min(varying.values()):
        return None
    correlated = {path: _correlation(leaf, found[path][1]) for path, leaf in tree_leaves(observations) if path in found}
    signals = {(path, d): std for (path, d), std in varying.items() if correlated[path][d] >= STEADY} or varying
    least, greatest = min(signals, key=signals.__getitem__), max(varying, key=varying.__getitem__)
    if (ratio := varying[greatest] / varying[least]) <= APART:
        return None
    low, high = (f"{varying[path, d]:.2g} in dimension {d}{path and f' of {path}'}" for path, d in (least, greatest))
    return (
        f"the scales of the observations differ by a factor of {ratio:,.0f} (a standard deviation of {low}, of {high});"
        " fit --agent.normalize true trains on them"
    )


@QUIETLY
def _correlation(column: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Autocorrelation of every dimension at a lag of one row, ``[O]``, from the mean square of successive differences
    (von Neumann, 1941)."""
    if len(column) < 2:
        return np.zeros_like(std)
    steps = (np.diff(block.astype(np.float64), axis=0) for block in blocks(column, more=1))
    change = np.sum([np.square(step).sum(0) for step in steps], 0) / (len(column) - 1)
    return 1 - change / (2 * np.square(np.where(std > 0, std, 1.0)))
