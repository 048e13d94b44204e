"""Files and folders written whole or not at all."""

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
    """Yields a hidden sibling of ``path``, to be written as a file or a folder, and renames it to ``path`` at
    the end. If anything is raised before, Ctrl-C included, it is deleted and ``path`` is as it was.

    Args:
        path: what shall exist afterwards.
        overwrite: replace what is there already.
        mark: of a folder, what it holds at the least, as in "meta/info.json": another folder is not replaced. None: a
            file is written.

    Raises:
        UserError: see ``require_place``, or the disk is full.
    """
    path = Path(path)
    require_place(path, overwrite, mark)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        _replace(temporary, path)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise Mishap(f"{path} was not written, because the disk is full: free some space") from error
        raise
    finally:
        _delete(temporary)


def require_place(path: Path | None, overwrite: bool = True, mark: str | None = None) -> None:
    """Raises a UserError unless ``atomic_write`` may write there, if anywhere; long work asks before it begins."""
    if path is None:
        return
    path = Path(path)
    if path.exists() and path.is_dir() == (mark is None):
        raise UserError(f"{path} is a folder: name a file" if mark is None else f"{path} is a file: name a folder")
    if path.exists() and not overwrite:
        raise UserError(f"{path} already exists; delete it, choose another name or add --overwrite")
    if path.is_dir() and mark is not None and any(path.iterdir()) and not (path / mark).exists():
        raise UserError(
            f"{path} is no dataset of this kind, for it lacks {mark}, and is not replaced: delete it or choose another"
            " name"
        )


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one."""
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text(text, "utf-8", "surrogateescape", newline="")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole. Numbers that JSON does not know, NaN and infinities, become null."""
    write_whole(path, json.dumps(with_null(content), indent=1, allow_nan=False))


def with_null(value: Any) -> Any:
    """The same, with None for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {key: with_null(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any) -> Any:
    """What ``json`` shall write for a value it does not know.

    Raises:
        TypeError: nothing is known for it here either.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, set | frozenset | tuple):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} cannot be written into a dataset's metadata")


def sweep(folder: Path, name: str | None = None) -> None:
    """Delete what a writer that was killed left beside ``folder/name``, by default beside anything in the folder, which
    nobody may be writing now. If it was killed while one folder took another's place, the old one returns: it is whole
    even after the power failed, and who wrote the new one has kept what it was made of."""
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
    """Holds a folder, which need not exist, as no other process does meanwhile; the system lets go of it with the
    process.

    Args:
        folder: to work in.
        busy: what to say if another process holds it. None: wait for that.

    Raises:
        UserError: ``busy``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network's file system may lock no folders
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
            except BlockingIOError as error:
                raise UserError(busy or "") from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def swept(path: Path) -> Iterator[None]:
    """For a while in which ``path`` is written by ``atomic_write``: deletes what a writer of it that was killed left
    there, see ``sweep``, unless another process is writing into the folder just now, for which none waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # another holds it, or a network's file system may lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sweep(path.parent, path.name)
        with suppress(OSError):  # shared among writers
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _replace(new: Path, path: Path) -> None:
    """Renames ``new`` to ``path``. A folder cannot be renamed onto another, so the old one steps back first,
    and returns if the new one cannot take its place."""
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
