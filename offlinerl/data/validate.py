"""Finds what is wrong with a dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium
import h5py
import numpy as np
from gymnasium.spaces import Box, Discrete

from offlinerl.data import d4rl, describe, formats, load, minari_reader, registry, scales
from offlinerl.data.assemble import Steps, column_of
from offlinerl.data.builder import Builder, Kinds, difference, kinds_of
from offlinerl.data.columns import as_flags, as_float32, nonfinite_rows, open_hdf5, require_filled, single
from offlinerl.data.dataset import near
from offlinerl.data.inferred import bounds_of, spec_of_data
from offlinerl.data.mapping import known_columns, remember
from offlinerl.data.registry import Entry
from offlinerl.envs import checks, spaces
from offlinerl.envs.make import make
from offlinerl.util.errors import NoSteps, UserError, reading
from offlinerl.util.trees import Tree, first_leaf, tree_leaves, tree_map


class Finding(NamedTuple):
    """A fault in a dataset, or something worth a look. Its kind is one of: unequal lengths, not finite, shape, action
    range, duplicates, jump, overlapping ends, missing end, scales, refused, or a key of ``describe.NOTES``."""

    kind: str
    message: str  # one sentence
    rows: np.ndarray  # the rows concerned, counted from 0 in the source; may be empty
    fault: bool = True  # False for a note on something that may be intended
    # the same rows by the file or episode they are in, counted from 0 there
    places: Mapping[str, np.ndarray] = MappingProxyType({})


class _Columns(NamedTuple):
    """A source as stored, valid or not."""

    obs: Tree  # [N, ...]
    action: np.ndarray  # [N, A]
    reward: np.ndarray  # [N]
    terminated: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] bool
    next_obs: Tree  # [N, ...], or None

    @property
    def flat(self) -> np.ndarray:
        """All numbers of an observation, ``[N, D]``."""
        return np.concatenate([leaf.reshape(len(leaf), -1) for _, leaf in tree_leaves(self.obs)], 1)


class _Piece(NamedTuple):
    """The T steps of an episode, or of a piece of one."""

    columns: _Columns
    rows: np.ndarray  # [T], row numbers in the source
    place: str  # the file or the episode in it, for messages; "" if that is the source
    inner: np.ndarray  # [T], row numbers at that place
    episode: tuple[Any, ...]  # which episode this is; the pieces of a table that does not say so are of one


class _Places(NamedTuple):
    """Where the rows of pieces are, one after another."""

    rows: np.ndarray  # [N], row numbers in the source
    inner: np.ndarray  # [N], row numbers at their place
    place: np.ndarray  # [N], the place of each, among ``names``
    episode: np.ndarray  # [N], the number of its episode
    names: list[str]

    @classmethod
    def of(cls, pieces: Sequence[_Piece]) -> _Places:
        lengths = [len(piece.rows) for piece in pieces]
        names, episodes = (list(dict.fromkeys(of)) for of in zip(*((p.place, p.episode) for p in pieces), strict=True))
        place, episode = ({of: number for number, of in enumerate(known)} for known in (names, episodes))
        numbers = [(place[piece.place], episode[piece.episode]) for piece in pieces]
        return cls(
            np.concatenate([piece.rows for piece in pieces]), np.concatenate([piece.inner for piece in pieces]),
            *np.repeat(numbers, lengths, axis=0).T, names,
        )  # fmt: skip

    def located(self, finding: Finding) -> Finding:
        """A finding, whose rows are places among all pieces, with its rows in the source."""
        at = finding.rows
        at = at[np.lexsort([self.inner[at], self.place[at]])]
        begins = np.flatnonzero(np.diff(self.place[at], prepend=-1))
        parts = zip(self.place[at[begins]], np.split(self.inner[at], begins[1:]), strict=True)
        places = {self.names[number]: inner for number, inner in parts if self.names[number]}
        return finding._replace(rows=np.sort(self.rows[at]), places=places)


def validate(entry: Entry | str, action_range: Sequence[Any] | None = None) -> list[Finding]:
    """Checks a dataset. Returns faults and notes, none for a sound dataset. Whatever loading refuses is a fault.

    Args:
        entry: one of the registry, a name or a file.
        action_range: lower and upper bounds of every action vector, a number or A numbers each; by default those of its
            environment, or those that the dataset states.

    Raises:
        UserError: the source cannot be read at all.
    """
    entry = asked = registry.resolve(entry) if isinstance(entry, str) else entry
    path = load.locate(entry)
    kind = formats.kind_of(path, entry.columns)
    if kind == "written":
        raise UserError(f"{path} was written by Dataset.write, of what had been checked: validate its source")
    if kind == "d4rl":
        with open_hdf5(path) as file:
            said, split = d4rl.stated_split(file, entry.split)
        entry = replace(entry, split=split, overlong=said or entry.overlong)
    with reading(f"the dataset {path}", "download or write it again"):
        if kind == "d4rl":
            found = _d4rl_columns(path, entry)
        else:
            found = _joined(_minari_pieces(path, entry) if kind == "minari" else _pieces(kind, path, entry), path)
        if isinstance(found, Finding):
            return [found]
        columns, places = found
        require_filled(str(path), dict(observations=columns.obs, actions=columns.action))
        findings = _found(columns, places, entry, path, kind, action_range)
    if not any(finding.fault for finding in findings):
        return findings + _loaded(path, asked)
    if asked.columns is not None:
        remember(path, asked.columns)
    return findings


def _found(
    columns: _Columns,
    places: _Places | None,
    entry: Entry,
    path: Path,
    kind: str,
    action_range: Sequence[Any] | None,
) -> list[Finding]:
    """What the checks find in the rows of a source."""
    env = _spaces(entry)
    unfit = _unfit(columns, entry.env_id, *env) if env else []
    if action_range is not None and env and isinstance(env[1], Discrete):
        raise UserError(f"the actions of {entry.env_id} are discrete: leave out --action-range")
    if action_range is None:
        bounds = _with_bounds(env and env[1], path, kind)
    else:
        A = int(np.prod(columns.action.shape[1:]))
        bounds = Box(*bounds_of(action_range, A, entry.name), dtype=np.float64)
    findings = [_not_finite(columns), *unfit, _outside(columns, bounds)]
    findings += [_duplicates(columns), _late_terminals(columns, places, entry.split), _far_apart(columns)]
    sure = kind != "minari" and not (entry.overlong or entry.split)
    findings += [_too_long(columns, entry.steps_allowed if sure else entry.max_episode_steps, sure)]
    if kind == "d4rl" or columns.next_obs is not None:  # in others, successors are next rows by definition
        findings += [_jumps(columns, entry.split)]
    if kind == "d4rl":  # others store whole episodes
        findings += [_overlapping(columns), _missing_end(columns)]
    findings = [finding for finding in findings if len(finding.rows)]
    return findings if places is None else [places.located(finding) for finding in findings]


def _loaded(path: Path, entry: Entry) -> list[Finding]:
    """Why loading a dataset, or training on it without an environment, is refused, if no other check has found that;
    and what loading leaves out."""
    try:
        data = load.read(path, entry, "lossless", Builder(str(path)))
        for _, leaf in tree_leaves(data.observations):
            if leaf.ndim > 2:
                spaces.require_image_axes(leaf.shape[1:])
        if entry.env is None:
            spec_of_data(data)
    except UserError as error:
        return [Finding("refused", str(error), np.empty(0, int))]
    if entry.columns is not None:
        remember(path, entry.columns)
    notes = ((kind, find(data)) for kind, find in describe.NOTES.items())
    return [Finding(kind, note, np.empty(0, int), fault=False) for kind, note in notes if note]


def _d4rl_columns(path: Path, entry: Entry) -> tuple[_Columns, None] | Finding:
    with open_hdf5(path) as file:
        lengths = {key: len(file[key]) for key in d4rl.D4RL_KEYS if isinstance(file.get(key), h5py.Dataset)}
        if len(set(lengths.values())) > 1:
            rows = np.arange(min(lengths.values()), max(lengths.values()))
            listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
            return Finding("unequal lengths", f"the columns have unequal lengths: {listed}", rows)
    with d4rl.open_d4rl(path) as file:
        flags, every = d4rl.episode_flags(file, entry.steps_allowed, entry.split), ("timeouts", d4rl.MASKS)
        timeout = flags.timeout & ~flags.terminal if entry.split in every else flags.timeout  # timeouts mark every end
        following = file["next_observations"][()] if "next_observations" in file else None
        obs, action, reward = file["observations"][()], file["actions"][()], d4rl.rewards_of(file)
        return _Columns(obs, action, reward, flags.terminal, timeout, following), None


def _minari_pieces(path: Path, entry: Entry) -> list[_Piece] | Finding:
    """All episodes, or a finding on the first one with unequal lengths."""
    pieces, at = [], 0
    for number, (obs, action, reward, terminated, _) in enumerate(minari_reader.minari_episodes(path, entry.obs_keys)):
        steps, place = len(reward), f"episode {number}"
        rows = np.arange(at, at + steps)
        if {*(len(leaf) - 1 for _, leaf in tree_leaves(obs)), len(action), len(terminated)} != {steps}:
            message = f"{place} has {len(first_leaf(obs))} observations, {len(action)} actions and {steps} rewards"
            return Finding("unequal lengths", message, rows)
        truncated = (np.arange(steps) == steps - 1) & ~terminated
        columns = _Columns(tree_map(lambda leaf: leaf[:-1], obs), action, reward, terminated, truncated, None)
        if steps:
            pieces.append(_Piece(columns, rows, place, rows - at, (number,)))
        at += steps
    return pieces


def _pieces(kind: str, path: Path, entry: Entry) -> list[_Piece]:
    """All episodes in the other formats; row numbers continue across files."""
    files = [(path, entry)]
    if kind == "several":
        entry = replace(entry, columns=entry.columns or known_columns(path))
        files = formats.several(formats.files_of(path), entry)
    pieces, total = [], 0
    for file, one in files:
        before, shown = total, _within(path, file)
        with suppress(NoSteps):  # one of several files may have no steps
            its = _kind_of_one(file, one)
            for steps in formats.episodes_of(its, file, one):
                T = len(steps.action)
                rows = total + np.arange(T) if steps.rows is None else before + steps.rows
                total = max(total, rows.max(initial=-1) + 1)
                if T:
                    columns = _of_steps(steps, f"{file}, {steps.place}")
                    inner = np.arange(T) if steps.rows is None else steps.rows[:T]
                    place = ", ".join(filter(None, (shown, steps.place if steps.rows is None else "")))
                    episode = (file, steps.episode if its == "table" else steps.place)
                    pieces.append(_Piece(columns, rows[:T], place, inner, episode))
    if any(piece.columns.next_obs is not None for piece in pieces):  # the others then get the next row's observation
        pieces = [
            piece if piece.columns.next_obs is not None else piece._replace(columns=_with_next_rows(piece.columns))
            for piece in pieces
        ]
    return pieces


def _within(path: Path, file: Path) -> str:
    """The name of one of the files of a folder or pattern; "" if it is the only one."""
    if file == path:
        return ""
    return str(file.relative_to(path) if path.is_dir() else file)


def _joined(pieces: list[_Piece] | Finding, path: Path) -> tuple[_Columns, _Places] | Finding:
    """The columns of all pieces, one after another, or a finding on the first one that differs from those before it."""
    if isinstance(pieces, Finding):
        return pieces
    if not pieces:
        raise UserError(f"{path} is empty: it has no episode")
    kinds = [_kinds(piece.columns) for piece in pieces]
    for piece, its in zip(pieces, kinds, strict=True):
        if message := difference(its, kinds[0]):
            return Finding("shape", f"{piece.place}: {message}", piece.rows)
    columns = tree_map(lambda *parts: np.concatenate(parts), *(piece.columns for piece in pieces))
    return columns, _Places.of(pieces)


def _kinds(columns: _Columns) -> Kinds:
    return kinds_of(observations=columns.obs, next_observations=columns.next_obs, actions=columns.action)


def _of_steps(steps: Steps, where: str) -> _Columns:
    """The steps of an episode, at least one, as stored."""
    T, kept = len(steps.action), partial(column_of, what=f"{where}: observations")
    obs, next_obs = (tree_map(lambda leaf: kept(leaf[:T]), tree) for tree in (steps.obs, steps.next_obs))
    terminated = as_flags(np.asarray(steps.terminated), f"{where}: terminations")
    truncated = (np.arange(T) == T - 1) & ~terminated
    reward, action = single(steps.reward, f"{where}: rewards"), np.reshape(steps.action, (T, -1))
    return _Columns(obs, action, reward, terminated, truncated, next_obs)


def _with_next_rows(columns: _Columns) -> _Columns:
    """The columns of an episode, with the next row's observation as ``next_obs``; the last row gets its own."""
    return columns._replace(next_obs=tree_map(lambda leaf: np.concatenate([leaf[1:], leaf[-1:]]), columns.obs))


