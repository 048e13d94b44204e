"""Columns in memory-mapped files, which the system pages in and out as they are used."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offlinerl.data.dataset import Stretches
from offlinerl.util.errors import DISK_FULL, UserError

PAGES = 1 << 21
"""The most bytes that one access may bring into memory: the largest unit in which the system caches a file."""

PIECE = 1 << 8
"""Rows gathered between two checks of memory use."""


class Maps:
    """Memory-mapped files, with a limit on their resident memory: once more than ``limit`` bytes have been used, the
    pages are released. The files keep what was written.

    Args:
        limit: in bytes.
    """

    def __init__(self, limit: int):
        self.limit, self.used, self.others = limit, 0, 0
        self.maps: list[mmap.mmap] = []

    def hold(self, opened: mmap.mmap) -> None:
        """Adds a file that is accessed at random, so that nothing is read ahead."""
        if hasattr(mmap, "MADV_RANDOM"):
            opened.madvise(mmap.MADV_RANDOM)
        self.maps.append(opened)
        self._hand_back()  # pages read so far are not needed for long
        self.others = file_pages() or 0

    def touched(self, rows: int, nbytes: int) -> None:
        """Records an access to ``rows`` rows of ``nbytes`` bytes in total, some of which may have been in memory
        before."""
        self.used += nbytes + rows * PAGES
        if self.used > self.limit and (known := file_pages()) is not None:
            self.used = max(0, known - self.others)
        if self.used > self.limit:
            self._hand_back()

    def _hand_back(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            for opened in self.maps:
                opened.madvise(mmap.MADV_DONTNEED)
        self.used = 0


def file_pages() -> int | None:
    """Bytes of mapped files in this process's memory; None if the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE
    except OSError:
        return None


class MappedFiles(Maps):
    """Writable memory-mapped arrays, as files in a folder.

    Args:
        folder: created if needed.
        limit: see ``Maps``.

    Attributes:
        made: the names of the files that did not exist before, or had another size.
    """

    def __init__(self, folder: Path, limit: int = 1 << 28):
        super().__init__(limit)
        self.folder, self.made = folder, set[str]()
        folder.mkdir(parents=True, exist_ok=True)

    def array(self, name: str, shape: Sequence[int], dtype: str) -> np.ndarray:
        """The array in a file; zeros if the file is new or had another size.

        Raises:
            UserError: the disk has no room for all of it; a write without room would kill the process.
        """
        path = self._file(name)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        kept = path.is_file() and path.stat().st_size == size
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.memmap(path, dtype, "r+" if kept else "w+", shape=tuple(shape))
        try:
            _reserve(path, size)
        except UserError:
            if not kept:
                path.unlink()
            raise
        self.hold(array._mmap)
        if not kept:
            self.made.add(name)
        return array

    def tensor(self, name: str, shape: Sequence[int], dtype: str) -> Tensor:
        return torch.from_numpy(self.array(name, shape, dtype))

    def has(self, name: str) -> bool:
        return self._file(name).is_file()

    def delete(self, name: str) -> None:
        self._file(name).unlink()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def flush(self) -> None:
        """Writes everything to disk."""
        for opened in self.maps:
            opened.flush()


def _reserve(path: Path, size: int) -> None:
    """Reserves disk space for a sparse file, on systems that can."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in DISK_FULL:
                return
            raise UserError(
                f"{path} needs {size / 1e6:,.0f} MB, more than is free on the disk: free some, or give a smaller"
                " --train.capacity"
            ) from error


class Stored:
    """A column of a dataset ``[N, ...]`` that stays on disk, and from which rows are gathered as from a tensor.

    Args:
        column: memory-mapped, or ``Stretches`` of such.
        device: where gathered rows go.
        maps: the files of all columns that share a limit.
    """

    def __init__(self, column: np.ndarray | Stretches, device: torch.device, maps: Maps):
        self.column, self.device, self.maps = column, device, maps
        while isinstance(column, Stretches):
            column = column.array
        if isinstance(column, np.memmap):
            maps.hold(column._mmap)
        if isinstance(self.column, np.ndarray):
            self.column = np.asarray(column)  # a plain view, because indexing np.memmap is slow

    def __len__(self) -> int:
        return len(self.column)

    def index_select(self, axis: int, rows: Tensor) -> Tensor:
        found = []
        for part in rows.cpu().split(PIECE):
            found.append(self.column.take(part.numpy(), axis))
            self.maps.touched(len(part), found[-1].nbytes)
        return torch.from_numpy(np.concatenate(found)).to(self.device)


class StoredNumbers(Stored):
    """The numbers of a dataset's rows as ``Table`` packs them, ``[R, A + 3]``, packed as they are gathered.

    Args:
        pack: packs the actions, rewards, terminations and ends of some rows.
        columns: these four, ``[R, ...]`` each.
        device: see ``Stored``, also for ``maps``.
    """

    def __init__(self, pack: Callable[..., np.ndarray], columns: Sequence[Any], device: torch.device, maps: Maps):
        self.pack, self.device = pack, device
        self.columns = [Stored(column, torch.device("cpu"), maps) for column in columns]

    def __len__(self) -> int:
        return len(self.columns[0])

    def index_select(self, axis: int, rows: Tensor) -> Tensor:
        rows = rows.cpu()
        found = self.pack(*(column.index_select(axis, rows).numpy() for column in self.columns))
        return torch.from_numpy(found).to(self.device)
