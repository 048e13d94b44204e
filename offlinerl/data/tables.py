"""Reads plain tables (CSV, Parquet, numpy archives, pandas DataFrames) by a mapping of their columns."""

from __future__ import annotations

import codecs
import csv
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date, timedelta
from fnmatch import fnmatchcase
from numbers import Integral
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from offlinerl.data.assemble import Steps, observed
from offlinerl.data.columns import as_flags, masks_mark_ends, require_filled, single, unmasked
from offlinerl.data.d4rl import END, EPISODE, MASKS, TERMINAL, TIMEOUT
from offlinerl.data.mapping import EXAMPLE, Columns
from offlinerl.data.stamps import unordered
from offlinerl.util.errors import NoSteps, UserError, did_you_mean, reading
from offlinerl.util.trees import tree_like, tree_map

USUAL: dict[str, tuple[str, ...]] = dict(
    obs=("observations", "observation", "obs", "state", "obs[._]*", "observation[._]*", "state[._]*"),
    action=("actions", "action", "action[._]*", "act[._]*"),
    reward=("rewards", "reward"),
    episode=EPISODE,
    step=("step", "timestep", "time_step", "frame_index"),
    terminated=(*TERMINAL, "dones", "done"),
    truncated=TIMEOUT,
    last=END,
    mask=(MASKS,),
    log_prob=("log_prob", "log_probs", "action_log_prob", "action_log_probs", "action_logp"),
    next_obs=("next_observations", "next_observation", "next_obs", "next_obs[._]*", "next_state[._]*"),
)
"""The default mapping: each field takes the first name or pattern that the table has."""

DELIMITERS = ",\t;|"

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""Byte order marks of texts that other programs save as "Unicode"."""

TRUTH = {"true": 1, "false": 0, "": None}
"""Values of the cells in a column of True and False; a blank cell is neither."""


def read_names(path: Path) -> list[str]:
    """The names of a table's columns."""
    return list(_table(path, []))


def unused_ids(names: Iterable[str], columns: Columns) -> list[str]:
    """The columns among ``names`` that seem to tell episodes apart, if a mapping uses none of them."""
    used = {name for of_field in columns.values() for name in of_field}
    return [] if "episode" in columns else [name for name in names if name in EPISODE and name not in used]


def table_episodes(
    source: Path | Mapping[str, Any], columns: Columns | None = None, obs_keys: Sequence[str] | None = None
) -> Iterator[Steps]:
    """The episodes of a table with one row per step: an observation, the action taken, and its reward.

    An episode ends where the column ``episode`` changes or, without that column, where ``step`` starts again, and where
    ``terminated``, ``truncated`` or ``last`` is 1. A table without any of these is one episode. If there is a ``mask``,
    steps are terminal where it is 0, and ``terminated`` only marks ends. If nothing but ``truncated`` is beside it,
    episodes also end there, unless ``truncated`` itself is 1 in such a row. If the rows of several episodes are
    interleaved, each episode's are brought together, and sorted by ``step`` if there is such a column. If the last row
    of an episode has no action, it only holds the observation after the last step.

    Args:
        source: a CSV or Parquet file, an ``.npz``, or columns by name, ``[N, ...]``.
        columns: the column mapping; by default ``USUAL``.
        obs_keys: which of the parts ``obs.NAME`` to use; by default all.

    Raises:
        UserError: it cannot be read, or lacks a column.
    """
    path = source if isinstance(source, Path) else None
    where = "the table" if path is None else str(path)
    if path is None:
        given = [str(name) for name in source]
        if twice := [name for name in given if given.count(name) > 1]:
            raise UserError(f"{where} has two columns named {twice[0]!r}; rename or drop one")
        source = {str(name): source[name] for name in source}
    names = list(source if path is None else _table(path, []))
    columns = usual_columns(names, where) if columns is None else columns
    chosen = resolved(names, columns, where)
    wanted = list(dict.fromkeys(name for found in chosen.values() for name in found))
    if path is None:
        table = {}
        for name in wanted:
            with reading(f"the column {name}", "give every row as many numbers"):
                table[name] = _array_of(source[name])
    else:
        numbers = {name for field, found in chosen.items() if field != "episode" for name in found}
        table = _table(path, wanted, set(chosen.get("episode", ())) - numbers)
    yield from _episodes(table, chosen, obs_keys, where)
    del table
    release_arrow()


