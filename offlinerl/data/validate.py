"""What is wrong with a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import gymnasium
import h5py
import numpy as np

from offlinerl.data import d4rl, load, minari_reader, registry, scales
from offlinerl.data.columns import nonfinite_rows, open_hdf5
from offlinerl.data.registry import Entry
from offlinerl.envs import spaces
from offlinerl.envs.make import make
from offlinerl.util.errors import UserError, reading
from offlinerl.util.trees import Tree, first_leaf, tree_leaves, tree_map


class Finding(NamedTuple):
    """Something wrong with a dataset, or worth a look."""

    kind: str  # unequal lengths, not finite, shape, action range, duplicates, jump, overlapping ends, missing end,
    # scales
    message: str  # one sentence
    rows: np.ndarray  # the rows concerned, counted from 0 in the source
    fault: bool = True  # False for a note on what may well be meant


class _Columns(NamedTuple):
    """A source as it is, sound or not."""

    obs: Tree  # [N, ...]
    action: np.ndarray  # [N, A]
    reward: np.ndarray  # [N]
    terminal: np.ndarray  # [N] bool
    cut: np.ndarray  # [N] bool
    next_obs: Tree  # [N, ...], or None

    @property
    def flat(self) -> np.ndarray:
        """All that an observation holds, ``[N, D]``."""
        return np.concatenate([leaf.reshape(len(leaf), -1) for _, leaf in tree_leaves(self.obs)], 1)


def validate(entry: Entry | str, low: float | None = None, high: float | None = None) -> list[Finding]:
    """Checks a source before it is loaded, which would refuse much of what is reported here.

    Args:
        entry: a dataset, by entry, name or file.
        low: lower bound of continuous actions; by default the source's own or its environment's, or -1 if neither is
            known.
        high: upper bound of continuous actions; likewise, or 1.

    Returns:
        What was found, faults and notes; nothing for a sound dataset.

    Raises:
        UserError: the source cannot be read at all.
    """
    entry = registry.resolve(entry) if isinstance(entry, str) else entry
    path = load.locate(entry)
    with reading(f"the dataset {path}", "get or write it again"):
        columns = _minari_columns(path, entry) if path.is_dir() else _d4rl_columns(path, entry)
        env = _environment(entry)
        space = _action_space(path, env)
    if isinstance(columns, Finding):
        return [columns]
    findings = [_not_finite(columns), *_unfit(columns, entry, env), _outside(columns, space, low, high)]
    findings += [_duplicates(columns), _late_terminals(columns), _far_apart(columns)]
    sure = not (path.is_dir() or entry.overlong or entry.split == "jump")
    findings += [_too_long(columns, entry.steps_allowed if sure else entry.max_episode_steps, sure)]
    if not path.is_dir():  # Minari's episodes have their ends, and every observation its successor
        findings += [_jumps(columns, entry.split), _overlapping(columns), _missing_end(columns)]
    return [finding for finding in findings if len(finding.rows)]


def _d4rl_columns(path: Path, entry: Entry) -> _Columns | Finding:
    with open_hdf5(path) as file:
        lengths = {key: len(file[key]) for key in d4rl.D4RL_KEYS if isinstance(file.get(key), h5py.Dataset)}
        if len(set(lengths.values())) > 1:
            rows = np.arange(min(lengths.values()), max(lengths.values()))
            listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
            return Finding("unequal lengths", f"the columns have unequal lengths: {listed}", rows)
    with d4rl.open_d4rl(path) as file:
        flags = d4rl.episode_flags(file, entry.steps_allowed, entry.split)
        following = file["next_observations"][()] if "next_observations" in file else None
        obs, action, reward = (file[key][()] for key in ("observations", "actions", "rewards"))
        return _Columns(obs, action, reward.reshape(-1), flags.terminal, flags.cut, following)


def _minari_columns(path: Path, entry: Entry) -> _Columns | Finding:
    """Rows of all episodes one after another; unequal lengths are found on the way."""
    columns: list[list[np.ndarray]] = [[], [], [], [], []]
    at = 0
    for number, (obs, action, reward, terminal) in enumerate(minari_reader.minari_episodes(path, entry.obs_keys)):
        steps = len(reward)
        if {*(len(leaf) - 1 for _, leaf in tree_leaves(obs)), len(action), len(terminal)} != {steps}:
            message = (
                f"episode {number} has {len(first_leaf(obs))} observations, {len(action)} actions and {steps} rewards"
            )
            return Finding("unequal lengths", message, np.arange(at, at + steps))
        cut = np.arange(steps) == steps - 1
        for column, part in zip(
            columns, (tree_map(lambda leaf: leaf[:-1], obs), action, reward, terminal, cut & ~terminal), strict=True
        ):
            column.append(part)
        at += steps
    if not at:
        raise UserError(f"{path} is empty: it has no episode")
    obs, *others = columns
    joined = tree_map(lambda *parts: np.concatenate(parts), *obs)
    return _Columns(joined, *map(np.concatenate, others), None)


class _Environment(NamedTuple):
    """What an environment says of its data."""

    name: str
    obs: Tree  # the shapes of an observation's leaves
    action_space: gymnasium.Space


def _environment(entry: Entry) -> _Environment | None:
    """The environment of a dataset, None if it is not known or cannot be made on this machine."""
    try:
        made = entry.env and make(entry.env, seen=False)
    except UserError:
        if "id" in entry.env and entry.name not in registry.names():  # it was asked for
            raise
        return None
    if not made:
        return None
    try:
        seen = spaces.observed(spaces.parts(made.observation_space, entry.obs_keys, entry.env_id))
        return _Environment(entry.env_id, spaces.shapes(seen), made.action_space)
    finally:
        made.close()


def _action_space(path: Path, env: _Environment | None) -> gymnasium.Space | None:
    """Of the environment, or else as a Minari dataset states it; None if no bounds are known."""
    stated = None
    if path.is_dir():
        metadata = registry.minari_metadata(path / "data" if (path / "data").is_dir() else path)
        stated = spaces.from_json(json.loads(metadata.get("action_space", "{}")))
    for space in (env and env.action_space, stated):
        if isinstance(space, gymnasium.spaces.Discrete) or (
            isinstance(space, gymnasium.spaces.Box) and space.is_bounded()
        ):
            return space
    return None


def _unfit(columns: _Columns, entry: Entry, env: _Environment | None) -> list[Finding]:
    """Observations or actions of another shape than the environment's."""
    if env is None:
        return []
    rows = np.arange(len(columns.reward))
    findings = []
    shapes = tree_map(lambda leaf: leaf.shape[1:], columns.obs)
    if shapes not in (env.obs, (), (1,)):  # a lone number may stand for a choice
        message = f"observations have {_sizes(shapes)}, and those of {env.name} {_sizes(env.obs)}"
        findings.append(Finding("shape", message, rows))
    action_dim, space = int(np.prod(columns.action.shape[1:])), env.action_space
    if space.shape is not None and action_dim != int(np.prod(space.shape)):
        message = f"actions have {action_dim} numbers, and those of {env.name} {int(np.prod(space.shape))}"
        findings.append(Finding("shape", message, rows))
    return findings


