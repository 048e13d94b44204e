"""Episodes as they end, in one file that outlives its process."""

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
HEAD = Struct("<8sIQ")  # MAGIC, the CRC32 of the body, bytes of the body
BODY = Struct("<QI")  # steps T, bytes of the description; which follows as JSON, and then the arrays' bytes


class Journal:
    """Finished episodes, appended one at a time to one file. Every append is one write, so that a process that
    is killed leaves all episodes before that, and of that one all or nothing.

    Opening it for writing cuts off what is torn or damaged at its end. Reading leaves the file alone, and may
    go on while another process writes: it sees the episodes that were whole when it was opened.

    Args:
        path: the file, created with its folder if need be.
        write: whether to append; one process at a time may.

    Attributes:
        steps: of all episodes together.
        torn: bytes after the last whole episode when it was opened.

    Raises:
        UserError: another process writes it, it is no journal, or it does not exist and is only to be read.
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
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it with the process
            self.torn = self._index()
            if write and self.torn:
                self._file.truncate(self._ends[-1])
        except BaseException as error:
            self.close()
            if not isinstance(error, BlockingIOError):
                raise
            raise UserError(
                f"{self.path} is being written by another process; let it end or choose another folder"
            ) from error

    def _index(self) -> int:
        """Finds the whole episodes, and returns how many bytes come after them."""
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
        """Adds an episode, or compares it with the one that has its number already, as when a learner that was
        resumed comes to it once more.

        Args:
            episode: its arrays of any dtype but objects.
            number: counted from 0; by default that of a new episode.

        Returns:
            Whether the journal holds this very episode under that number now.

        Raises:
            UserError: the disk is full; the journal is as it was.
            ValueError: an array holds objects, or episodes before this one are missing.
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
            while done < len(record):  # less than all of it when the disk is nearly full
                done += os.pwrite(self._file.fileno(), memoryview(record)[done:], begin + done)
        except OSError as error:
            self._file.truncate(begin)
            if error.errno not in DISK_FULL:
                raise
            raise UserError(
                f"{self.path} holds {len(self)} episodes and no further one, because the disk is full: free some space"
            ) from error

    def crc(self, number: int) -> int:
        """The CRC32 of an episode, all of it: dtypes, shapes and values."""
        return self._checksums[number]

    @property
    def digest(self) -> str:
        """A checksum of all episodes, in hexadecimal digits."""
        return hashlib.sha256(self._checksums.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._checksums)

    def __getitem__(self, number: int) -> Episode:
        """The episode of that number, counted from 0, as it was appended."""
        if not 0 <= number < len(self):
            raise IndexError(f"{self.path} has {len(self)} episodes and none of number {number}")
        begin = self._ends[number] + HEAD.size
        return _decode(os.pread(self._file.fileno(), self._ends[number + 1] - begin, begin))

    def __iter__(self) -> Iterator[Episode]:
        return (self[number] for number in range(len(self)))

    def close(self) -> None:
        """Closes the file, and lets another process write it."""
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
        column = np.ndarray(shape, dtype, body, at).copy()  # aligned, and the body need not be kept
        at += column.nbytes
        return column

    description = json.loads(body[BODY.size : at])
    return Episode(**build(description["columns"]), seed=description["seed"])
