"""Finished episodes in one append-only file, which survives the death of its process."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import zlib
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np

from offlinerl.data.episode import Episode
from offlinerl.util.atomic import DISK_FULL
from offlinerl.util.errors import UserError

EPISODES, COLLECTION = "episodes.journal", "collection.json"
"""The files of an unfinished collection."""

MAGIC = b"\x89episode"
HEAD = Struct("<8sIQ")  # MAGIC, CRC32 of the body, length of the body in bytes
BODY = Struct("<QI")  # steps T, length in bytes of the JSON description that follows, before the arrays


class Journal:
    """Finished episodes, appended one at a time to one file. A process that is killed leaves all earlier episodes
    intact, and the one being appended either whole or not at all.

    Opening it for writing cuts off an incomplete or damaged record at its end. Reading does not change the file, and
    may go on while another process writes: it sees the episodes that were complete when the file was opened.

    Args:
        path: the file, created with its folder if needed.
        write: whether to append; only one process at a time may.

    Attributes:
        steps: total number of steps in all episodes.
        torn: bytes after the last complete episode when it was opened.

    Raises:
        UserError: another process writes it, it is not a journal, or it is opened for reading only and does not exist.
    """

    def __init__(self, path: str | Path, write: bool = True) -> None:
        self.path, self.steps = Path(path), 0
        self._ends, self._checksums = array("Q", [0]), array("I")
        if write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        try:
            self._file = io.FileIO(self.path, "r+" if write else "r")
        except FileNotFoundError as error:
            raise UserError(f"{self.path} does not exist; check the path") from error
        try:
            if write:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it when the process ends
            self.torn = self._index()
            if write and self.torn:
                self._file.truncate(self._ends[-1])
        except BaseException as error:
            self.close()
            if not isinstance(error, BlockingIOError):
                raise
            raise UserError(
                f"{self.path} is being written by another process; wait for it or choose another folder"
            ) from error

    def _index(self) -> int:
        """Finds the complete episodes, and returns the number of bytes after them."""
        size = os.fstat(self._file.fileno()).st_size
        with open(self._file.fileno(), "rb", closefd=False) as file:
            begin = file.peek(len(MAGIC))[: len(MAGIC)]
            if not MAGIC.startswith(begin):
                raise UserError(f"{self.path} is no journal of episodes; move it away or choose another folder")
            while len(head := file.read(HEAD.size)) == HEAD.size:
                magic, checksum, length = HEAD.unpack(head)
                if magic != MAGIC or not BODY.size <= length <= size - self._ends[-1] - HEAD.size:
                    break
                body = file.read(length)
                if zlib.crc32(body) != checksum:
                    break
                self._add(body, checksum)
        return size - self._ends[-1]

    def _add(self, body: bytes, checksum: int) -> None:
        self.steps += BODY.unpack_from(body)[0]
        self._ends.append(self._ends[-1] + HEAD.size + len(body))
        self._checksums.append(checksum)

    def append(self, episode: Episode, number: int | None = None) -> bool:
        """Adds an episode or, if its number exists already, compares it with the stored one, as when a resumed run
        reaches it again.

        Args:
            episode: its arrays may have any dtype except objects.
            number: counted from 0; by default that of a new episode.

        Returns:
            Whether the journal now holds this very episode under that number.

        Raises:
            UserError: the disk is full; the journal is unchanged.
            ValueError: an array holds objects, or the episodes before this one are missing.
        """
        number = len(self) if number is None else number
        body = _encode(episode)
        checksum = zlib.crc32(body)
        if number < len(self):
            return checksum == self.crc(number)
        if number > len(self):
            raise ValueError(f"{self.path}: episode {number} cannot follow {len(self)} episodes")
        self._write(HEAD.pack(MAGIC, checksum, len(body)) + body)
        self._add(body, checksum)
        return True

    def _write(self, record: bytes) -> None:
        begin, done = self._ends[-1], 0
        try:
            while done < len(record):  # writes are partial if the disk is nearly full
                done += os.pwrite(self._file.fileno(), memoryview(record)[done:], begin + done)
        except OSError as error:
            self._file.truncate(begin)
            if error.errno not in DISK_FULL:
                raise
            raise UserError(
                f"{self.path} holds {len(self)} episodes and no further one, because the disk is full: free some space"
            ) from error

    def crc(self, number: int) -> int:
        """The CRC32 of an episode's dtypes, shapes and values."""
        return self._checksums[number]

    @property
    def digest(self) -> str:
        """A checksum of all episodes, in hexadecimal."""
        return hashlib.sha256(self._checksums.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._checksums)

    def __getitem__(self, number: int) -> Episode:
        """The episode with this number, counted from 0, as it was appended."""
        if not 0 <= number < len(self):
            raise IndexError(f"{self.path} has {len(self)} episodes and none of number {number}")
        begin = self._ends[number] + HEAD.size
        return _decode(os.pread(self._file.fileno(), self._ends[number + 1] - begin, begin))

    def __iter__(self) -> Iterator[Episode]:
        return (self[number] for number in range(len(self)))

    def close(self) -> None:
        """Closes the file, so that another process may write it."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _encode(episode: Episode) -> bytes:
    parts: list[bytes] = []

    def describe(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: describe(inner) for key, inner in value.items()}
        column = np.asarray(value)
        if column.dtype.kind in "OV":
            raise ValueError(f"an array of dtype {column.dtype} cannot be written into a journal")
        parts.append(column.tobytes())
        return [column.dtype.str, *column.shape]

    description = json.dumps(dict(columns=describe(episode.columns), seed=episode.seed)).encode()
    return b"".join((BODY.pack(len(episode.rewards), len(description)), description, *parts))


def _decode(body: bytes) -> Episode:
    _, length = BODY.unpack_from(body)
    at = BODY.size + length

    def build(node: Any) -> Any:
        nonlocal at
        if isinstance(node, dict):
            return {key: build(inner) for key, inner in node.items()}
        dtype, *shape = node
        column = np.ndarray(shape, dtype, body, at).copy()  # aligned, and independent of the body's memory
        at += column.nbytes
        return column

    description = json.loads(body[BODY.size : at])
    return Episode(**build(description["columns"]), seed=description["seed"])
