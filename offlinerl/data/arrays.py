"""Datasets from arrays in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from offlinerl.data.assemble import column_of
from offlinerl.data.columns import LOG_PROB, Rounded, as_flags, as_float32, lost, require_filled, require_finite, single
from offlinerl.data.dataset import Dataset, near
from offlinerl.util.errors import NoSteps, UserError, did_you_mean, reading
from offlinerl.util.trees import Tree, tree_leaves, tree_map

NEEDED = ("obs", "action")
KNOWN = (*NEEDED, "reward", "terminated", "truncated", "episode", "next_obs", "log_prob")

USUAL = dict(
    observations="obs", actions="action", rewards="reward", terminals="terminated", terminations="terminated",
    timeouts="truncated", truncations="truncated", next_observations="next_obs",
)  # fmt: skip
"""Names that files give these fields."""

EXTRAS = ("infos/", "metadata/")
"""Beginnings of the names of what else D4RL's ``get_dataset`` returns."""


def from_arrays(arrays: Mapping[str, Any], name: str = "arrays") -> Dataset:
    """A dataset from arrays with one row per step, one episode after another.

    Args:
        arrays: ``obs`` ``[rows, ...]``, an array or a dictionary of arrays, which may be nested: its parts are then
            called ``outer/inner``; ``action`` ``[rows, A]``, or ``[rows]`` for discrete actions; ``reward`` and
            ``terminated`` ``[rows]``, by default 0; ``truncated`` ``[rows]``, or ``episode`` ``[rows]``, whose changes
            mark the ends of episodes, by default the rows whose ``next_obs`` is not the next row's observation, and the
            last row; ``next_obs``, by default the next row's observation, in which case truncated rows are dropped; and
            ``log_prob`` ``[rows]``, if known, see ``Dataset``. The names in D4RL's and Minari's files are understood
            too.
        name: the dataset's name.

    Raises:
        UserError: an array is missing, unknown, of another length, or holds invalid values.
    """
    given = {field: of for field, of in arrays.items() if of is not None and not str(field).startswith(EXTRAS)}
    if (log_prob := arrays.get(LOG_PROB)) is not None and np.isfinite(log_prob).all():
        given.setdefault("log_prob", log_prob)
    for usual, field in USUAL.items():
        if usual in given and field in given:
            raise UserError(f"the arrays have {field} twice, also as {usual}: leave one out")
        if usual in given:
            given[field] = given.pop(usual)
    if missing := [field for field in NEEDED if not any(tree_leaves(given.get(field)))]:  # absent, or without parts
        raise UserError(f"the arrays lack {min(missing)}; needed are {', '.join(NEEDED)}")
    if unknown := [str(field) for field in given if field not in KNOWN]:
        hint = did_you_mean(unknown[0], KNOWN, f"known are {', '.join(KNOWN)}")
        raise UserError(f"the arrays have no use for {unknown[0]!r}; {hint}")
    columns: dict[str, Tree] = {}
    episode = given.pop("episode", None)
    for field, of in given.items():
        make = partial(column_of, what=f"{name}: {field}")
        with reading(f"the array {field}", "give numbers, a row a step"):
            parts = field in ("obs", "next_obs") and isinstance(of, Mapping)
            columns[field] = {path: make(leaf) for path, leaf in tree_leaves(of)} if parts else make(of)
    lengths = {path: len(leaf) for path, leaf in tree_leaves(columns)}
    if len(set(lengths.values())) > 1:
        raise UserError(f"the arrays have unequal lengths: {', '.join(f'{k} {n}' for k, n in lengths.items())}")
    obs, rows = columns["obs"], lengths["action"]
    if not rows:
        raise NoSteps(f"{name} are empty: they have no rows")
    _require_rows(columns, name)
    require_filled(name, dict(obs=obs, action=columns["action"]))
    action = as_float32(columns["action"]).reshape(rows, -1)
    columns = dict.fromkeys(("reward", "terminated", "truncated"), np.zeros((rows, 1), np.float32)) | columns
    terminated = as_flags(columns["terminated"], "terminated")
    last = terminated | as_flags(columns["truncated"], "truncated")
    last[-1] = True
    if episode is not None:
        last |= _final_rows(np.asarray(episode), rows, name)
    rounded = Rounded()
    rounded.see(tree_map(np.asarray, given["obs"]), last)
    keep = np.ones(rows, bool)
    if "next_obs" in columns:
        next_obs = columns["next_obs"]
        one, other = (tree_map(lambda leaf: leaf.shape, tree) for tree in (next_obs, obs))
        if one != other:
            raise UserError(f"{name}: next_obs of shape {one} do not match obs of shape {other}")
        if episode is None and "truncated" not in given:
            follows = tree_map(lambda row, after: near(after[:-1], row[1:]), obs, next_obs)
            last[:-1] |= ~np.logical_and.reduce([leaf for _, leaf in tree_leaves(follows)])
    else:
        next_obs = tree_map(lambda leaf: np.concatenate([leaf[1:], leaf[-1:]]), obs)
        final = last & terminated
        next_obs = tree_map(lambda after, own: np.where(_like(final, own), own, after), next_obs, obs)
        keep = ~last | terminated
        last = (last | ~np.r_[keep[1:], True])[keep]
    if not keep.any():
        raise NoSteps("no row has a successor, so that there is nothing to learn from", rows)
    obs, next_obs = (tree_map(lambda leaf: np.ascontiguousarray(leaf[keep]), tree) for tree in (obs, next_obs))
    singles = [field for field in ("reward", "log_prob") if field in columns]
    numbers = dict(action=action[keep], **{field: single(columns[field], field)[keep] for field in singles})
    require_finite(name, dict(obs=obs, next_obs=next_obs, **numbers), np.flatnonzero(keep))
    kind = str(np.asarray(given["action"]).dtype)
    facts = dict(
        format="arrays", action_dtype=kind, rows_in_source=rows, rows_dropped=int((~keep).sum()), reward="none",
        **lost(int(np.count_nonzero(single(columns["reward"], "reward")[~keep]))), **rounded.facts(),
    )  # fmt: skip
    if episode is None and not given.keys() & {"terminated", "truncated", "next_obs"}:
        facts["unmarked_ends"] = [dict(file="the arrays", rows=rows)]
    return Dataset.of_rows(
        obs, next_obs, terminated=terminated[keep], last=last, name=name, provenance=facts, **numbers
    )


