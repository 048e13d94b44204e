"""Columns in files, which the system reads and writes as they are used."""

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
"""Bytes that the system maps around an access, at the most: what it keeps of a file in one piece."""

PIECE = 1 << 8
"""Rows that are gathered before it is asked how much is in memory."""


class Maps:
    """Files that are mapped into the memory of this process, and how much of them is in it: when they were used for
    more than ``limit`` bytes, that is handed back. The files keep what was written.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int):
        self.limit, self.used, self.others = limit, 0, 0
        self.maps: list[mmap.mmap] = []

    def hold(self, opened: mmap.mmap) -> None:
        """Have a file of which rows here and there are used: nothing is read beyond what is asked for."""
        if hasattr(mmap, "MADV_RANDOM"):
            opened.madvise(mmap.MADV_RANDOM)
        self.maps.append(opened)
        self._hand_back()  # what was read of it before is not for long
        self.others = file_pages() or 0

    def touched(self, rows: int, nbytes: int) -> None:
        """Told of accesses to so many rows of ``nbytes`` together, which may have been there before."""
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
    """Bytes of files that are in the memory of this process; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE
    except OSError:
        return None


class MappedFiles(Maps):
    """Files of arrays in a folder that may be written.

    Args:
        folder: created if need be.
        limit: see ``Maps``.
    """

    def __init__(self, folder: Path, limit: int = 1 << 28):
        super().__init__(limit)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def array(self, name: str, shape: Sequence[int], dtype: str) -> np.ndarray:
        """The array in a file; zeros in one that is new or has another size.

        Raises:
            UserError: the disk has no room for all of it, which would kill the process when it is written.
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
        """Have everything on the disk."""
        for opened in self.maps:
            opened.flush()


def _reserve(path: Path, size: int) -> None:
    """Have the disk keep room for a file that has gaps. Some systems cannot."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in DISK_FULL:
                return
            raise UserError(
                f"{path} needs {size / 1e9:,.1f} GB, for which the disk has no room: free some, or give a smaller"
                " --train.capacity"
            ) from error


class Stored:
    """A column of a dataset ``[N, ...]`` that stays on the disk, of which rows are gathered as of a tensor.

    Args:
        column: memory-mapped, or stretches of such.
        device: where gathered rows go.
        maps: of all columns that share a limit.
    """

    def __init__(self, column: np.ndarray | Stretches, device: torch.device, maps: Maps):
        self.column, self.device, self.maps = column, device, maps
        while isinstance(column, Stretches):
            column = column.array
        if isinstance(column, np.memmap):
            maps.hold(column._mmap)
        if isinstance(self.column, np.ndarray):
            self.column = np.asarray(column)  # the same without the class, which is slow

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
        pack: makes them of actions, rewards, terminations and ends of some rows.
        columns: these four, ``[R, ...]`` each.
        device: see ``Stored``, as for ``maps``.
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
