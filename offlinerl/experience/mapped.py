"""Observations in files, which the system reads and writes as they are used."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PAGES = 1 << 16
"""Bytes that the system maps around an access."""


class MappedFiles:
    """Files of arrays in a folder, and how much of them is in the memory of this process: when it was used for more
    than ``limit`` bytes, it is handed back. What was written stays in the files.

    Args:
        folder: created if need be.
        limit: bytes.
    """

    def __init__(self, folder: Path, limit: int = 1 << 28):
        self.folder, self.limit, self.used = folder, limit, 0
        self.maps: list[mmap.mmap] = []
        folder.mkdir(parents=True, exist_ok=True)

    def array(self, name: str, shape: Sequence[int], dtype: str) -> np.ndarray:
        """The array in a file; zeros in one that is new or has another size. It takes no room on the disk before it is
        written."""
        path = self.folder / f"{name}.bin"
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        kept = path.is_file() and path.stat().st_size == size
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.memmap(path, dtype, "r+" if kept else "w+", shape=tuple(shape))
        opened: mmap.mmap = array._mmap
        if hasattr(mmap, "MADV_RANDOM"):
            opened.madvise(mmap.MADV_RANDOM)  # nothing is read beyond what is asked for
        self.maps.append(opened)
        return array

    def tensor(self, name: str, shape: Sequence[int], dtype: str) -> Tensor:
        return torch.from_numpy(self.array(name, shape, dtype))

    def touched(self, rows: int, nbytes: int) -> None:
        """Told of accesses to so many rows of ``nbytes`` together."""
        self.used += nbytes + rows * PAGES
        if self.used > self.limit and hasattr(mmap, "MADV_DONTNEED"):
            for opened in self.maps:
                opened.madvise(mmap.MADV_DONTNEED)
            self.used = 0

    def flush(self) -> None:
        """Have everything on the disk."""
        for opened in self.maps:
            opened.flush()