def usual_columns(names: Sequence[str], where: str) -> Columns:
    """The default mapping of a table's columns.

    Raises:
        UserError: no name suggests the observation or the action.
    """
    found, fixed = {}, {name for patterns in USUAL.values() for name in patterns}
    for field, patterns in USUAL.items():
        for pattern in patterns:
            if pattern in names or any(fnmatchcase(name, pattern) for name in names if name not in fixed):
                found[field] = [pattern]
                break
    if "episode" not in found:
        found.pop("step", None)  # else an episode would begin wherever it starts again
    if lacking := [field for field in ("obs", "action") if field not in found]:
        many = ", ".join(map(str, names[:20])) + (", ..." if len(names) > 20 else "")
        what = {"obs": "observations", "action": "actions"}[lacking[0]]
        raise UserError(f"{where}: no column is known to hold the {what}; say which, {EXAMPLE}; it has {many}")
    return found


def resolved(names: Sequence[str], columns: Columns, where: str) -> Columns:
    """The names of a table's columns by field, with patterns expanded. A pattern does not match a column that is named
    explicitly.

    Raises:
        UserError: there is no such column.
    """
    named = {pattern for patterns in columns.values() for pattern in patterns}
    free = [name for name in names if name not in named]
    found = {field: _matching(names, free, patterns, where) for field, patterns in columns.items()}
    for field, following in found.items():
        own = found.get(field.removeprefix("next_"), [])
        if field.startswith("next_obs") and not set(columns[field]) <= set(names):  # its order is that of a pattern
            found[field] = _in_order_of(own, following)
    return found


def _in_order_of(names: Sequence[str], others: list[str]) -> list[str]:
    """Names such as ``next_obs_2`` in the order of ``obs_2`` and so on, if each has the same rest as one of these
    besides a common beginning or a common end; else as they are."""

    def rests(of: Sequence[str]) -> list[str]:
        common = len(os.path.commonprefix(of))
        return [name[common:] for name in of]

    for order in (1, -1):  # from the beginning, and from the end
        own, wanted = (rests([name[::order] for name in of]) for of in (others, names))
        if len(set(own)) == len(own) and set(own) == set(wanted):
            return [others[own.index(rest)] for rest in wanted]
    return others


def _matching(names: Sequence[str], free: Sequence[str], patterns: Sequence[str], where: str) -> list[str]:
    found = []
    for pattern in patterns:
        matching = [pattern] if pattern in names else [name for name in free if fnmatchcase(name, pattern)]
        if not matching:
            many = ", ".join(map(str, names[:20])) + (", ..." if len(names) > 20 else "")
            hint = did_you_mean(pattern, names, f"it has {many}")
            if commas := [name for name in names if str(name).startswith(f"{pattern},")]:
                hint = f"for a name with a comma give a pattern: {commas[0].replace(',', '?')}"
            raise UserError(f"{where} has no column {pattern!r}; {hint}")
        found += matching
    return found


def parts_named(columns: Columns, obs_keys: Sequence[str] | None = None) -> list[str] | None:
    """The names of the parts of a table's observations, in order; None unless there are several parts with names."""
    names = [field.partition(".")[2] for field in columns if field.partition(".")[0] == "obs"]
    return list(obs_keys or names) if len(names) > 1 and all(names) else None


def parts_of(names: Sequence[str], columns: Columns, where: str) -> Columns:
    """The columns of a table's observations by part; the name of an unnamed part is ""."""
    found = resolved(names, columns, where)
    return {field.partition(".")[2]: of for field, of in found.items() if field.partition(".")[0] == "obs"}