def _kind_of_one(file: Path, entry: Entry) -> str:
    kind = formats.kind_of(file, entry.columns)
    if kind not in formats.FORMATS:
        with open_hdf5(file):
            raise UserError(f"several files of this kind are validated one by one: name {file} alone")
    return kind


def _spaces(entry: Entry) -> tuple[gymnasium.Space, gymnasium.Space] | None:
    """The spaces of the observations, as agents see them, and of the actions in a dataset's environment; None if it is
    unknown or cannot be made on this machine."""
    if entry.env is None:
        return None
    try:
        made = make(entry.env, observed=False)
    except UserError:
        if "id" in entry.env and entry.name not in registry.names():  # the user asked for it
            raise
        return None
    with checks.closing(made):
        return spaces.observed(spaces.parts(made.observation_space, entry.obs_keys, entry.env_id)), made.action_space


def _with_bounds(known: gymnasium.Space | None, path: Path, kind: str) -> gymnasium.Space | None:
    """The action space, if known, or else as a Minari dataset states it; None if it has no bounds."""
    stated = None
    if kind == "minari":
        stated = spaces.from_json(json.loads(registry.minari_metadata(path).get("action_space", "{}")))
    for space in (known, stated):
        if isinstance(space, Discrete) or (isinstance(space, Box) and space.is_bounded()):
            return space
    return None


