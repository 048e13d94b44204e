"""Builds datasets from parts, in memory or, if they are too large for it, in files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from offlinerl.data.columns import blocks, require_filled
from offlinerl.data.dataset import COLUMNS, Dataset, write_about
from offlinerl.util.errors import UserError
from offlinerl.util.trees import Tree, first_leaf, tree_leaves

SMALL = 1 << 28
"""Size in bytes up to which one of several files is read in memory, whatever the limit."""

PARTLY = "left out, for not all parts have it"
"""What the provenance then says about ``log_prob``."""


class Column:
    """Rows ``[N, ...]`` that arrive in blocks, kept in memory until they are moved to a file.

    Args:
        like: a block with the dtype and row shape of all blocks.
        room: expected number of rows, 0 if unknown; there may be fewer or more.
    """

    def __init__(self, like: np.ndarray, room: int = 0):
        self.size, self.room, self.dtype, self.shape = 0, room, like.dtype, like.shape[1:]
        self.array: np.ndarray | None = None
        self.file: BinaryIO | None = None

    @property
    def expected(self) -> int:
        """Expected final size in bytes, as far as it is known."""
        return max(self.size, self.room) * int(np.prod(self.shape)) * self.dtype.itemsize

    def add(self, block: np.ndarray) -> None:
        assert np.can_cast(block.dtype, self.dtype, "same_kind"), (
            f"{block.dtype} would not keep its values as {self.dtype}"
        )
        total = self.size + len(block)
        if self.file is not None:
            for piece in blocks(block):
                self.file.write(np.ascontiguousarray(piece, self.dtype).data)
        else:
            if self.array is None:
                self.array = np.empty((max(self.room, total), *self.shape), self.dtype)
            elif total > len(self.array):
                self._grow(max(total, 3 * len(self.array) // 2))
            self.array[self.size : total] = block
        self.size = total

    def _grow(self, rows: int) -> None:
        smaller, self.array = self.held, np.empty((rows, *self.shape), self.dtype)
        self.array[: self.size] = smaller

    @property
    def held(self) -> np.ndarray:
        """The rows in memory."""
        return np.empty((0, *self.shape), self.dtype) if self.array is None else self.array[: self.size]

    def move(self, path: Path) -> None:
        """Moves the rows from memory to a numpy file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("wb", buffering=1 << 20)
        self._write_header()
        self.file.write(np.ascontiguousarray(self.held).data)
        self.array = None

    def close(self) -> None:
        """Flushes the file to disk, with the final number of rows in its header."""
        if self.file is not None:
            self.file.seek(0)
            self._write_header()
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()

    def _write_header(self) -> None:
        """Writes the header. Its length does not depend on the number of rows: numpy leaves room for that to grow."""
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = dict(descr=descr, fortran_order=False, shape=(self.size, *self.shape))
        np.lib.format.write_array_header_1_0(self.file, header)


Kinds = dict[str, tuple[tuple[int, ...], bool]]
"""The row shapes of columns by path, and whether they hold images of uint8, from 0 to 255."""


def kinds_of(**columns: Tree) -> Kinds:
    """The kinds of columns, trees of ``[rows, ...]``."""
    return {path: (leaf.shape[1:], leaf.ndim > 2 and leaf.dtype == np.uint8) for path, leaf in tree_leaves(columns)}


def difference(found: Kinds, due: Kinds) -> str | None:
    """A phrase on how columns differ from those before them, and what to do; None if they do not."""
    if found.keys() != due.keys():
        one, other = (", ".join(f"{path} {list(shape)}" for path, (shape, _) in of.items()) for of in (found, due))
        return f"it has {one}, and what is before it {other}; choose parts that all of them have with --obs-keys"
    for path, (shape, counts) in found.items():
        what, _, part = path.partition("/")
        part = f" {part!r}" if part else ""
        if shape != due[path][0]:
            advice = "keep the episodes of one kind" if what == "actions" else (
                "make them alike, or choose parts that all of them have with --obs-keys"
            )  # fmt: skip
            return f"{what}{part} of shape {shape} do not match those of shape {due[path][0]} before them; {advice}"
        if counts != due[path][1]:
            one, other = ("uint8" if of else "floats" for of in (counts, due[path][1]))
            return f"images{part} are {one}, and those before them {other}: store all of them as uint8"
    return None