class _Reader:
    """Reads the fields of a table, whose columns by field are ``chosen``, and checks them."""

    def __init__(self, table: Mapping[str, np.ndarray], chosen: Columns, where: str):
        self.table, self.chosen, self.where = table, chosen, where
        lengths = {name: len(column) for name, column in table.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{where}: unequal lengths: {', '.join(f'{k} {n}' for k, n in lengths.items())}")
        self.rows = next(iter(lengths.values()))
        if not self.rows:
            raise NoSteps(f"{where} is empty: it has no rows")

    def numbers(self, field: str) -> np.ndarray:
        """``[rows]``, or ``[rows, ...]`` if the field has several numbers a row."""
        names = self.chosen[field]
        columns = [_as_numbers(self.table[name]) for name in names]
        for name, column in zip(names, columns, strict=True):
            if column.dtype.kind not in "biuf":
                row, hint = _first_non_number(column)
                raise UserError(f"{self.where}: column {name} must be numbers, but row {row}{hint}")
        if len(names) == 1:
            return columns[0]
        if images := [name for name, column in zip(names, columns, strict=True) if _is_images(column)]:
            kind, rest = field.partition(".")[0], [name for name in names if name not in images]
            parts = [f"{kind}.{name}={name}" for name in images]
            parts += [f"{kind}.{rest[0] if len(rest) == 1 else 'state'}={','.join(rest)}"] if rest else []
            instead = f"name the parts of {kind}, as in {' '.join(parts)}" if "obs" in kind else "leave it out"
            raise UserError(f"{self.where}: column {images[0]} holds images, which are no part of a vector: {instead}")
        return np.concatenate([column.reshape(self.rows, -1) for column in columns], 1)

    def single(self, field: str) -> np.ndarray:
        """``[rows]``, of a field with one number a row."""
        return single(self.numbers(field), f"{self.where}: {field}")

    def parts(self, field: str) -> dict[str, np.ndarray]:
        """The parts of an observation by name, ``[rows, ...]`` each; empty if the table has none."""
        return {name.partition(".")[2]: self.numbers(name) for name in self.chosen if name.split(".")[0] == field}

    def flags(self, field: str, blank: int = 0) -> np.ndarray:
        """``[rows]`` bool, ``blank`` where a cell is; all False if the table has no such field."""
        if field not in self.chosen:
            return np.zeros(self.rows, bool)
        column = self.single(field)
        if column.dtype.kind == "f":
            column = np.nan_to_num(column, nan=blank)
        return as_flags(column, f"{self.where}: {field}")

    def steps(self) -> np.ndarray | None:
        """``[rows]`` the number of each row within its episode, or its date or duration, if the table has one."""
        if "step" not in self.chosen:
            return None
        names = self.chosen["step"]
        times = _as_times(self.table[names[0]], self.where) if len(names) == 1 else None
        step = self.single("step") if times is None else single(times, f"{self.where}: step")
        if not (known := np.isfinite(step)).all():
            raise UserError(f"{self.where}: row {known.argmin()} does not say which step it is; repair or remove it")
        return step

    def episode_ids(self) -> np.ndarray | None:
        """``[rows]`` the episode of each row, if the table has it."""
        if "episode" not in self.chosen:
            return None
        names = self.chosen["episode"]
        ids = single(self.table[names[0]], f"{self.where}: episode")
        if len(names) > 1:
            raise UserError(f"{self.where}: one column tells episodes apart, not {len(names)}")
        blank = _blank(ids)
        if blank.any():
            raise UserError(
                f"{self.where}: row {blank.argmax()} does not say which episode it is of; repair or remove it"
            )
        return ids.astype(str) if ids.dtype.kind == "O" else ids


def _episodes(
    table: Mapping[str, np.ndarray], chosen: Columns, obs_keys: Sequence[str] | None, where: str
) -> Iterator[Steps]:
    reader = _Reader(table, chosen, where)
    obs, next_obs, action = reader.parts("obs"), reader.parts("next_obs"), reader.numbers("action")
    require_filled(where, dict(actions=action))  # an action of no numbers would look like a missing one
    if next_obs.keys() == obs.keys():
        next_obs = tree_like(obs, next_obs)
    log_prob = reader.single("log_prob") if "log_prob" in chosen else None
    reward = reader.single("reward") if "reward" in chosen else np.zeros(reader.rows, np.float32)
    terminated, ends = _terminals_and_ends(reader)
    ids, step = reader.episode_ids(), reader.steps()
    order, change = _order(reader, ids, step)
    bounds = ends[order] | change
    # an end marked at the last step moves to the row after it, if that row only holds the final observation
    moved = bounds & ~change & np.r_[_missing_actions(action)[order][1:], False]
    after = np.r_[False, moved[:-1]]
    ended = (ends | terminated)[order] | after
    finals = np.flatnonzero((bounds & ~moved) | after)
    torn = set() if step is None or ids is not None else set(unordered(step, ends | after).tolist())
    whole = len(chosen["action"]) == 1 and _is_whole(table[chosen["action"][0]])
    for number, (begin, end) in enumerate(zip(np.r_[0, finals[:-1] + 1], finals, strict=True)):
        at = order[begin : end + 1]
        shown, following = (
            observed({name: part[at] for name, part in tree.items()}, obs_keys, where) if tree else None
            for tree in (obs, next_obs)
        )
        steps = Steps(shown, action[at], reward[at], terminated[at], following, f"episode {number}", at)
        if log_prob is not None:
            steps = steps._replace(log_prob=log_prob[at])
        if step is not None:
            steps = steps._replace(step=step[at], unordered=begin in torn)
        if ids is not None:
            steps = steps._replace(episode=str(ids[at[-1]]), ended=bool(ended[end]))
        steps = _without_end(steps)
        if whole and not np.isnan(steps.action).any():
            steps = steps._replace(action=steps.action.astype(np.int64))
        yield steps


def _terminals_and_ends(reader: _Reader) -> tuple[np.ndarray, np.ndarray]:
    """``[rows]`` bool each, the terminal rows, and those that are marked as the last of their episode."""
    chosen = reader.chosen
    terminated, truncated = reader.flags("terminated"), reader.flags("truncated")
    if chosen.get("terminated", [""])[0] in END:  # marks any end, which is terminal unless truncated
        terminated = terminated & ~truncated
    ends = terminated | truncated | reader.flags("last")
    if "mask" not in chosen:
        return terminated, ends
    terminated = ~reader.flags("mask", blank=1)
    others = bool(chosen.keys() & {"episode", "step", "terminated", "last"})
    return terminated, ends | terminated if masks_mark_ends(terminated, truncated, others) else ends


def _order(reader: _Reader, ids: np.ndarray | None, step: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The rows ``[rows]`` in order, episode after episode; and ``[rows]`` bool, where the row at that place is the last
    one of its episode by its id, or else by its step.

    Raises:
        UserError: two rows are the same step of an episode.
    """
    order, change = np.arange(reader.rows), np.zeros(reader.rows, bool)
    change[-1] = True
    if ids is None:
        if step is not None:
            change[:-1] = step[1:] <= step[:-1]
        return order, change
    _, first, number = np.unique(ids, return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(first))[number]  # in the order in which they begin
    order = np.lexsort([number] if step is None else [step, number])
    number = number[order]
    change[:-1] = number[1:] != number[:-1]
    if step is not None:
        twice = ~change[:-1] & (step[order][1:] == step[order][:-1])
        if twice.any():
            one, other = order[(at := int(twice.argmax())) : at + 2]
            raise UserError(
                f"{reader.where}: rows {one} and {other} are of one episode, {ids[one]}, and of one step, {step[one]}:"
                " give every episode an id of its own, or say with --columns what the steps are, or leave them out"
            )
    return order, change


def _without_end(steps: Steps) -> Steps:
    """An episode without its last row, if that has no action and only holds the observation after the last step."""
    obs, action, reward, terminated, next_obs, place, _, log_prob, *_ = steps
    if not _missing_actions(action)[-1]:
        return steps
    if np.nan_to_num(reward[-1]) != 0:
        raise UserError(
            f"{place}: its last row has no action, and yet a reward: a reward belongs into the row of the action"
            " that earned it; move the rewards up by a row"
        )
    ended, terminated = terminated[-1], terminated[:-1].copy()
    terminated[-1:] |= ended
    if next_obs is not None:
        obs, next_obs = (tree_map(lambda leaf: leaf[:-1], tree) for tree in (obs, next_obs))
    log_prob = None if log_prob is None else log_prob[:-1]
    return steps._replace(
        obs=obs, action=action[:-1], reward=reward[:-1], terminated=terminated, next_obs=next_obs, log_prob=log_prob
    )


def _array_of(column: Any) -> np.ndarray:
    """A column of a DataFrame as an array; integers of which some are missing become objects, not floats."""
    array = unmasked(column)
    if np.ma.isMaskedArray(column):
        return array
    if array.dtype.kind == "f" and getattr(getattr(column, "dtype", None), "kind", "f") in ("i", "u"):
        return np.asarray(column.astype(object))
    return _stacked(array) if array.dtype.kind == "O" and array.ndim == 1 else array


def _stacked(cells: np.ndarray) -> np.ndarray:
    """Cells ``[N]`` that are lists or arrays of one length as ``[N, length]``, with gaps where one is missing; other
    cells unchanged.

    Raises:
        ValueError: their lengths differ.
    """
    known = np.array([isinstance(cell, list | tuple | np.ndarray) for cell in cells], bool)
    if not known.any() or not _blank(cells[~known]).all():
        return cells
    rows = [np.asarray(cell) for cell in cells[known]]
    _require_one_length(sorted({len(row) for row in rows}))
    return _with_gaps(np.stack(rows), known)


def _require_one_length(lengths: Sequence[int | None]) -> None:
    if len(lengths) > 1 or lengths[0] is None:
        raise ValueError(f"its rows hold lists of unequal lengths: {', '.join(map(str, lengths[:5]))}")


def _with_gaps(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Rows where ``known``, ``[N]`` bool, and missing values elsewhere: NaN, or None among integers, which thereby stay
    integers."""
    if known.all():
        return rows
    nothing, dtype = (None, object) if rows.dtype.kind in "biu" else (np.nan, rows.dtype)
    found = np.full((len(known), *rows.shape[1:]), nothing, dtype)
    found[known] = rows
    return found


def _blank(column: np.ndarray) -> np.ndarray:
    """``[rows]`` bool, where a column has no value, however that is written."""
    if column.dtype.kind in "OU":
        return np.isin(np.char.lower(column.astype(str)), ("", "none", "nan", "<na>", "nat"))
    return column != column  # NaN and NaT


def _as_numbers(column: np.ndarray) -> np.ndarray:
    """A column of objects as floats, with NaN for missing values, if its values are numbers; else unchanged."""
    if column.dtype.kind == "O" and not _has_underscore(column.flat):
        with suppress(TypeError, ValueError):
            return np.where(_blank(column), None, column).astype(np.float64)
    return column


def _as_times(column: np.ndarray, where: str) -> np.ndarray | None:
    """A column of dates or durations in nanoseconds, with NaT for missing values; None if it holds something else.

    Raises:
        UserError: some cells are dates, and others are neither dates nor blank.
    """
    if column.dtype.kind in "Mm":
        return column.astype(f"{column.dtype.kind}8[ns]")
    if column.dtype.kind == "O":  # of a data frame
        blank = _blank(column)
        cells = [None if no else value for no, value in zip(blank, column, strict=True)]
        if all(isinstance(value, timedelta | None) for value in cells):
            return np.array(cells, "timedelta64[ns]")
        if not all(isinstance(value, str | date | None) for value in cells):
            return None
        column = np.array([value.isoformat() if isinstance(value, date) else value or "" for value in cells])
    if column.dtype.kind != "U":
        return None
    found = [DATE.fullmatch(cell) for cell in column.tolist()]
    if not any(found):
        return None
    wrong = [row for row, match in enumerate(found) if match is None and column[row]]
    if wrong:
        raise UserError(f"{where}: the step in row {wrong[0]} is {str(column[wrong[0]])!r:.40}, and others are dates")
    dates = np.array([match[1][:NANOSECONDS] if match else "NaT" for match in found], "datetime64[ns]")
    shifts = [_offset(match[2]) if match else 0 for match in found]
    return dates - np.array(shifts, "timedelta64[s]")


DATE = re.compile(r"(\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?)(Z|[+-]\d\d:?\d\d)?")
"""A date as ISO 8601 writes it, and its offset from UTC."""

NANOSECONDS = len("2026-01-31T12:00:00.123456789")
"""Length of a date with nanoseconds, the smallest unit that is kept."""


def _offset(text: str | None) -> int:
    """An offset from UTC, such as +01:30, in seconds."""
    if text in (None, "", "Z"):
        return 0
    hours, minutes = int(text[1:3]), int(text[-2:])
    return (-1 if text[0] == "-" else 1) * (3600 * hours + 60 * minutes)


def _is_whole(column: np.ndarray) -> bool:
    """Whether a column holds objects that are integers, apart from missing values."""
    return column.dtype.kind == "O" and all(isinstance(value, Integral) for value in column[~_blank(column)])


SMALLEST = 8
"""Height and width of the smallest images."""


def _is_images(column: np.ndarray) -> bool:
    """Whether a column ``[rows, ...]`` holds images, and not, for example, matrices of rotations or contacts."""
    return column.ndim > 3 or (column.ndim == 3 and column.dtype == np.uint8 and min(column.shape[1:]) >= SMALLEST)


def _missing_actions(action: np.ndarray) -> np.ndarray:
    """``[rows]`` bool, where an action is missing entirely."""
    if action.dtype.kind != "f":
        return np.zeros(len(action), bool)
    return np.isnan(action).reshape(len(action), -1).all(1)


def _first_non_number(column: np.ndarray) -> tuple[str, str]:
    """The first row that is not a number, preferably one that is not True or False either; and what to do."""
    words = [row for row, value in enumerate(column) if not _is_number(value)]
    odd = [row for row in words if str(column[row]).lower() not in TRUTH] or words
    if not odd:
        return "0 holds something else", ""
    cell = str(column[odd[0]])
    return f"{odd[0]} holds {cell!r:.40}", _advice(cell, {str(column[row]) for row in odd})


MISSING = ("na", "n/a", "#n/a", "none", "null", "nan", "<na>", "nat", "-", "--", "?", "missing")
"""What programs write in a cell without a value, in lower case."""

KINDS_OF_WORDS = 10
"""Up to this many distinct words are the names of choices."""


def _advice(cell: str, words: Collection[str]) -> str:
    """How to turn a cell into a number, given all words of its column."""
    if cell.lower() in MISSING:
        return ", as if it were missing; repair or remove such rows"
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+", cell):
        return "; write it without a comma, or with a decimal point if that is what it stands for"
    if re.fullmatch(r"[+-]?\d*,\d+(e[+-]?\d+)?", cell, re.I):
        return "; write it with a decimal point"
    if re.match(r"\d{4}-\d\d-\d\d|\d\d?[./]\d\d?[./]\d\d", cell) or re.fullmatch(r"\d+:\d\d(:\d\d.*)?", cell):
        return "; write it in seconds (only a step may be a date, as in 2026-01-31T12:00:00.5)"
    if re.match(r"[+-]?\d", cell):
        return "; write the number alone"
    if cell and len(words) <= KINDS_OF_WORDS and max(map(len, words)) < 20:
        return "; write a number for each word, as in " + ", ".join(f"{i} for {w}" for i, w in enumerate(sorted(words)))
    return ""


def _is_number(value: Any) -> bool:
    with suppress(TypeError, ValueError):
        float(value)
        return not _has_underscore([str(value)])
    return False


def _has_underscore(cells: Iterable[Any]) -> bool:
    """Whether one of the cells is a word with an underscore. Python would read 1_5 as 15; here it is no number."""
    return any(isinstance(cell, str) and "_" in cell for cell in cells)


def _table(path: Path, wanted: Sequence[str], words: Collection[str] = ()) -> dict[str, Any]:
    """The requested columns of a file; if none are requested, all column names, with None as their values. The cells of
    those in ``words`` are kept as written, because 1.1 and 1.10 are two names."""
    with path.open("rb") as file:
        magic = file.read(4)
    with reading(f"the table {path}", "write it again"):
        if magic == b"PAR1":
            return _parquet(path, wanted)
        if magic[:2] == b"PK":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in wanted} if wanted else dict.fromkeys(archive.files)
        if magic.startswith(UTF_16):
            raise UserError(f"{path} is a text in UTF-16: save it as UTF-8")
        return _csv(path, wanted, words)


def _parquet(path: Path, wanted: Sequence[str]) -> dict[str, Any]:
    pq = parquet_reader()
    with pq.ParquetFile(path) as file:
        if not wanted:
            return dict.fromkeys(file.schema_arrow.names)
        table = file.read(columns=list(wanted))
    return {name: _with_missing(table.column(name)) for name in wanted}


def release_arrow() -> None:
    """Return the memory of Arrow's tables that are no longer used, which Arrow keeps for later ones."""
    if (arrow := sys.modules.get("pyarrow")) is not None:
        arrow.default_memory_pool().release_unused()


def _with_missing(column: Any) -> np.ndarray:
    """As ``from_arrow``, but integers of which some are missing become objects, not floats; and lists may be
    missing."""
    if column.null_count and str(column.type).startswith(("int", "uint")):
        return np.array(column.to_pylist(), object)
    if 0 < column.null_count < len(column) and _is_lists(column):
        return _with_gaps(from_arrow(column.drop_null()), column.is_valid().to_numpy(zero_copy_only=False))
    return from_arrow(column)


def parquet_reader() -> Any:
    """pyarrow.parquet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet files are read by an extra that is not installed: pip install pyarrow") from error
    return pyarrow.parquet


def from_arrow(column: Any) -> np.ndarray:
    """An Arrow column as an array; lists of one length become ``[N, length]``, whatever they hold.

    Raises:
        ValueError: its lists differ in length, or one is missing.
    """
    import pyarrow.compute as pc

    if not _is_lists(column) or not len(column):
        return column.to_numpy(zero_copy_only=False)
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    _require_one_length(lengths)
    inner = from_arrow(pc.list_flatten(column))
    return inner.reshape(len(column), lengths[0], *inner.shape[1:])


def _is_lists(column: Any) -> bool:
    return "list" in str(column.type).partition("<")[0]


def delimiter_of(line: str) -> str:
    """The delimiter of a CSV file, from its first line; characters within quotes do not count."""
    return max(DELIMITERS, key=re.sub('"[^"]*"', "", line).count)


def _head(file: TextIO) -> str:
    """The first line that is not blank, and the lines after it until its quotes are closed."""
    head = ""
    for line in file:
        head += line
        if head.strip() and head.count('"') % 2 == 0:
            break
    return head


ROWS = 1 << 12
"""Rows of a CSV file that are converted at a time; their cells stay in the processor's cache."""

csv.field_size_limit(1 << 30)  # an unused column may hold images as text


def _csv(path: Path, wanted: Sequence[str], words: Collection[str]) -> dict[str, Any]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        delimiter = delimiter_of(_head(file))
        file.seek(0)
        rows = _rows(file, delimiter)
        names = [name.strip() for name in next((row for row in rows if any(map(str.strip, row))), [])]
        if not names:
            raise NoSteps(f"{path} is empty: it has no rows")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"its header names the column {twice!r} twice")
        if not wanted:
            return dict.fromkeys(names)
        places = [names.index(name) for name in wanted]
        as_written, every = [name in words for name in wanted], places == list(range(len(names)))
        blocks: list[list[np.ndarray]] = [[] for _ in wanted]
        block: list[list[str]] = []
        for number, row in enumerate(rows):
            if not row:
                continue
            if len(row) != len(names):
                raise ValueError(f"row {number} has {len(row)} columns, and the header {len(names)}")
            block.append(row if every else [row[place] for place in places])
            if len(block) == ROWS:
                _store(block, blocks, as_written)
                block = []
        _store(block, blocks, as_written)
    blocks.reverse()
    return {name: _joined(blocks.pop()) for name in wanted}  # freed one by one