def _unfit(columns: _Columns, env_id: str, obs_space: gymnasium.Space, action_space: gymnasium.Space) -> list[Finding]:
    """Observations or actions whose shape differs from the environment's."""
    rows, findings = np.arange(len(columns.reward)), []
    have, due = tree_map(lambda leaf: leaf.shape[1:], columns.obs), spaces.shapes(obs_space)
    if have not in (due, (), (1,)):  # a single number may be a discrete observation
        message = f"observations have {_sizes(have)}, and those of {env_id} {_sizes(due)}"
        findings.append(Finding("shape", message, rows))
    action_dim = int(np.prod(columns.action.shape[1:]))
    if action_space.shape is not None and action_dim != int(np.prod(action_space.shape)):
        message = f"actions have {action_dim} numbers, and those of {env_id} {int(np.prod(action_space.shape))}"
        findings.append(Finding("shape", message, rows))
    return findings


def _sizes(shapes: Tree) -> str:
    """Shapes of observations in words."""
    if isinstance(shapes, dict):
        return ", ".join(f"{path} {list(shape)}" for path, shape in shapes.items())
    return f"{shapes[0]} numbers" if len(shapes) == 1 else f"the shape {list(shapes)}"


def _not_finite(columns: _Columns) -> Finding:
    bad = {name: nonfinite_rows(_as_kept(column)) for name, column in tree_leaves(columns)}
    bad = {name: rows for name, rows in bad.items() if len(rows)}
    listed = ", ".join(f"{name} in {len(rows)} rows" for name, rows in bad.items())
    rows = np.unique(np.concatenate([*bad.values(), np.empty(0, int)]))
    return Finding("not finite", f"there are NaN or infinite values: {listed}", rows)


