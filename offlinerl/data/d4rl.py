"""Reads files in D4RL's format, in which flags mark the ends of episodes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium
import h5py
import numpy as np

from offlinerl.data.builder import Builder
from offlinerl.data.columns import (
    BLOCK,
    LOG_PROB,
    REWRITE,
    Finite,
    Rounded,
    as_flags,
    as_float32,
    as_observations,
    checked_actions,
    lost,
    masks_mark_ends,
    open_hdf5,
    usable_log_prob,
)
from offlinerl.data.dataset import Dataset
from offlinerl.envs import checks, spaces
from offlinerl.envs.make import make
from offlinerl.util.errors import NoSteps, UserError

Mode = Literal["lossless", "d4rl"]

MOST_BYTES = 1 << 24
"""Bytes of observations read at a time."""

JUMP = 2.0
"""Metres that an AntMaze ant cannot cover in one step of 0.1 s. A reset moves it further, or a timeout marks the
reset."""


def load_hdf5(
    path: str | Path,
    mode: Mode = "lossless",
    *,
    name: str = "",
    max_episode_steps: int | None = None,
    split: str | None = None,
    longest: int | None = None,
    env: Mapping[str, Any] | None = None,
    into: Builder | None = None,
) -> Dataset:
    """Reads a file in D4RL's format: ``observations [N, O]``, ``actions [N, A]`` and, if the file has them, ``rewards
    [N]``, ``terminals [N]``, ``timeouts [N]`` and ``next_observations [N, O]``. The flags that end episodes may also
    have the other names in ``TERMINAL``, ``TIMEOUT`` and ``END``, and one of the columns in ``EPISODE`` may identify
    the episodes. From ``infos`` it reads ``action_log_probs [N]``, unless they are not finite. Without rewards, all are
    0. Without flags, episodes and a time limit, the file is one episode; the provenance then has ``unmarked_ends``.

    The next observation of a row comes from ``next_observations``, or else from the next row of the same episode. The
    lossless mode keeps every row that has a next observation, and every row that ends in a terminal state, where none
    is needed. The d4rl mode gives exactly the rows of ``d4rl.qlearning_dataset``: it drops the rows that time out and
    the last row, and always takes the next row as the successor.

    Args:
        mode: "lossless" or "d4rl".
        name: the dataset's name; by default the file's.
        max_episode_steps: time limit at which episodes were truncated, for files without ``timeouts``.
        split: "jump" ends episodes where the position (columns 0 and 1) jumps or the episode times out, never at
            ``terminals``; AntMaze needs this, because the ant walks on beyond the goal. "timeouts" ends them at
            timeouts only. What the file itself states about its ends, see ``ENDS``, takes precedence.
        longest: maximum number of steps in an episode, unless episodes are split or the file states where they end;
            None: no limit.
        env: the environment the data was collected in, see ``offlinerl.envs.make``; it is made for its spaces, and only
            if the rows may hold discrete values.
        into: collects the rows; by default in memory.

    Raises:
        UserError: the file is missing, damaged, empty, lacks a key, has wrong shapes or non-finite values, flags other
            than 0 and 1, discrete values that its environment does not have, or an episode that is too long.

    Source: Fu et al., D4RL, 2020, and ``d4rl/__init__.py`` of its repository.
    """
    path = Path(path)
    if mode not in ("lossless", "d4rl"):
        raise UserError(f"unknown mode {mode!r}; choose lossless or d4rl")
    with open_d4rl(path) as file:
        origin = _origin(file)
        said, split = stated_split(file, split)
        split = None if split == MASKS and mode == "d4rl" else split  # D4RL has no masks
        rows = len(file["actions"])
        flags = episode_flags(file, max_episode_steps, split)
        terminals, timeout = flags.terminal, flags.timeout
        has_next = "next_observations" in file and mode == "lossless"
        end = timeout.copy() if split else timeout | terminals
        end[-1] = True
        if longest is not None and not said and split in (None, MASKS):
            _require_short(path, end, longest)
        observation_space, action_space = _spaces_of(file, env)
        if mode == "d4rl":
            keep = ~(timeout if flags.timeout_known else _d4rl_timeouts(terminals, max_episode_steps or rows + 1))
            keep[-1] = False
        else:
            keep = np.ones(rows, bool) if has_next else ~end | terminals
        if not keep.any():
            raise NoSteps(f"{path}: no row has a successor, so that there is nothing to learn from", rows)
        count, finite, log_prob = int(keep.sum()), Finite(), None
        if LOG_PROB in file:
            log_prob = usable_log_prob(file[LOG_PROB][()], rows)
        rounded = Rounded()
        rounded.see(file["observations"], end)
        last = end | ~np.r_[keep[1:], False]  # an episode also ends before a dropped row
        into = into or Builder(str(path))
        into.expect(count, count + int(last[keep].sum()))
        action_dtype, rewards_dropped = str(file["actions"].dtype), rewards_of(file)[~keep]
        parts = _parts(file, keep, has_next, observation_space, finite)
        for (kept, obs, next_obs, action, reward), ahead in with_next(parts):
            if mode == "lossless" and not has_next:
                final = last[kept] & terminals[kept]
                next_obs[final] = obs[final]
            action = checked_actions(action, action_space, str(path), kept)
            into.add(
                Dataset.of_rows(
                    obs, next_obs, ahead and ahead[1][:1], action=action, reward=reward, terminated=terminals[kept],
                    last=last[kept], log_prob=None if log_prob is None else log_prob[kept],
                )
            )  # fmt: skip
    finite.require(str(path))
    provenance = dict(
        format="D4RL HDF5",
        file=str(path),
        mode=mode,
        rows_in_source=rows,
        rows_dropped=rows - count,
        episode_ends=flags.basis,
        successors="next_observations" if has_next else "next row",
        action_dtype=action_dtype,
        reward="none",
        **lost(int(np.count_nonzero(rewards_dropped))),
        **rounded.facts(),
    )
    if flags.basis == FILE_END:
        provenance["unmarked_ends"] = [dict(rows=rows)]
    if origin:
        provenance["provenance"] = origin
    return into.finish(name or path.stem, provenance)


def _origin(file: h5py.File) -> Any:
    """The provenance that an exported file states; files from elsewhere may state it as free text."""
    said = file.attrs.get("provenance", "")
    try:
        return json.loads(said)
    except (ValueError, TypeError):
        return str(said)


@contextmanager
def open_d4rl(path: Path) -> Iterator[h5py.File]:
    """Opens a file in D4RL's format and checks its shapes.

    Raises:
        UserError: it is missing, damaged, empty, lacks a key or has wrong shapes.
    """
    with open_hdf5(path) as file:
        if any(isinstance(file.get(group), h5py.Group) for group in ("data", "episode_0")):
            kind = "robomimic's format" if "data" in file else "Minari's format, without the metadata beside it"
            raise UserError(f"{path} is in {kind}, and not in D4RL's; {REWRITE}")
        missing = {"observations", "actions"} - set(file)
        if missing:
            has = ", ".join(sorted(file)) or "nothing"
            raise UserError(f"{path} lacks {', '.join(sorted(missing))}; it has {has}; {REWRITE}")
        columns = {key: file[key] for key in D4RL_KEYS if key in file}
        for key, column in columns.items():
            axes, shape = D4RL_KEYS[key], getattr(column, "shape", "a group")
            fits = isinstance(column, h5py.Dataset) and column.ndim in axes
            if fits and column.ndim == 3:  # images without channels; other arrays only if we wrote them
                fits = column.dtype == np.uint8 or ENDS in file.attrs
            if not fits or (axes == (1, 2) and shape[1:] not in ((), (1,))):
                raise UserError(f"{path}: {key} must have {axes[0]} axes, but it is {shape}")
            if column.dtype.kind not in "biuf":
                raise UserError(f"{path}: {key} must be numbers, but they are of type {column.dtype}")
        lengths = {key: len(column) for key, column in columns.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
            raise UserError(f"{path}: its columns have unequal lengths ({listed}); cut or regenerate it")
        if not lengths["actions"]:
            raise NoSteps(f"{path} is empty: it has no rows")
        shapes = [columns[key].shape for key in ("observations", "next_observations") if key in columns]
        if len({shape[1:] or (1,) for shape in shapes}) > 1:
            raise UserError(
                f"{path}: next_observations are {shapes[1]} and observations {shapes[0]}, and must be alike; write them"
                " again"
            )
        yield file


def rewards_of(file: h5py.File, rows: slice = slice(None)) -> np.ndarray:
    """The rewards ``[n]`` of some rows; 0 if the file has none."""
    if "rewards" in file:
        return file["rewards"][rows].reshape(-1)
    return np.zeros(len(file["actions"]), np.float32)[rows]


TERMINAL = ("terminals", "terminal", "terminations", "termination", "terminated", "terminateds", "is_terminal")
"""Names of flags that mark terminal states."""

TIMEOUT = ("timeouts", "timeout", "truncations", "truncation", "truncated", "truncateds", "episode_truncations")
"""Names of flags that mark truncations."""

END = (
    "episode_terminals", "episode_terminal", "dones_float", "dones", "done", "episode_ends", "episode_end", "ends",
    "is_last", "last",
)  # fmt: skip
"""Names of flags that mark the end of an episode, by termination or truncation."""

EPISODE = ("episode", "episode_id", "episode_index", "episode_ids", "trajectory", "trajectory_id")
"""Names of columns that identify the episode of a row."""

FILE_END = "the end of the file"
"""What marks the ends of episodes if nothing in the file does."""

ENDS = "episode_ends"
"""The attribute in which an exported file states where its episodes end, however long they are: at "timeouts" only, in
which case terminal states may also lie within episodes, or at "terminals and timeouts"."""

D4RL_KEYS = {
    "observations": (2, 1, 3, 4),
    "actions": (2, 1),
    "rewards": (1, 2),
    **dict.fromkeys((*TERMINAL, *TIMEOUT, *END), (1, 2)),
    "next_observations": (2, 1, 3, 4),
    LOG_PROB: (1, 2),
}
"""Columns of a D4RL file, and the numbers of axes that each may have."""


MASKS = "masks"
"""A column that is 0 where not to bootstrap. In files that have it, ``terminals`` mark ends of any kind; see also
``masks_mark_ends``."""


def stated_split(file: h5py.File, split: str | None) -> tuple[bool, str | None]:
    """Whether a file states where its episodes end, and how to split them: by ``split`` if the file states nothing, or
    by "masks" if neither does and the file has a column ``masks`` with zeros or ones.

    Source: ``ogbench/relabel_utils.py`` of OGBench, and ``dataset_utils.py`` of IQL's repository.
    """
    stated, masks = file.attrs.get(ENDS), file.get(MASKS)
    if stated is None and split is None and isinstance(masks, h5py.Dataset):
        rows = len(file["actions"])
        if masks.shape in ((rows,), (rows, 1)) and np.isin(masks[()], (0, 1)).any():
            return False, MASKS
    return stated is not None, split if stated is None else "timeouts" if str(stated) == "timeouts" else None


class Flags(NamedTuple):
    """Where the episodes of a D4RL file end."""

    terminal: np.ndarray  # [N] bool
    timeout: np.ndarray  # [N] bool
    basis: str  # in words, what marks the ends; FILE_END if nothing does
    timeout_known: bool  # whether the file itself marks truncations


class _Marks(NamedTuple):
    """The ends that a file marks, and the columns that do so."""

    terminal: np.ndarray  # [N] bool
    timeout: np.ndarray  # [N] bool
    end: np.ndarray  # [N] bool
    changes: np.ndarray  # [N] bool, the last rows before another episode's
    terminal_names: list[str]
    timeout_names: list[str]
    end_names: list[str]  # also of the column that identifies episodes

    @property
    def names(self) -> list[str]:
        return [*self.terminal_names, *self.timeout_names, *self.end_names]


def episode_flags(file: h5py.File, max_episode_steps: int | None, split: str | None) -> Flags:
    """Where the episodes end: at the flags in the file, under any of the usual names, and where a column in ``EPISODE``
    changes; if neither marks truncations, also after every ``max_episode_steps`` steps. Without any of these, the rows
    are one episode.

    Raises:
        UserError: a flag is neither 0 nor 1, the rows of an episode are not contiguous, or there are no flags and the
            limit would cut the last of several episodes short.
    """

    def flags(names: Sequence[str]) -> tuple[list[str], np.ndarray]:
        found = [name for name in names if name in file]
        columns = [as_flags(file[name][()], f"{file.filename}: {name}") for name in found]
        return found, np.logical_or.reduce([np.zeros(rows, bool), *columns])

    rows = len(file["actions"])
    (terminal_names, terminal), (timeout_names, timeout), (end_names, end) = map(flags, (TERMINAL, TIMEOUT, END))
    ids, changes = _changes_of_episode(file, terminal | timeout | end)
    marks = _Marks(terminal, timeout, end, changes, terminal_names, timeout_names, [*end_names, *ids])
    if split == MASKS:
        final = ~as_flags(file[MASKS][()], f"{file.filename}: {MASKS}")
        return _by_masks(marks, final, max_episode_steps)
    if not marks.names and (max_episode_steps is None or rows % max_episode_steps):
        if split is None and rows < (max_episode_steps or math.inf):
            return Flags(terminal, timeout, FILE_END, False)
        raise UserError(
            f"{file.filename} lacks terminals and timeouts, which say where episodes end: mark the last row of each"
            " with 1 in timeouts, or number them in episode"
        )
    if split == "jump":
        steps = np.diff(file["observations"][:, :2].astype(np.float64), axis=0)
        jump = np.r_[np.linalg.norm(steps, axis=1) > JUMP, False]
        return Flags(terminal, timeout | jump, "timeouts and jumps of the position", bool(timeout_names))
    if split == "timeouts":
        return Flags(terminal, timeout, "timeouts", True)
    return _by_flags(marks, max_episode_steps)


def _by_masks(marks: _Marks, final: np.ndarray, max_episode_steps: int | None) -> Flags:
    """Steps are terminal where the mask is 0, ``final`` ``[N]`` bool, and the other columns mark ends of any kind."""
    marked = marks.terminal | marks.timeout | marks.end | marks.changes
    others = bool(marks.terminal_names or marks.end_names)
    if not masks_mark_ends(final, marks.timeout, others) and marked.any() and (marked != final).any():
        return Flags(final, marked, " and ".join(marks.names), True)
    marks = marks._replace(terminal=final, terminal_names=marks.terminal_names or [MASKS])  # they say the same
    flags = _by_flags(marks, max_episode_steps)
    return flags._replace(timeout=flags.timeout | final)


def _by_flags(marks: _Marks, max_episode_steps: int | None) -> Flags:
    """Episodes end where any column says so; if none can mark truncations, also after ``max_episode_steps``."""
    terminal, timeout, end, changes = marks[:4]
    names, timeout_known = marks.names, bool(marks.timeout_names or marks.end_names)
    if not marks.terminal_names:
        terminal = end & ~timeout
        if max_episode_steps and not marks.timeout_names:  # an end after that many steps is a timeout
            terminal &= _steps_in_episode(end) != max_episode_steps
    if timeout_known:
        timeout = timeout | ((end | changes) & ~terminal)
    elif max_episode_steps is not None:
        timeout = _steps_in_episode(terminal) % max_episode_steps == 0
        names.append(f"every {max_episode_steps} steps")
    return Flags(terminal, timeout, " and ".join(names), timeout_known)


def _changes_of_episode(file: h5py.File, ends: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The name of the column that identifies episodes, if there is one, and ``[N]`` bool, the last row of each episode.

    Raises:
        UserError: an episode continues after rows of another one, which does not finish at one of the ``ends`` ``[N]``.
    """
    rows, changes = len(ends), np.zeros_like(ends)
    found = (name for name in EPISODE if getattr(file.get(name), "shape", None) in ((rows,), (rows, 1)))
    if (name := next(found, None)) is None:
        return [], changes
    ids = file[name][()].reshape(rows)
    number = np.unique(ids, return_inverse=True)[1]
    changes[:] = np.r_[number[1:] != number[:-1], True]
    begin = np.r_[0, np.flatnonzero(changes)[:-1] + 1]
    again = np.ones(len(begin), bool)
    again[np.unique(number[begin], return_index=True)[1]] = False
    if len(apart := begin[again & ~ends[begin - 1]]):
        raise UserError(
            f"{file.filename}: the row {apart[0]} is of an episode, {ids[apart[0]]} by {name}, that others came after:"
            " write the rows of every episode one after another, or as a table"
        )
    return [name], changes


