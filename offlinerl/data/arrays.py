"""Datasets from arrays in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from offlinerl.data.columns import as_flags, as_observations, require_finite, single
from offlinerl.data.dataset import Dataset
from offlinerl.util.errors import UserError
from offlinerl.util.trees import Tree, first_leaf, tree_leaves, tree_map

NEEDED = ("obs", "action", "reward", "terminated")


def from_arrays(arrays: Mapping[str, Any], name: str = "arrays") -> Dataset:
    """A dataset of rows, episode after episode.

    Args:
        arrays: ``obs`` ``[rows, ...]``, an array or a dictionary of them; ``action`` ``[rows, A]``, or ``[rows]`` of
            discrete actions; ``reward`` and ``terminated`` ``[rows]``; ``truncated`` ``[rows]``, where an episode was
            cut off, by default nowhere but in the last row; and ``next_obs``, by default the next row's observation,
            without which rows that are cut off are left out.
        name: what to call it.

    Raises:
        UserError: an array is missing, has another length, or holds what is not sound.
    """
    if missing := set(NEEDED) - set(arrays):
        raise UserError(f"the arrays lack {min(missing)}; needed are {', '.join(NEEDED)}")
    lengths = {path: len(leaf) for path, leaf in tree_leaves(dict(arrays))}
    if len(set(lengths.values())) > 1:
        raise UserError(f"the arrays have unequal lengths: {', '.join(f'{k} {n}' for k, n in lengths.items())}")
    obs, action = tree_map(as_observations, arrays["obs"]), as_observations(arrays["action"])
    terminated = as_flags(np.asarray(arrays["terminated"]), "terminated")
    rows = len(first_leaf(obs))
    truncated = as_flags(np.asarray(arrays.get("truncated", np.zeros(rows, bool))), "truncated")
    last = terminated | truncated
    last[-1] = True
    keep = np.ones(rows, bool)
    if "next_obs" in arrays:
        next_obs = tree_map(as_observations, arrays["next_obs"])
    else:
        next_obs = tree_map(lambda leaf: np.concatenate([leaf[1:], leaf[-1:]]), obs)
        final = last & terminated
        next_obs = tree_map(lambda after, own: np.where(_like(final, own), own, after), next_obs, obs)
        keep = ~last | terminated
        last = (last | ~np.r_[keep[1:], True])[keep]
    if not keep.any():
        raise UserError("no row has a successor, so that there is nothing to learn from")
    obs, next_obs = (tree_map(lambda leaf: np.ascontiguousarray(leaf[keep]), tree) for tree in (obs, next_obs))
    reward = single(arrays["reward"], "reward").astype(np.float32)[keep]
    columns = dict(action=action[keep], reward=reward)
    require_finite(name, dict(obs=obs, next_obs=next_obs, **columns))
    kind = str(np.asarray(arrays["action"]).dtype)
    facts = dict(
        format="arrays", action_dtype=kind, rows_in_source=rows, rows_dropped=int((~keep).sum()), reward="none"
    )
    return Dataset.of_rows(
        obs, next_obs, terminated=terminated[keep], last=last, name=name, provenance=facts, **columns
    )


def _like(flags: np.ndarray, column: Tree) -> np.ndarray:
    """Flags ``[rows]`` with the axes of a column."""
    return flags.reshape(-1, *[1] * (column.ndim - 1))
