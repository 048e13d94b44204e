"""What a dataset itself tells about its task, if no environment is named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete

from offlinerl.data.columns import blocks
from offlinerl.data.dataset import Dataset
from offlinerl.envs import spaces
from offlinerl.types import Leaf, Spec
from offlinerl.util.errors import UserError, counted
from offlinerl.util.trees import tree_leaves

FEW_DIMENSIONS = 8
"""Number of action dimensions up to which messages give the bounds of each."""

KINDS = ("discrete", "continuous")
"""The kinds of actions."""

LARGEST = (1 << 24) - 1
"""The largest discrete action: float32, in which actions are stored, rounds the odd numbers beyond 2**24."""


def spec_of_data(data: Dataset, kind: str | None = None, action_range: Sequence[Any] | None = None) -> tuple[Spec, str]:
    """The shapes of a dataset's observations, and its actions as far as the data tells.

    Args:
        data: at least one row.
        kind: "discrete" or "continuous"; by default discrete if the source says so, or if it stores one number per row
            in an integer dtype.
        action_range: lower and upper bounds of continuous actions, a number or A numbers each; by default those that
            the source states, or else the range of the data in every dimension.

    Returns:
        The spec, and in words what was assumed about its actions.

    Raises:
        UserError: the actions cannot be of that kind, or are discrete and too large to be told apart, or a range is
            given for discrete actions.
    """
    obs = tuple(Leaf(path, leaf.shape[1:], str(leaf.dtype)) for path, leaf in tree_leaves(data.observations))
    space = spaces.from_json(json.loads(data.provenance.get("action_space") or "{}"))
    if kind is None:
        whole = np.dtype(data.provenance.get("action_dtype", "float32")).kind in "biu" and data.action.shape[1] == 1
        kind = "discrete" if isinstance(space, Discrete) or (space is None and whole) else "continuous"
    low, high = data.action_limits
    if kind == "discrete":
        if action_range is not None:
            raise UserError(f"{data.name} has discrete actions, which have no range: leave out --action-range")
        if data.action.shape[1] != 1 or (np.asarray(data.action) % 1).any():
            raise UserError(f"{data.name}: discrete actions are one whole number a row, and these are not")
        stated = isinstance(space, Discrete)
        first, final = (space.start, space.start + space.n - 1) if stated else (int(low[0]), int(high[0]))
        if max(-first, final) > LARGEST:
            raise UserError(
                f"{data.name} has discrete actions beyond +-{LARGEST:,}, which float32 does not tell apart: number them"
                " from 0 on, and write whole numbers that are no choices as fractions, such as 1.0"
            )
        count = int(final - first) + 1
        basis = "as the dataset states" if stated else "those in the data"
        if not stated and (never := count - _distinct(data.action)):
            basis = f"the range of the data, in which {never:,} of the {counted(count, 'choice')} never"
            basis += " occurs" if never == 1 else " occur"
        spec = Spec(obs, 1, (0.0,), (float(count - 1),), count, int(first))
        return spec, f"discrete actions from {first} to {final}, {basis}"
    basis = "the range of the data, in each dimension its own; --action-range LOW,HIGH sets others"
    if action_range is not None:
        basis = "the bounds as given"
        low, high = bounds_of(action_range, data.action.shape[1], data.name)
    elif isinstance(space, Box) and space.is_bounded() and np.prod(space.shape) == data.action.shape[1]:
        low, high, basis = space.low.ravel(), space.high.ravel(), "the bounds as the dataset states"
    spec = Spec(obs, data.action.shape[1], tuple(map(float, low)), tuple(map(float, high)))
    return spec, f"continuous actions within {bounds_in_words(low, high)}, {basis}"


def bounds_of(action_range: Sequence[Any], A: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A user's lower and upper bounds ``[A]`` for the actions of a dataset.

    Raises:
        UserError: they are of another number of dimensions.
    """
    if (given := np.size(action_range[0])) not in (1, A):
        raise UserError(
            f"{name} has actions of {counted(A, 'dimension')}, and --action-range has bounds of {given}:"
            " give a pair for each"
        )
    low, high = (np.broadcast_to(np.asarray(side, np.float64), A) for side in action_range)
    return low, high


def bounds_in_words(low: Sequence[float], high: Sequence[float]) -> str:
    """Lower and upper bounds ``[A]`` in words; of every dimension if they differ, and these are few."""
    each = [f"{a:.6g} to {b:.6g}" for a, b in zip(low, high, strict=True)]
    if len({*each}) > 1 and len(each) <= FEW_DIMENSIONS:
        return ", ".join(each)
    return f"{np.min(low):.6g} to {np.max(high):.6g}"


def _distinct(actions: np.ndarray) -> int:
    """The number of distinct values in a column."""
    return len(np.unique(np.concatenate([np.unique(block) for block in blocks(actions)])))