def _sizes(shapes: Tree) -> str:
    """Shapes of observations in words."""
    if isinstance(shapes, dict):
        return ", ".join(f"{path} {list(shape)}" for path, shape in shapes.items())
    return f"{shapes[0]} numbers" if len(shapes) == 1 else f"the shape {list(shapes)}"


def _not_finite(columns: _Columns) -> Finding:
    bad = {name: nonfinite_rows(column) for name, column in tree_leaves(columns)}
    bad = {name: rows for name, rows in bad.items() if len(rows)}
    listed = ", ".join(f"{name} in {len(rows)} rows" for name, rows in bad.items())
    rows = np.unique(np.concatenate([*bad.values(), np.empty(0, int)]))
    return Finding("not finite", f"there are NaN or infinite values: {listed}", rows)


USUAL = 0.1
"""Share of the actions' entries beyond +-1 from which that cannot have been meant as their bound."""


def _outside(columns: _Columns, space: gymnasium.Space | None, low: float | None, high: float | None) -> Finding:
    """Actions that the environment does not have; without bounds that are known, those beyond +-1, which nearly all
    environments have, are a fault only where they are few."""
    action = columns.action.reshape(len(columns.action), -1)
    if isinstance(space, gymnasium.spaces.Discrete):
        wrong = (action != np.floor(action)) | (action < space.start) | (action >= space.start + space.n)
        message = f"actions are no whole numbers from {space.start} to {space.start + space.n - 1}"
        return Finding("action range", message, np.flatnonzero(wrong.any(axis=1)))
    if action.dtype.kind != "f":
        return Finding("action range", "", np.empty(0, int))
    known = not (low is None and high is None and space is None)
    sides = [-1.0, 1.0] if space is None else [np.ravel(space.low), np.ravel(space.high)]
    sides = [side if asked is None else asked for asked, side in zip((low, high), sides, strict=True)]
    if np.size(sides[0]) not in (1, action.shape[1]):
        return Finding("action range", "", np.empty(0, int))  # another shape, which is told
    outside = (action < sides[0]) | (action > sides[1])
    message = f"{outside.mean():.1%} of the actions' entries lie outside [{np.min(sides[0]):g}, {np.max(sides[1]):g}]"
    fault = known or bool(outside.mean() < USUAL)
    if not fault:
        message += ", and their bounds are not known: name the environment with --env"
    return Finding("action range", message, np.flatnonzero(outside.any(axis=1)), fault)