def _require_rows(columns: Mapping[str, Tree], name: str) -> None:
    """Raises a UserError if the arrays seem to be ``[episodes, steps, ...]``."""
    shape = columns["action"].shape
    if len(shape) > 2 and all(leaf.ndim > 2 and leaf.shape[:2] == shape[:2] for _, leaf in tree_leaves(columns["obs"])):
        raise UserError(
            f"{name} seem to be {shape[0]} episodes of {shape[1]} steps: give one row a step, as in"
            f" action.reshape(-1, {shape[-1]}), and number the episodes, as in"
            f" episode=numpy.repeat(range({shape[0]}), {shape[1]})"
        )


def _final_rows(episode: np.ndarray, rows: int, name: str) -> np.ndarray:
    """``[rows]`` bool, the last row of each episode, given the episode of every row.

    Raises:
        UserError: there is not one episode per row, or the rows of one are not together.
    """
    if episode.shape == (rows, 1):
        episode = episode[:, 0]
    if episode.shape != (rows,):
        raise UserError(f"{name}: episode has shape {episode.shape}, but there are {rows} rows: give one number a row")
    final = np.r_[episode[1:] != episode[:-1], True]
    ids = episode[final].tolist()
    if apart := [one for one, count in Counter(ids).items() if count > 1]:
        raise UserError(f"{name}: the rows of episode {apart[0]} are not together: sort them by episode")
    return final


def _like(flags: np.ndarray, column: Tree) -> np.ndarray:
    """Flags ``[rows]``, reshaped to broadcast against a column."""
    return flags.reshape(-1, *[1] * (column.ndim - 1))
