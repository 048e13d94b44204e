"""The columns of a file: opened, checked, and converted to a dataset's dtypes."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np

from offlinerl.envs import spaces
from offlinerl.util.errors import UserError, reading
from offlinerl.util.trees import Tree, tree_leaves

BLOCK = 1 << 16
"""Rows read or checked at a time, so that loading needs little more memory than the table itself."""


LOG_PROB_INFO = "action_log_probs"
LOG_PROB = f"infos/{LOG_PROB_INFO}"
"""Where D4RL files and our Minari files store ``Dataset.log_prob``: among the infos of steps."""


def blocks(column: Any, rows: int = BLOCK, more: int = 0) -> Iterator[np.ndarray]:
    """Yields a column ``[N, ...]`` in blocks of ``rows`` rows, each with up to ``more`` of the rows that follow it. Of
    a column on disk, no more than one block is in memory at a time."""
    for at in range(0, len(column), rows):
        yield column[at : at + rows + more]
        let_go(column)


def let_go(column: Any) -> None:
    """Releases the pages of a memory-mapped column, or of ``Stretches`` of one, from this process's memory."""
    while not isinstance(column, np.ndarray):
        column = column.array
    if isinstance(column, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        column._mmap.madvise(mmap.MADV_DONTNEED)


def lost(rewards: int) -> dict[str, int]:
    """The ``provenance`` entry for the number of nonzero rewards that were lost with dropped steps; empty if there are
    none."""
    return dict(rewards_dropped=rewards) if rewards else {}


def single(column: np.ndarray, what: str) -> np.ndarray:
    """A column ``[T]`` or ``[T, 1]`` as ``[T]``.

    Raises:
        UserError: it has another shape.
    """
    column = np.asarray(column)
    if column.ndim == 1:
        return column
    if column.ndim != 2 or column.shape[1] != 1:
        raise UserError(f"{what} must have one number a row, but they are {column.shape}; write them again")
    return column[:, 0]


def require_one_length(parts: Mapping[str, np.ndarray], where: str) -> None:
    """Raises a UserError if the parts of observations ``[T, ...]`` differ in their number of rows."""
    lengths = {path: np.shape(part)[:1] for path, part in parts.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{path} {length[0] if length else 'no'} rows" for path, length in lengths.items())
        raise UserError(f"{where}: the parts of its observations have unequal lengths: {listed}; record it again")


def usable_log_prob(column: np.ndarray, rows: int) -> np.ndarray | None:
    """The behaviour policy's log-probabilities from a file, ``[rows]`` float32; the last ``rows`` if there are more,
    because Minari may also store the infos of the reset. None if they are not one finite float per row."""
    column = np.asarray(column).reshape(len(column), -1)[-rows:]
    if column.shape != (rows, 1) or column.dtype.kind != "f" or not np.isfinite(column).all():
        return None
    return column[:, 0].astype(np.float32)


def as_flags(column: np.ndarray, what: str) -> np.ndarray:
    """A column ``[T]`` or ``[T, 1]`` of zeros and ones as bool.

    Raises:
        UserError: it holds other values.
    """
    column = single(column, what)
    if column.dtype.kind == "b":
        return column
    if column.dtype.kind not in "iuf":
        raise UserError(f"{what} must be 0 or 1, but they are of type {column.dtype}; write them again")
    wrong = np.flatnonzero((column != 0) & (column != 1))
    if len(wrong):
        raise UserError(f"{what} must be 0 or 1, but row {wrong[0]} holds {column[wrong[0]]:g}; repair or remove it")
    return column.astype(bool)


def masks_mark_ends(terminal: np.ndarray, truncated: np.ndarray, others: bool) -> bool:
    """Whether episodes also end where a mask is 0, ``terminal`` ``[N]`` bool: only if nothing but ``truncated`` ``[N]``
    is beside it, and no ``others``. A truncation in a terminal row would mean that truncations mark ends of any
    kind."""
    return not others and not (terminal & truncated).any()


def checked_actions(
    actions: np.ndarray, space: gymnasium.Space | None, what: str, rows: np.ndarray | None = None
) -> np.ndarray:
    """Actions as ``[T, A]``; ``rows`` are their row numbers in the source.

    Raises:
        UserError: a discrete action is not in the action space.
    """
    actions = np.asarray(actions).reshape(len(actions), -1)
    if isinstance(space, gymnasium.spaces.Discrete) and actions.shape[1] == 1:
        try:
            spaces.require_choices(actions, np.array([space.n]), np.array([space.start]))
        except spaces.Misfit as misfit:
            row = misfit.row if rows is None else rows[misfit.row]
            raise UserError(f"{what}: the action in row {row} {misfit.what}; repair or remove it") from misfit
    return actions


def as_observations(column: Any) -> np.ndarray:
    """A copy of a column ``[T, ...]`` with at least two axes, in the dtype that a dataset stores: images, with three
    axes or more, stay uint8 or float32, and everything else becomes float32."""
    column = np.asarray(column)
    column = column[:, None] if column.ndim == 1 else column
    image = column.ndim >= 3 and column.dtype in (np.uint8, np.float32)
    return column.copy() if image else as_float32(column)


def unmasked(column: Any) -> np.ndarray:
    """A column as an array, with NaN where a numpy masked array has no value."""
    if np.ma.is_masked(column) and column.dtype.kind in "biuf":
        return column.astype(np.float64).filled(np.nan)
    return np.asarray(column)


def as_float32(column: np.ndarray, copy: bool = True) -> np.ndarray:
    """A column as float32. Values too large for it become infinite, without a numpy warning, and are refused later."""
    with np.errstate(over="ignore"):
        return column.astype(np.float32, copy=copy)


LOOKED = 1 << 20
"""Numbers of a column of observations in which ``Rounded`` searches."""

COARSE = 0.05
"""Share of a dimension's changes that rounding to float32 may lose."""


class Rounded:
    """Searches observations that arrive in pieces for dimensions whose changes from step to step are lost when they are
    rounded to float32, as small steps at a large offset are. It looks at the beginning of every column only."""

    def __init__(self) -> None:
        self.found: dict[str, np.ndarray] = {}  # [4, D]: all changes, those that are lost, least and greatest value
        self.left: dict[str, int] = {}

    def see(self, observations: Tree, ends: np.ndarray | None = None) -> None:
        """Looks at consecutive observations, a tree of ``[T, ...]``, also of HDF5 datasets; ``ends`` ``[T]`` bool, the
        last rows of episodes, if there are several."""
        for path, leaf in tree_leaves(observations):
            if leaf.ndim > 2 or leaf.dtype.kind not in "iuf" or leaf.dtype.itemsize < 4 or leaf.dtype == np.float32:
                continue
            rows = self.left.get(path, LOOKED) // max(1, math.prod(leaf.shape[1:]))
            if rows < 2 or len(leaf) < 2 or 0 in leaf.shape:
                continue
            block = np.asarray(leaf[:rows], np.float64).reshape(min(rows, len(leaf)), -1)
            self.left[path] = self.left.get(path, LOOKED) - block.size
            kept = as_float32(block)
            with np.errstate(invalid="ignore", over="ignore"):
                change = np.nan_to_num(abs(np.diff(block, axis=0)), posinf=0)
            if ends is not None:
                change[ends[: len(change)]] = 0
            gone = np.where(kept[1:] == kept[:-1], change, 0).sum(0)
            new = np.stack([change.sum(0), gone, np.fmin.reduce(block), np.fmax.reduce(block)])
            if (old := self.found.get(path)) is not None:
                new = np.stack([*(old + new)[:2], np.fmin(old, new)[2], np.fmax(old, new)[3]])
            self.found[path] = new

    def facts(self) -> dict[str, dict[str, list[int]]]:
        """The ``provenance`` entry for such dimensions, by the path of their column; empty if there are none. Changes
        far below the resolution of float32 are noise, such as that of a simulated body at rest."""
        noise, rounded = np.finfo(np.float32).eps / 100, {}
        for path, (changes, gone, low, high) in self.found.items():
            coarse = (gone > COARSE * changes) & (high - low > noise * np.maximum(abs(low), abs(high)))
            if coarse.any():
                rounded[path] = np.flatnonzero(coarse).tolist()
        return dict(rounded=rounded) if rounded else {}


def require_filled(source: str, columns: Mapping[str, Tree]) -> None:
    """Raises a UserError if the rows of a column ``[rows, ...]`` hold no numbers, because no network can take them."""
    for name, column in tree_leaves(columns):
        if 0 in column.shape[1:]:
            raise UserError(
                f"{source}: {name} are of shape {column.shape[1:]}, which holds no number; write at least one a row"
            )


def require_finite(source: str, columns: Mapping[str, Tree], rows: np.ndarray | None = None) -> None:
    """Raises a UserError if a column holds NaN or infinite values; ``rows`` are the row numbers in the source, if they
    are not all of it."""
    check = Finite()
    check.see(columns, rows)
    check.require(source)


class Finite:
    """Searches columns that arrive in blocks for NaN and infinite values."""

    def __init__(self) -> None:
        self.bad: dict[str, list[np.ndarray]] = {}

    def see(self, columns: Mapping[str, Tree], rows: np.ndarray | None = None) -> bool:
        """Checks a block of each column and returns whether all are finite; ``rows`` are its row numbers in the source,
        if it is not all of it."""
        sound = True
        for name, column in tree_leaves(columns):
            bad = nonfinite_rows(column)
            self.bad.setdefault(name, []).append(bad if rows is None else rows[bad])
            sound &= not len(bad)
        return sound

    def require(self, source: str) -> None:
        """Raises a UserError that names the first column with NaN or infinite values, if there is one."""
        for name, found in self.bad.items():
            bad = np.concatenate(found)
            if len(bad):
                raise UserError(
                    f"{source}: {name} has NaN or infinite values in {len(bad)} rows, the first of them {bad[0]};"
                    " remove or repair them (numbers beyond float32 count as infinite)"
                )


def nonfinite_rows(column: np.ndarray) -> np.ndarray:
    """The rows of ``[rows, ...]`` that hold a NaN or an infinity."""
    if column.dtype.kind != "f":
        return np.empty(0, int)
    bad, before = [np.empty(0, int)], 0
    for block in blocks(column):
        finite = np.isfinite(block)
        if not finite.all():  # testing the whole block first is much faster
            bad.append(before + np.flatnonzero(~finite.reshape(len(block), -1).all(axis=1)))
        before += len(block)
    return np.concatenate(bad)


REWRITE = (
    "write the rows, episode after episode, as a table (CSV, Parquet or npz), or into an HDF5 file with the keys of"
    " D4RL: observations, actions, rewards, terminals and timeouts"
)
"""What to do with data in a format that is not supported."""

OTHER_FORMATS = {
    (".txt", ".json", ".jsonl", ".xlsx", ".xls", ".csv", ".tsv"): "a text or a table of another kind",
    (".feather", ".arrow"): "a table of columns",
    (".npy",): "an array of numpy",
    (".pkl", ".pickle", ".pt", ".pth", ".ckpt"): "a file of Python objects",
    (".zip", ".tar", ".gz", ".tgz"): "an archive",
    (".tfrecord", ".rlds"): "a file of TensorFlow's records",
    (".zarr",): "a Zarr store",
}
"""What a file that is not HDF5 probably is, by its suffix."""


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading.

    Raises:
        UserError: it is missing, damaged or not an HDF5 file.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; check the path")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        for endings, kind in OTHER_FORMATS.items():
            if path.suffix.lower() in endings:
                raise UserError(f"{path} is {kind}, and in no format that is read; {REWRITE}") from error
        if path.suffix.lower() in ("", ".hdf5", ".h5", ".hdf", ".npz", ".parquet"):
            raise UserError(f"{path} is not an HDF5 file, or only a part of one; download or write it again") from error
        raise UserError(f"{path} is in no format that is read: HDF5, npz, CSV, Parquet or a folder of them") from error
    with file, reading(str(path), "download or write it again"):
        yield file


def shrink_cache(file: h5py.File, size: int = 1 << 20) -> None:
    """Limits HDF5's metadata cache, which otherwise keeps the headers of thousands of arrays and outgrows the arrays
    themselves."""
    config = file.id.get_mdc_config()
    config.set_initial_size, config.initial_size = True, size
    config.min_size = config.max_size = size
    file.id.set_mdc_config(config)