def _rows(file: TextIO, delimiter: str) -> Iterator[list[str]]:
    """The cells of every row, the header first.

    Raises:
        ValueError: a quote is not closed, so that the rows after it would become one cell.
    """
    reader, begin = csv.reader(file, delimiter=delimiter, strict=True), 1
    try:
        for row in reader:
            yield row
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"the row that begins in line {begin} has a quote too many or too few: {error}") from error


def _store(block: list[list[str]], blocks: list[list[np.ndarray]], as_written: Sequence[bool]) -> None:
    for column, cells, words in zip(blocks, zip(*block, strict=True), as_written, strict=False):
        column.append(np.array([cell.strip() for cell in cells]) if words else _converted(cells))


def _converted(cells: Sequence[str]) -> np.ndarray:
    """Cells as integers, as objects if some are blank, else as floats, with NaN for blank cells, else as booleans or
    strings."""
    if "_" in "".join(cells):  # see ``_has_underscore``; this is ten times as fast
        return np.array([cell.strip() for cell in cells])
    for kind in (int, float):
        with suppress(ValueError, OverflowError):
            return np.fromiter(map(kind, cells), f"{kind.__name__}64", len(cells))
    cells = [cell.strip() for cell in cells]
    with suppress(ValueError, OverflowError):
        if len(known := np.array([int(cell) for cell in cells if cell], np.int64)):
            found = np.full(len(cells), None)
            found[[bool(cell) for cell in cells]] = known
            return found
    with suppress(ValueError):
        return np.array([cell or "nan" for cell in cells], np.float64)
    lower = [cell.lower() for cell in cells]
    return np.array([TRUTH[cell] for cell in lower]) if set(lower) <= set(TRUTH) else np.array(cells)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    if not parts:
        return np.empty(0)
    kinds = {part.dtype.kind for part in parts}
    return np.concatenate([part.astype(str) for part in parts] if "U" in kinds else parts)
