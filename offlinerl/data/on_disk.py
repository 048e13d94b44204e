"""Datasets larger than memory: their columns are files in the user's cache, written once."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from offlinerl.data import formats
from offlinerl.data.builder import Builder
from offlinerl.data.dataset import Dataset
from offlinerl.data.mapping import known_columns
from offlinerl.data.registry import Entry
from offlinerl.util import memory, paths
from offlinerl.util.atomic import atomic_write, sweep, write_json
from offlinerl.util.display import Display
from offlinerl.util.errors import UserError

SHARE = 0.5
"""Fraction of the available memory that "auto" allows for a dataset; training needs some too."""

SOURCE = "source.json"
"""The file beside the columns that records what they were made from."""

VERSION = 4
"""Version of these files; files of another version are made anew."""


class Made(Exception):
    """Another process made the files while this one waited to do so."""


def through_cache(
    read: Callable[[Builder], Dataset], path: Path, entry: Entry, mode: str, table: str, display: Display
) -> Dataset:
    """A dataset whose columns are files in the cache, which are made if they do not exist or their source has changed
    since; or in memory, if ``table`` is "auto" and there is room.

    The files appear only once they are complete. One process at a time makes them, and others wait for it.

    Args:
        read: reads the source into a builder.
        path: of the source.
        entry: what it is read as.
        mode: see ``offlinerl.data.load.load``.
        table: "auto" or "disk".
        display: reports where the columns are.

    Raises:
        UserError: the source is invalid, or the disk has no room.
    """
    room, source = memory.available(), _source(path, entry, mode)
    if table == "auto" and room is None:
        return read(Builder(str(path)))
    limit = 0 if table == "disk" else int(SHARE * (room or 0))
    key = hashlib.sha256(json.dumps(source["read as"], sort_keys=True).encode()).hexdigest()[:16]
    try:
        place = paths.cache("tables", f"{re.sub(r'[^-.a-zA-Z0-9]+', '-', entry.name)}-{key}")
    except UserError:
        if table == "disk":
            raise
        return read(Builder(str(path)))  # without a home directory there is no cache
    kept = _kept(place, source)
    if kept is not None and kept.nbytes > limit:
        display.say(f"{entry.name}: {kept.nbytes / 1e9:,.3g} GB in files, in {place}")
        return kept
    with ExitStack() as stack:

        def begin() -> Path:
            stack.enter_context(_alone(place, lambda: display.say(f"{entry.name}: waits for another run to read it")))
            if _kept(place, source) is not None:
                raise Made
            sweep(place.parent, place.name)
            why = "" if table == "disk" else f", for {(room or 0) / 1e9:,.3g} GB of memory are free"
            display.say(f"{entry.name}: written once into files in {place}{why}")
            stack.enter_context(display.bar("reading", None, unit="rows"))
            return stack.enter_context(atomic_write(place, overwrite=True, mark=""))  # ours to overwrite

        def told(rows: int, total: int) -> None:
            if into.place is not None:
                display.advance(rows, total=total or None)

        into = Builder(str(path), begin, limit, told)
        try:
            data = read(into)
        except Made:
            return Dataset.mapped(place)
        if into.place is None:
            return data
        write_json(into.place / SOURCE, source)
    return Dataset.mapped(place)


def _source(path: Path, entry: Entry, mode: str) -> dict[str, Any]:
    """What identifies the files made from a source: the source, how it is read, and its current state."""
    if path.is_dir():
        found = (Path(place, name) for place, _, names in os.walk(path, followlinks=True) for name in names)
        files = [file for file in found if file.is_file()]
    else:
        files = [path] if path.is_file() else [Path(file) for file in glob.glob(str(path), recursive=True)]
    files = [file for file in files if not file.name.endswith("columns.yaml")]  # loading may write them
    columns = entry.columns or (known_columns(path) if entry.kind == "file" else None)
    own: dict[str, Any] = {}
    with suppress(UserError):  # the reader reports what is wrong
        if columns is None:
            several = not path.is_file() and formats.kind_of(path) == "several"
            tables = formats.files_of(path) if several else [path]
            own = {str(file): found for file in tables if several and (found := known_columns(file)) is not None}
            if not own and formats.kind_of(tables[0]) == "table":  # a run that resumes gives them
                columns = formats.columns_of(tables[0], entry)
    read_as = dict(
        path=path.absolute(), name=entry.name, mode=mode, obs_keys=entry.obs_keys, columns=columns,
        subset=entry.subset, split=entry.split, steps=entry.steps_allowed, overlong=entry.overlong, env=entry.env,
    )  # fmt: skip
    states = sorted((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    source = {"version": VERSION, "read as": read_as, "files": states, "columns of files": own}
    return json.loads(json.dumps(source, default=str))


def _kept(place: Path, source: dict[str, Any]) -> Dataset | None:
    """The dataset in the cache, if it was made from this source and is complete; else None."""
    try:
        same = json.loads((place / SOURCE).read_text("utf-8")) == source
        return Dataset.mapped(place) if same else None
    except (OSError, ValueError, UserError):  # there is none, or it is damaged
        return None


@contextmanager
def _alone(place: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Holds the lock of a place in the cache; the system releases it when the process ends."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f"{place.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