def _as_kept(column: np.ndarray) -> np.ndarray:
    """Numbers as a dataset stores them; some may become infinite that were finite in the source."""
    return as_float32(column) if column.dtype == np.float64 else column


USUAL = 0.01
"""Fraction of action entries beyond +-1 above which +-1 cannot be the intended bounds."""


def _outside(columns: _Columns, space: gymnasium.Space | None) -> Finding:
    """Actions outside the environment's bounds. If the bounds are unknown, actions beyond +-1, the most common bounds,
    are a fault only if they are few."""
    action = columns.action.reshape(len(columns.action), -1)
    if isinstance(space, Discrete):
        wrong = (action != np.floor(action)) | (action < space.start) | (action >= space.start + space.n)
        message = f"actions are no whole numbers from {space.start} to {space.start + space.n - 1}"
        return Finding("action range", message, np.flatnonzero(wrong.any(axis=1)))
    if action.dtype.kind != "f" and space is None:
        return Finding("action range", "", np.empty(0, int))
    low, high = (-1.0, 1.0) if space is None else (np.ravel(space.low), np.ravel(space.high))
    if np.size(low) not in (1, action.shape[1]):
        return Finding("action range", "", np.empty(0, int))  # a wrong shape is a separate finding
    outside = (action < low) | (action > high)
    bounds = f"[{np.min(low):g}, {np.max(high):g}]"
    if np.ptp(low) or np.ptp(high):  # each dimension has its own
        bounds = f"the bounds of dimension {', '.join(map(str, np.flatnonzero(outside.any(axis=0))))}"
    message = f"{outside.mean():.1%} of the actions' entries lie outside {bounds}"
    fault = space is not None or bool(outside.mean() < USUAL)
    if space is None:
        message += ", and their bounds are not known: name the environment with --env, or give --action-range LOW,HIGH"
    return Finding("action range", message, np.flatnonzero(outside.any(axis=1)), fault)