def _steps_in_episode(end: np.ndarray) -> np.ndarray:
    """The step number of every row ``[N]`` within its episode, from 1."""
    index = np.arange(len(end))
    return index - np.maximum.accumulate(np.where(np.r_[False, end[:-1]], index, 0)) + 1


def _require_short(path: Path, end: np.ndarray, longest: int) -> None:
    """Raises a UserError if an episode is longer than its environment's time limit."""
    steps = _steps_in_episode(end)
    beyond = np.flatnonzero(steps > longest)
    if len(beyond):
        row = beyond[0]
        raise UserError(
            f"{path}: the episode that begins in row {row - longest} goes on in row {row}, after the {longest} steps"
            " that its environment allows; mark where episodes end in timeouts, name another environment with --env,"
            " or allow more steps with --max-episode-steps"
        )


def _spaces_of(file: h5py.File, env: Mapping[str, Any] | None) -> tuple[gymnasium.Space | None, gymnasium.Space | None]:
    """The spaces of the environment of a D4RL file: the observation space, None if observations need no encoding by it,
    and the action space, None if nothing must be known about it."""

    def may_be_discrete(name: str) -> bool:
        column = file[name]
        start = column[: min(1000, len(column))]
        return column.ndim <= 2 and (
            start.reshape(len(start), -1).shape[1] == 1 or bool((start == np.floor(start)).all())
        )

    if env is None or not (may_be_discrete("observations") or may_be_discrete("actions")):
        return None, None
    with checks.closing(make(env, observed=False)) as made:
        observation_space, action_space = made.observation_space, made.action_space
    shape, kinds = file["observations"].shape[1:], (gymnasium.spaces.Discrete, gymnasium.spaces.MultiDiscrete)
    if not isinstance(observation_space, kinds) or len(shape) > 1 or np.prod(shape) != np.prod(observation_space.shape):
        return None, action_space
    return observation_space, action_space


