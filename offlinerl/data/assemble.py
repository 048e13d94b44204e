"""Builds datasets from the episodes of a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from offlinerl.data.builder import Builder
from offlinerl.data.columns import (
    Rounded,
    as_flags,
    as_float32,
    as_observations,
    lost,
    require_finite,
    require_one_length,
    single,
    unmasked,
)
from offlinerl.data.dataset import Dataset
from offlinerl.data.stamps import Stamps
from offlinerl.envs import spaces
from offlinerl.util.errors import NoSteps, UserError
from offlinerl.util.trees import Tree, first_leaf, tree_leaves, tree_map


class Steps(NamedTuple):
    """One episode of T steps as read from a file, not yet checked."""

    obs: Tree  # [T, ...]; or [T + 1, ...], of which the last follows the last action
    action: np.ndarray  # [T, A] or [T]
    reward: np.ndarray  # [T]
    terminated: np.ndarray  # [T] bool, where not to bootstrap from the next observation
    next_obs: Tree = None  # [T, ...], if the file stores them
    place: str = ""  # its place in the file, for messages
    rows: np.ndarray | None = None  # [T] or [T + 1], row numbers in the file; None: rows count from the episode's first
    log_prob: np.ndarray | None = None  # [T], see Dataset
    episode: str | None = None  # its id, if the file has one
    ended: bool = True  # False if the file has an id, and marks no end
    step: np.ndarray | None = None  # [T] or [T + 1], the numbers or times of a table's rows
    unordered: bool = False  # whether it begins only because ``step`` does not increase; see ``stamps.unordered``


def assemble(
    source: str, name: str, episodes: Iterable[Steps], facts: Mapping[str, Any], into: Builder | None = None
) -> Dataset:
    """The dataset of some episodes. A last step without a next observation is dropped, unless it is terminal and needs
    none.

    Args:
        source: where the episodes come from, for messages.
        name: the dataset's name.
        episodes: in their order.
        facts: entries of ``provenance`` besides the row counts.
        into: collects the rows; by default in memory.

    Raises:
        UserError: there are no steps, or they are invalid.
    """
    into = into or Builder(source)
    rows, rewards_dropped, dtypes, rounded, stamps = 0, 0, set(), Rounded(), Stamps()
    first: Steps | None = None
    for steps in episodes:
        first = first or steps
        stamps.see(steps.step, steps.rows, steps.unordered)
        if not len(steps.action):  # at most a single observation
            continue
        rows += len(steps.action)
        dtypes.add(np.asarray(steps.action).dtype)
        part = _rows_of(source, steps)
        rewards_dropped += int(np.count_nonzero(steps.reward))
        if part is not None:
            rewards_dropped -= int(np.count_nonzero(part.reward))
            rounded.see(steps.obs)
            into.add(part, _where(source, steps))
    if not into.rows:
        raise NoSteps(f"{source} holds no step with a successor, so that there is nothing to learn from", rows)
    ids = {} if first is None or first.episode is None else dict(
        first_episode=first.episode, **({} if steps.ended else dict(open_episode=steps.episode))
    )  # fmt: skip
    counts = dict(rows_in_source=rows, rows_dropped=rows - into.rows, action_dtype=str(np.result_type(*dtypes)))
    return into.finish(
        name, {**facts, **counts, **ids, **lost(rewards_dropped), **rounded.facts(), **stamps.facts(), "reward": "none"}
    )


def _rows_of(source: str, steps: Steps) -> Dataset | None:
    """The transitions of one episode; None if it has none."""
    where = _where(source, steps)
    T = len(steps.action)
    obs, next_obs = (
        tree_map(lambda leaf: column_of(leaf, f"{where}: observations"), tree) for tree in (steps.obs, steps.next_obs)
    )
    action = as_float32(column_of(steps.action, f"{where}: actions")).reshape(T, -1)
    reward = single(steps.reward, f"{where}: rewards")
    terminated = as_flags(np.asarray(steps.terminated), f"{where}: terminations")
    log_prob = None if steps.log_prob is None else single(steps.log_prob, f"{where}: log_prob").astype(np.float32)
    lengths = {len(leaf) for _, leaf in tree_leaves(obs)}
    has_last = lengths == {T + 1}
    if log_prob is not None and len(log_prob) != T:
        raise UserError(f"{where}: {len(log_prob)} numbers of log_prob do not match {T} actions; record it again")
    if (lengths != {T} and not has_last) or not len(reward) == len(terminated) == T or (
        next_obs is not None and {len(leaf) for _, leaf in tree_leaves(next_obs)} != {T}
    ):  # fmt: skip
        raise UserError(
            f"{where}: {len(first_leaf(obs))} observations do not match {T} actions, {len(reward)} rewards and"
            f" {len(terminated)} terminations; record it again"
        )
    shape, next_shape = (tree_map(lambda leaf: leaf.shape[1:], tree) for tree in (obs, next_obs))
    if next_obs is not None and shape != next_shape:
        raise UserError(
            f"{where}: next_obs of shape {next_shape} do not match obs of shape {shape}; name or record the same"
            " parts of both"
        )
    if reward.dtype.kind not in "biuf":
        raise UserError(f"{where}: rewards must be numbers, but they are of type {reward.dtype}")
    if not has_last and next_obs is None and T and not terminated[-1]:
        T, has_last = T - 1, True
        action, reward, terminated = action[:T], reward[:T], terminated[:T]
        log_prob = None if log_prob is None else log_prob[:T]
    if not T:
        return None
    reward = as_float32(reward)
    columns = dict(observations=obs, next_observations=next_obs, actions=action, rewards=reward, log_prob=log_prob)
    require_finite(where, columns, steps.rows)
    last = np.arange(T) == T - 1
    columns = dict(action=action, reward=reward, terminated=terminated, last=last, log_prob=log_prob)
    if next_obs is not None and not has_last:
        return Dataset.of_rows(obs, next_obs, **columns)
    at = np.arange(T)
    return Dataset(obs, at, at + 1 if has_last else at + ~last, **columns)


def _where(source: str, steps: Steps) -> str:
    return f"{source}, {steps.place}" if steps.place else source


def column_of(array: Any, what: str) -> np.ndarray:
    """A column as ``[rows, ...]`` with at least two axes, in the dtype that a dataset stores.

    Raises:
        UserError: it holds something other than numbers.
    """
    array = unmasked(array)
    if array.dtype.kind not in "biuf" or not array.ndim:
        raise UserError(f"{what} must be numbers, but they are of type {array.dtype}")
    return as_observations(array)


def concatenate(parts: Sequence[Dataset], source: str = "") -> Dataset:
    """The episodes of several datasets, one after another, with the name, provenance and task of the first.

    Raises:
        UserError: their observations or actions differ in shape.
    """
    first, into = parts[0], Builder(source)
    into.expect(sum(map(len, parts)), sum(len(first_leaf(part.observations)) for part in parts))
    for part in parts:
        into.add(part, part.name)
    return replace(into.finish(first.name, first.provenance), entry=first.entry)


def observed(columns: Mapping[str, np.ndarray], keys: Sequence[str] | None, source: str) -> Tree:
    """What agents see, made from the named parts of observations; see ``offlinerl.envs.spaces.observe``.

    Args:
        columns: the parts by name, ``[T, ...]`` each.
        keys: the parts to use, in this order; by default all.
        source: for messages.

    Raises:
        UserError: a part does not exist, or the parts differ in their number of rows.
    """
    boxes = {
        path: gymnasium.spaces.Box(*((0, 255) if column.dtype == np.uint8 else (-np.inf, np.inf)), column.shape[1:],
                                   column.dtype if column.dtype == np.uint8 else np.float32)
        for path, column in columns.items()
    }  # fmt: skip
    chosen = {}
    for key in keys or boxes:
        if key not in boxes:
            raise spaces.no_part(source, key, boxes)
        chosen[key] = boxes[key]
    require_one_length({key: columns[key] for key in chosen}, source)
    return spaces.observe(chosen, [columns[key] for key in chosen])