def _duplicates(columns: _Columns) -> Finding:
    """Rows that repeat an earlier row's observation, action and reward."""
    parts = (leaf for _, leaf in tree_leaves((columns.obs, columns.action, columns.reward)))
    raw = [np.ascontiguousarray(part).reshape(len(part), -1).view(np.uint8) for part in parts]
    flat = np.concatenate(raw, axis=1)
    rows = flat.view(np.dtype((np.void, flat.shape[1])))[:, 0]
    first = np.unique(rows, return_index=True)[1]
    repeated = np.delete(np.arange(len(rows)), first)
    return Finding("duplicates", "rows repeat an earlier row", repeated, fault=False)


def _far_apart(columns: _Columns) -> Finding:
    """Dimensions of the observations that are so small beside others that a network hardly sees them."""
    message = scales.far_apart(columns.obs, scales.moments(columns.obs))
    return Finding("scales", message or "", np.arange(len(columns.reward) if message else 0), fault=False)


def _jumps(columns: _Columns, split: str | None) -> Finding:
    """Rows whose next observation is not that of the next row, although the episode continues."""
    end = columns.truncated if split else columns.terminated | columns.truncated
    inside = ~end[:-1]
    if columns.next_obs is not None:
        have, due = (tree_map(lambda leaf: leaf.shape[1:], tree) for tree in (columns.next_obs, columns.obs))
        if have != due:
            message = f"next_observations have {_sizes(have)}, and observations {_sizes(due)}"
            return Finding("shape", message, np.arange(len(columns.reward)))
        jump = np.zeros_like(inside)
        for (_, successor), (_, current) in zip(tree_leaves(columns.next_obs), tree_leaves(columns.obs), strict=True):
            known = inside.copy()
            for column in (successor[:-1], current[1:]):
                known[nonfinite_rows(column)] = False
            jump |= known & ~near(successor[:-1], current[1:])
        return Finding("jump", "next_observations differ from the next row's observations", np.flatnonzero(jump))
    obs = columns.flat.astype(np.float64)
    if (obs == np.floor(obs)).all():  # discrete states, for which distances mean nothing
        return Finding("jump", "", np.empty(0, int))
    scale = np.nanstd(obs, axis=0)
    scaled = np.diff(obs, axis=0)[:, scale > 1e-6] / scale[scale > 1e-6]
    distance = np.nan_to_num(np.linalg.norm(scaled, axis=1), posinf=0)
    jump = inside & (distance > _farthest_step(distance[inside], distance[~inside]))
    return Finding("jump", "observations jump though the episode goes on", np.flatnonzero(jump))


def _farthest_step(steps: np.ndarray, resets: np.ndarray) -> float:
    """The largest distance a step may cover: well beyond nearly all steps, or just below that of resets if these stand
    out."""
    if not len(steps):
        return np.inf
    limit = 1.3 * np.quantile(steps, 0.999)
    reset = 0.9 * np.quantile(resets, 0.1) if len(resets) else 0
    return min(limit, reset) if reset > 1.1 * np.quantile(steps, 0.99) else limit


def _overlapping(columns: _Columns) -> Finding:
    both = np.flatnonzero(columns.terminated & columns.truncated)
    return Finding("overlapping ends", "rows are both terminal and timed out", both, fault=False)


def _late_terminals(columns: _Columns, places: _Places | None, split: str | None) -> Finding:
    """A terminal state right after another of the same episode, as far as the source tells episodes apart: it continued
    after its end, which is intended in AntMaze."""
    if split:
        return Finding("overlapping ends", "", np.empty(0, int))
    again = columns.terminated[:-1] & columns.terminated[1:]
    if places is not None:
        again &= places.episode[:-1] == places.episode[1:]
    rows = np.flatnonzero(again) + 1
    return Finding("overlapping ends", "rows are terminal right after a terminal row", rows, fault=False)


def _missing_end(columns: _Columns) -> Finding:
    rows = np.flatnonzero(~(columns.terminated | columns.truncated)[-1:]) + len(columns.reward) - 1
    return Finding("missing end", "the last row is neither terminal nor timed out", rows, fault=False)


def _too_long(columns: _Columns, steps: int | None, sure: bool) -> Finding:
    """Episodes beyond their environment's time limit; a note if the data is known to have such."""
    end = columns.terminated | columns.truncated
    end[-1] = True
    ends = np.flatnonzero(end)
    long = np.diff(ends, prepend=-1) > (steps or np.inf)
    return Finding("missing end", f"episodes are longer than the {steps} steps of their environment", ends[long], sure)