def _duplicates(columns: _Columns) -> Finding:
    """Rows that repeat an earlier one in observation, action and reward."""
    parts = (columns.flat, columns.action, columns.reward)
    flat = np.concatenate([np.asarray(part, np.float32).reshape(len(part), -1) for part in parts], axis=1)
    rows = np.ascontiguousarray(flat).view(np.dtype((np.void, flat.itemsize * flat.shape[1])))[:, 0]
    first = np.unique(rows, return_index=True)[1]
    repeated = np.ones(len(rows), bool)
    repeated[first] = False
    return Finding("duplicates", "rows repeat an earlier row", np.flatnonzero(repeated), fault=False)


def _far_apart(columns: _Columns) -> Finding:
    """Dimensions of the observations that a network sees little of beside others."""
    message = scales.far_apart(columns.obs, scales.moments(columns.obs))
    return Finding("scales", message or "", np.arange(len(columns.reward) if message else 0), fault=False)


def _jumps(columns: _Columns, split: str | None) -> Finding:
    """Rows whose successor is not the next row, though their episode goes on."""
    end = columns.cut if split == "jump" else columns.terminal | columns.cut
    inside = ~end[:-1]
    if columns.next_obs is not None:
        close = np.isclose(columns.next_obs[:-1], columns.obs[1:], rtol=1e-4, atol=1e-5, equal_nan=True)
        jump = inside & ~close.reshape(len(close), -1).all(axis=1)
        return Finding("jump", "next_observations differ from the next row's observations", np.flatnonzero(jump))
    obs = columns.flat.astype(np.float64)
    if (obs == np.floor(obs)).all():  # states by number, among which near and far mean nothing
        return Finding("jump", "", np.empty(0, int))
    scale = np.nanstd(obs, axis=0)
    scaled = np.diff(obs, axis=0)[:, scale > 1e-6] / scale[scale > 1e-6]
    distance = np.nan_to_num(np.linalg.norm(scaled, axis=1), posinf=0)
    jump = inside & (distance > _farthest_step(distance[inside], distance[~inside]))
    return Finding("jump", "observations jump though the episode goes on", np.flatnonzero(jump))


def _farthest_step(steps: np.ndarray, resets: np.ndarray) -> float:
    """The distance no step covers: well beyond nearly all steps, or nearly a reset where resets stand out."""
    if not len(steps):
        return np.inf
    limit = 1.3 * np.quantile(steps, 0.999)
    if len(resets):
        reset = 0.9 * np.quantile(resets, 0.1)
        if reset > 1.1 * np.quantile(steps, 0.99):
            limit = min(limit, reset)
    return limit


def _overlapping(columns: _Columns) -> Finding:
    both = np.flatnonzero(columns.terminal & columns.cut)
    return Finding("overlapping ends", "rows are both terminal and timed out", both, fault=False)


def _late_terminals(columns: _Columns) -> Finding:
    """A terminal state right after another: the episode went on after its end."""
    again = np.flatnonzero(columns.terminal[:-1] & columns.terminal[1:]) + 1
    return Finding("overlapping ends", "rows are terminal right after a terminal row", again, fault=False)


def _missing_end(columns: _Columns) -> Finding:
    last = len(columns.terminal) - 1
    open_end = not (columns.terminal[last] or columns.cut[last])
    rows = np.array([last] if open_end else [], int)
    return Finding("missing end", "the last row is neither terminal nor timed out", rows, fault=False)


def _too_long(columns: _Columns, steps: int | None, sure: bool) -> Finding:
    """Episodes longer than their environment allows, a note where the data is known to have such."""
    end = columns.terminal | columns.cut
    end[-1] = True
    ends = np.flatnonzero(end)
    long = np.diff(ends, prepend=-1) > (steps or np.inf)
    return Finding("missing end", f"episodes are longer than the {steps} steps of their environment", ends[long], sure)
