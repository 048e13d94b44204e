"""The scales of observations: the mean and the deviation of every dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from offlinerl.data.columns import BLOCK, blocks
from offlinerl.util.trees import Tree, tree_leaves

Moments = dict[str, tuple[np.ndarray, np.ndarray]]
"""Mean and standard deviation ``[O]``, float64, of every vector of an observation by its path."""

APART = 1000.0
"""Factor between two deviations from which the smaller one is lost on a network."""

STEADY = 0.5
"""Correlation of a dimension with itself one row later, below which it is mostly noise."""

WEIGHED = 1 << 22
"""Numbers that are added up at a time."""

QUIETLY = np.errstate(invalid="ignore", over="ignore")
"""A NaN or an infinity makes a dimension constant here, and is reported elsewhere."""


def moments(observations: Tree) -> Moments:
    """Mean and deviation of every dimension of the vectors ``[M, O]`` among the leaves; images are left out.

    A dimension is constant, with a deviation of exactly 0, where it deviates by no more than float32 rounds its mean:
    that is relative to the dimension's own size, so that no choice of units makes a signal a constant.
    """
    return {path: _moments(leaf) for path, leaf in tree_leaves(observations) if leaf.ndim == 2}


@QUIETLY
def _moments(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, std = mean_and_deviation(column, (0,))
    single = np.finfo(np.float32)
    return mean, np.where(std > np.maximum(single.eps * abs(mean), single.tiny), std, 0.0)


def mean_and_deviation(column: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over some axes, of which the first is one, in float64; a block of rows at a time."""
    count = math.prod(column.shape[axis] for axis in axes)
    size = min(BLOCK, max(1, WEIGHED // max(1, math.prod(column.shape[1:]))))

    def mean_of(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return np.sum([function(block.astype(np.float64)).sum(axes) for block in blocks(column, rows=size)], 0) / count

    mean = mean_of(lambda block: block)
    return mean, np.sqrt(mean_of(lambda block: np.square(block - mean)))


def far_apart(observations: Tree, found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str | None:
    """A sentence that names the dimensions with the least and the greatest deviation if they are further than ``APART``
    from each other; None if they are not.

    Constant dimensions do not count, nor as the least those that are mostly noise beside others that are not, such as
    the reading of a joint that nobody moves: a network loses nothing with them.

    Args:
        observations: a tree of ``[M, ...]``, in the order of time.
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
    """Of every dimension with itself one row later, ``[O]``, by the mean square of its steps (von Neumann, 1941)."""
    if len(column) < 2:
        return np.zeros_like(std)
    steps = (np.diff(block.astype(np.float64), axis=0) for block in blocks(column, more=1))
    change = np.sum([np.square(step).sum(0) for step in steps], 0) / (len(column) - 1)
    return 1 - change / (2 * np.square(np.where(std > 0, std, 1.0)))