def _d4rl_timeouts(terminals: np.ndarray, max_episode_steps: int) -> np.ndarray:
    """The rows ``[N]`` that D4RL takes for timeouts if a file has no ``timeouts``: it counts steps, from one after a
    terminal state and from zero elsewhere."""
    timeouts, begin, count = np.zeros_like(terminals), 0, 0
    for end in [*np.flatnonzero(terminals), len(terminals) - 1]:
        timeouts[begin + max_episode_steps - 1 - count : end + 1 : max_episode_steps] = True
        begin, count = end + 1, int(not timeouts[end])
    return timeouts


_Part = tuple[np.ndarray, ...]


def _parts(
    file: h5py.File, keep: np.ndarray, has_next: bool, space: gymnasium.Space | None, finite: Finite
) -> Iterator[_Part]:
    """The rows to keep, in blocks: their row numbers in the file ``[n]``, observations and next observations, encoded
    as ``space`` requires, actions and rewards. From the first block with a non-finite value on, nothing is yielded, but
    all rows are still checked."""
    observations, sound = file["observations"], True
    size = max(1, min(BLOCK, MOST_BYTES // max(1, observations[:1].nbytes)))
    for start in range(0, len(keep), size):
        chosen = np.flatnonzero(keep[start : start + size])
        block = observations[start : start + size + 1]
        behind = np.minimum(chosen + 1, len(block) - 1)  # no row follows the file's last one
        beyond = file["next_observations"][start : start + size][chosen] if has_next else block[behind]
        obs, next_obs = (as_observations(column) for column in (block[chosen], beyond))
        within, rows = slice(start, start + size), start + chosen
        action, reward = (as_float32(column[chosen]) for column in (file["actions"][within], rewards_of(file, within)))
        columns = dict(observations=obs, next_observations=next_obs, actions=action, rewards=reward)
        sound &= finite.see(columns, rows)
        if not sound or not len(rows):
            continue
        if space is not None:
            try:
                obs, next_obs = (spaces.encode(space, column) for column in (obs, next_obs))
            except spaces.Misfit as misfit:
                raise UserError(
                    f"{file.filename}: the observation of row {rows[misfit.row]} or its successor {misfit.what}; repair"
                    " or remove it"
                ) from misfit
        yield rows, obs, next_obs, action, reward


def with_next(parts: Iterator[_Part]) -> Iterator[tuple[_Part, _Part | None]]:
    """Each item with the one that follows it; None after the last."""
    held = next(parts, None)
    while held is not None:
        ahead = next(parts, None)
        yield held, ahead
        held = ahead
