"""The files of a run's folder, other than its checkpoints."""

from __future__ import annotations

import csv
import io
import itertools
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

import offlinerl
from offlinerl.util.atomic import alone, atomic_write, write_whole
from offlinerl.util.errors import UserError, reading


def require_free(folder: Path, instead: str) -> None:
    """Raise a UserError, which says what to do ``instead``, unless a run can begin in that folder."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:  # TensorBoard could not open it
        raise UserError(
            f"the name of the output folder {folder} is not UTF-8; name another --out, or set LC_ALL=C.UTF-8"
        ) from error
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"the output folder {folder} exists; {instead}")


def make(folder: Path) -> bool:
    """Make a folder. Returns whether it did not exist before; of several concurrent calls, one returns True."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


@contextmanager
def held(folder: Path, made: bool = False) -> Iterator[None]:
    """Lock a run's folder against other runs.

    Args:
        folder: of the run.
        made: whether the folder was made for this run, so that it is deleted at the end if it is still empty.

    Raises:
        UserError: another run holds the lock.
    """
    with alone(folder, f"{folder} is being written by another run: wait until it ends, or stop it, and try again"):
        try:
            yield
        finally:
            if made:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()


def numbered(stem: Path) -> Iterator[Path]:
    """``stem``, ``stem-2``, ``stem-3`` ..."""
    yield stem
    for number in itertools.count(2):
        yield stem.with_name(f"{stem.name}-{number}")


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path names: a file, or the last checkpoint in a run's folder.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "last.ckpt").is_file():
            raise UserError(f"the folder {path} holds no checkpoint last.ckpt; name a checkpoint or a run's folder")
        return path / "last.ckpt"
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}")
    return path


def write_config(folder: Path, settings: Mapping[str, Any]) -> None:
    stated = yaml.safe_dump(dict(settings, versions=versions()), sort_keys=False)
    about = "Everything needed to run this again, by: offlinerl fit --config config.yaml"
    write_whole(folder / "config.yaml", f"# {about}\n{stated}")


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "lightning", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "numpy")
    return dict(offlinerl=offlinerl.__version__, python=platform.python_version(), **{n: version(n) for n in names})


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a CSV file, with a header if it is new. If it lacks columns, as a file of an older version may,
    they are added."""
    columns, known, earlier = list(rows[0]), [], []
    if path.exists() and path.stat().st_size:
        with path.open(newline="") as file:
            table = csv.DictReader(file)
            known = list(table.fieldnames or ())
            earlier = [] if set(columns) <= set(known) else list(table)
    if set(columns) <= set(known):
        columns = known
    else:
        columns += [column for column in known if column not in columns]
        write_whole(path, _text(columns, earlier))
    with path.open("a", newline="") as file:
        file.write(_text(columns, rows, header=False))


def _text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool = True) -> str:
    """Rows as CSV, with "nan" for missing values."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="nan", extrasaction="ignore")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def trim(path: Path, clock: str, time: int, needed: Sequence[str] = ()) -> None:
    """Drop the rows of a CSV file whose column ``clock`` is beyond ``time``; a resumed run writes them again.

    Args:
        path: a table of a run, with numbers only.
        clock: name of a column.
        time: the last value of that column to keep.
        needed: further columns that it must have.

    Raises:
        UserError: it is not such a table.
    """
    if not path.exists() or not path.stat().st_size:  # empty if the process was killed before writing to it
        return
    with path.open(newline="") as file, reading(f"the table {path}", "delete it to continue without its rows"):
        header, *rows = csv.reader(file)
        rows = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
        kept = [row for row in rows if int(row[clock]) <= time]
        for row in kept:  # all are plotted at the end, so they must be numbers
            _ = [float(row[column]) for column in {"seed", *needed, *row}]
    write_whole(path, "".join(",".join(row) + "\r\n" for row in [header, *(row.values() for row in kept)]))


def clear(path: Path, clock: str, time: int) -> None:
    """Drop a table's rows from a time on, if there are any. Rows are in order, so only the last one is read to find
    out: a long table is not read at every evaluation."""
    if not path.exists():
        return
    with path.open("rb") as file:
        header = file.readline()
        file.seek(max(len(header), path.stat().st_size - LONGEST))
        last = file.read().splitlines()[-1:]
    fields = (next(csv.reader([line.decode("utf-8", "replace")]), []) for line in (header, *last))
    row = dict(zip(*fields, strict=False)) if last else {}
    if not (row.get(clock, "").isdigit() and int(row[clock]) < time):
        trim(path, clock, time - 1)


LONGEST = 1 << 16
"""Maximum length of a row of a table in bytes."""


def copy_whole(source: Path, target: Path) -> None:
    with atomic_write(target, overwrite=True) as temporary:
        temporary.write_bytes(source.read_bytes())
