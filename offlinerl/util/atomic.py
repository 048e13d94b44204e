"""Atomic writes: files and folders are written completely or not at all."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from offlinerl.util.errors import DISK_FULL, Mishap, UserError


@contextmanager
def atomic_write(path: Path, overwrite: bool = False, mark: str | None = None) -> Iterator[Path]:
    """Yield a hidden path beside ``path``, to be written as a file or a folder, and rename it to ``path`` at the end.
    If anything is raised before, including Ctrl-C, it is deleted and ``path`` stays as it was.

    Args:
        path: the file or folder to write.
        overwrite: replace an existing one.
        mark: for a folder, a file that every such folder contains, such as "meta/info.json": a folder without it is not
            replaced. None: a file is written.

    Raises:
        UserError: see ``require_place``, or the disk is full.
    """
    path = Path(path)
    require_place(path, overwrite, mark)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # or a power failure may leave the new name with nothing in it
        _replace(temporary, path)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise Mishap(f"{path} was not written, because the disk is full: free some space") from error
        raise
    finally:
        _delete(temporary)


def require_place(path: Path | None, overwrite: bool = True, mark: str | None = None) -> None:
    """Raise a UserError unless ``atomic_write`` may write there; None is allowed. To be called before long work."""
    if path is None:
        return
    path = Path(path)
    if path.exists() and path.is_dir() == (mark is None):
        raise UserError(f"{path} is a folder: name a file" if mark is None else f"{path} is a file: name a folder")
    if path.exists() and not overwrite:
        raise UserError(f"{path} already exists; delete it, choose another name or add --overwrite")
    if path.is_dir() and mark is not None and any(path.iterdir()) and not (path / mark).exists():
        raise UserError(
            f"{path} is not a dataset of this kind, because it has no {mark}, and is not replaced: delete it or choose"
            " another name"
        )


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically: a crash leaves the old file or the new one."""
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text(text, "utf-8", "surrogateescape", newline="")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically. NaN and infinities, which JSON does not have, become null."""
    write_whole(path, json.dumps(with_null(content), indent=1, allow_nan=False))


def with_null(value: Any) -> Any:
    """The same value with None for NaN and infinities, recursively."""
    if isinstance(value, Mapping):
        return {key: with_null(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any) -> Any:
    """Convert a value that ``json`` cannot write, as its argument ``default``.

    Raises:
        TypeError: the value has an unsupported type.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, set | frozenset | tuple):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} cannot be written into a dataset's metadata")


def sweep(folder: Path, name: str | None = None) -> None:
    """Delete the temporary files and folders of killed writers of ``folder/name``, by default of anything in the
    folder. No process may be writing there now. If a writer was killed while it replaced a folder, the old folder is
    restored: it is complete even after a power failure, and the writer still has what it made the new one from."""
    for left in sorted(folder.glob(".*"), reverse=True):  # the old folder before the new one
        found = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}(\.old)?", left.name)
        if found is None or name not in (None, found[1]):
            continue
        path = folder / found[1]
        if found[2] and left.with_suffix("").exists() and not path.exists():
            os.replace(left, path)
        else:
            _delete(left)


@contextmanager
def alone(folder: Path, busy: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on a folder, which is created if it does not exist. The system releases the lock when the
    process ends.

    Args:
        folder: to lock.
        busy: the error message if another process holds the lock. None: wait for it.

    Raises:
        UserError: with the message ``busy``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot lock folders
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
            except BlockingIOError as error:
                raise UserError(busy or "") from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def swept(path: Path) -> Iterator[None]:
    """A context in which ``path`` is written by ``atomic_write``. First delete temporary files of killed writers, see
    ``sweep``, unless another process is writing into the folder now; it is not waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # another process holds the lock, or the file system cannot lock folders
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sweep(path.parent, path.name)
        with suppress(OSError):  # writers share this lock
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _replace(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``. A folder cannot be renamed onto another one, so the old folder is renamed first, and
    renamed back if the new one cannot be moved."""
    if not (path.is_dir() and new.is_dir()):
        os.replace(new, path)
        return
    old = new.with_name(new.name + ".old")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
    _delete(old)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
