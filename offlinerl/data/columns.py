"""The columns of a file: opened, checked and given their types."""

from __future__ import annotations

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
"""Rows read or checked at a time, so that loading takes little more memory than the table itself."""


LOG_PROB_INFO = "action_log_probs"
LOG_PROB = f"infos/{LOG_PROB_INFO}"
"""Where D4RL's files, and ours of Minari's, keep ``Dataset.log_prob``: among the infos of steps."""


def blocks(column: Any, rows: int = BLOCK, more: int = 0) -> Iterator[np.ndarray]:
    """A column ``[N, ...]`` so many rows at a time, and as many of those behind them; of one on the disk, no more than
    that is in memory."""
    for at in range(0, len(column), rows):
        yield column[at : at + rows + more]
        let_go(column)


def let_go(column: Any) -> None:
    """Hand back the pages of a column on the disk, or of stretches of one, that are in the memory of this process."""
    while not isinstance(column, np.ndarray):
        column = column.array
    if isinstance(column, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        column._mmap.madvise(mmap.MADV_DONTNEED)


def lost(rewards: int) -> dict[str, int]:
    """How many rewards other than 0 went with steps that were left out, as a fact of a dataset's ``provenance``."""
    return dict(rewards_dropped=rewards) if rewards else {}


def single(column: np.ndarray, what: str) -> np.ndarray:
    """A column ``[T]`` or ``[T, 1]`` as ``[T]``."""
    column = np.asarray(column)
    if column.ndim == 1:
        return column
    if column.ndim != 2 or column.shape[1] != 1:
        raise UserError(f"{what} must have one number a row, but they are {column.shape}; write them again")
    return column[:, 0]


def require_one_length(parts: Mapping[str, np.ndarray], where: str) -> None:
    """Refuses parts of observations ``[T, ...]`` of which one has more rows than another."""
    lengths = {path: np.shape(part)[:1] for path, part in parts.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{path} {length[0] if length else 'no'} rows" for path, length in lengths.items())
        raise UserError(f"{where}: the parts of its observations have unequal lengths: {listed}; record it again")


def usable_log_prob(column: np.ndarray, rows: int) -> np.ndarray | None:
    """What a file says of its behaviour's log-probabilities, ``[rows]`` float32: the last ones, if there are more, for
    Minari may store what a reset said besides. None if they are no such numbers."""
    column = np.asarray(column).reshape(len(column), -1)[-rows:]
    if column.shape != (rows, 1) or column.dtype.kind != "f" or not np.isfinite(column).all():
        return None
    return column[:, 0].astype(np.float32)


def as_flags(column: np.ndarray, what: str) -> np.ndarray:
    """A column ``[T]`` or ``[T, 1]`` of noughts and ones as bool.

    Raises:
        UserError: another value stands in it.
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


def checked_actions(
    actions: np.ndarray, space: gymnasium.Space | None, what: str, rows: np.ndarray | None = None
) -> np.ndarray:
    """Actions as ``[T, A]``; ``rows`` are their rows in the source.

    Raises:
        UserError: an action is not one of the numbered ones there are.
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
    """A copy of a column ``[T, ...]`` with at least two axes, in the type that a dataset keeps: images, of three axes
    or more, in their own, and float32 for all others."""
    column = np.asarray(column)
    column = column[:, None] if column.ndim == 1 else column
    image = column.ndim >= 3 and column.dtype in (np.uint8, np.float32)
    return column.copy() if image else as_float32(column)


def as_float32(column: np.ndarray, copy: bool = True) -> np.ndarray:
    """A column in float32. What is too large for it is infinite, which is refused, and needs no warning of numpy's."""
    with np.errstate(over="ignore"):
        return column.astype(np.float32, copy=copy)


def require_filled(source: str, columns: Mapping[str, Tree]) -> None:
    """Refuses columns ``[rows, ...]`` whose rows hold no number at all, of which no network can be made."""
    for name, column in tree_leaves(columns):
        if 0 in column.shape[1:]:
            raise UserError(
                f"{source}: {name} are of shape {column.shape[1:]}, which holds no number; write at least one a row"
            )


def require_finite(source: str, columns: Mapping[str, Tree], rows: np.ndarray | None = None) -> None:
    """Refuses columns with a NaN; ``rows`` are their rows in the source, if they are not all of it."""
    check = Finite()
    check.see(columns, rows)
    check.require(source)


class Finite:
    """Looks for a NaN or an infinity in columns that go by block after block."""

    def __init__(self) -> None:
        self.bad: dict[str, list[np.ndarray]] = {}

    def see(self, columns: Mapping[str, Tree], rows: np.ndarray | None = None) -> bool:
        """Whether a block of each is sound; ``rows`` are its rows in the source, if it is not all of it."""
        sound = True
        for name, column in tree_leaves(columns):
            bad = nonfinite_rows(column)
            self.bad.setdefault(name, []).append(bad if rows is None else rows[bad])
            sound &= not len(bad)
        return sound

    def require(self, source: str) -> None:
        """Raises a UserError that names the first column in which there was one."""
        for name, found in self.bad.items():
            bad = np.concatenate(found)
            if len(bad):
                raise UserError(
                    f"{source}: {name} has NaN or infinite values in {len(bad)} rows, the first of them {bad[0]};"
                    " remove or repair them"
                )


def nonfinite_rows(column: np.ndarray) -> np.ndarray:
    """The rows of ``[rows, ...]`` that hold a NaN or an infinity."""
    if column.dtype.kind != "f":
        return np.empty(0, int)
    bad, before = [np.empty(0, int)], 0
    for block in blocks(column):
        finite = np.isfinite(block)
        if not finite.all():  # of a whole block at once, which is much faster than of its rows
            bad.append(before + np.flatnonzero(~finite.reshape(len(block), -1).all(axis=1)))
        before += len(block)
    return np.concatenate(bad)


REWRITE = (
    "write the rows, episode after episode, as a table (CSV, Parquet or npz), or into an HDF5 file with the keys of"
    " D4RL: observations, actions, rewards, terminals and timeouts"
)
"""What to do with data in another format."""

OTHER_FORMATS = {
    (".txt", ".json", ".jsonl", ".xlsx", ".xls", ".csv", ".tsv"): "a text or a table of another kind",
    (".feather", ".arrow"): "a table of columns",
    (".npy",): "an array of numpy",
    (".pkl", ".pickle", ".pt", ".pth", ".ckpt"): "a file of Python objects",
    (".zip", ".tar", ".gz", ".tgz"): "an archive",
    (".tfrecord", ".rlds"): "a file of TensorFlow's records",
    (".zarr",): "a Zarr store",
}
"""What a file probably is that is not HDF5, by the end of its name."""


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading.

    Raises:
        UserError: it is missing, broken or something else.
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