class Builder:
    """Builds a dataset from its parts, whose ``at`` and ``next_at`` each count from the part's own first observation.

    Args:
        source: where the parts come from, for messages.
        folder: creates the folder for the columns' files; called only when it is needed.
        limit: maximum number of bytes in memory, beyond which all columns go into files; None: everything stays in
            memory.
        told: called with the number of rows so far and the expected number, or 0 if that is unknown.

    Attributes:
        rows: number of rows so far.
        place: the folder, once it exists.
        partly: whether only some of the parts have a ``log_prob``, which is then left out.
    """

    def __init__(
        self,
        source: str = "",
        folder: Callable[[], Path] | None = None,
        limit: int | None = None,
        told: Callable[[int, int], None] | None = None,
    ):
        self.source, self.folder, self.limit, self.told = source, folder, limit, told
        self.rows = self.observations = 0
        self.room: tuple[int, int] = (0, 0)
        self.kinds: Kinds = {}
        self.columns: dict[str, Column] = {}
        self.place: Path | None = None
        self.partly = False

    def expect(self, rows: int, observations: int) -> None:
        """Reserves room for about this many rows and observations."""
        self.room = rows, observations

    def add(self, part: Dataset, where: str = "") -> None:
        """Appends the rows of a part.

        Args:
            part: the rows.
            where: the file or episode that they come from, for messages.

        Raises:
            UserError: observations or actions have other shapes than before or no numbers, images are of another type,
                or the disk has no room for the expected size.
        """
        self._require_like(part, where or self.source or part.name)
        moved = dict(at=part.at + self.observations, next_at=part.next_at + self.observations)
        if self.rows and (part.log_prob is None) != ("log_prob" not in self.columns):
            self._leave_out_log_prob()
        names = [name for name in COLUMNS if not (self.partly and name == "log_prob")]
        blocks = dict(tree_leaves({name: moved.get(name, getattr(part, name)) for name in names}))
        for path, block in blocks.items():
            if path not in self.columns:
                column = self.columns[path] = Column(block, self.room[path.partition("/")[0] == "observations"])
                if self.place is not None:
                    column.move(self._file(path))
        self._move_if_large()  # before memory is allocated for the expected rows
        for path, block in blocks.items():
            self.columns[path].add(block)
        self._move_if_large()
        self.rows += len(part)
        self.observations += len(first_leaf(part.observations))
        if self.told is not None:
            self.told(self.rows, self.room[0])

    @property
    def expected(self) -> int:
        """Expected size of all columns in bytes, as far as it is known."""
        return sum(column.expected for column in self.columns.values())

    def _leave_out_log_prob(self) -> None:
        self.partly, column = True, self.columns.pop("log_prob", None)
        if column is not None and column.file is not None:
            column.file.close()
            self._file("log_prob").unlink()

    def _require_like(self, part: Dataset, where: str) -> None:
        columns = dict(observations=part.observations, actions=part.action)
        require_filled(where, columns)
        kinds = kinds_of(**columns)
        self.kinds = self.kinds or kinds
        if unlike := difference(kinds, self.kinds):
            raise UserError(f"{where}: {unlike}")

    def _move_if_large(self) -> None:
        if self.place is None and self.limit is not None and self.expected > self.limit:
            self._move()

    def _move(self) -> None:
        assert self.folder is not None
        self.place = self.folder()
        self.place.mkdir(parents=True, exist_ok=True)
        free, needed = shutil.disk_usage(self.place).free, self.expected
        if needed > free:
            raise UserError(
                f"{self.source} takes {needed / 1e9:,.1f} GB as files, and the disk of {self.place.parent} has"
                f" {free / 1e9:,.1f} GB left: free some space, or set OFFLINERL_HOME to a folder on another disk"
            )
        for path, column in self.columns.items():
            column.move(self._file(path))

    def _file(self, path: str) -> Path:
        assert self.place is not None
        return self.place / f"{path}.npy"

    def part(self) -> Builder:
        """A builder for a dataset that will be added to this one; see ``drop``."""
        limit = None if self.limit is None else max(self.limit, SMALL)
        return Builder(self.source, self._place_of_part, limit)

    def _place_of_part(self) -> Path:
        if self.place is None:
            self._move()
        assert self.place is not None
        return self.place / ".part"

    def drop(self) -> None:
        """Deletes the files of a part that has been added."""
        if self.place is not None:
            shutil.rmtree(self.place / ".part", ignore_errors=True)

    def finish(self, name: str, provenance: dict[str, Any]) -> Dataset:
        """The dataset of all parts."""
        if self.partly:
            provenance = provenance | dict(log_prob=PARTLY)
        if self.place is not None:
            for column in self.columns.values():
                column.close()
            write_about(self.place, list(self.columns), name, provenance)
            return Dataset.mapped(self.place)
        found: dict[str, Tree] = {}
        for path, column in self.columns.items():
            field, _, inner = path.partition("/")
            found[field] = {**found.get(field, {}), inner: column.held} if inner else column.held
        return Dataset(**found, name=name, provenance=provenance)
