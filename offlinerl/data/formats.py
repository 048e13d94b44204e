"""Detects the format of a file or folder from its contents, and reads it."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from offlinerl.data import lerobot, recordings, tables
from offlinerl.data.assemble import Steps, assemble
from offlinerl.data.builder import Builder
from offlinerl.data.d4rl import FILE_END
from offlinerl.data.dataset import Dataset
from offlinerl.data.mapping import Columns, known_columns
from offlinerl.data.registry import SUFFIXES, Entry, folder_kind
from offlinerl.util.errors import UNSOUND, NoSteps, UserError, reading


class Format(NamedTuple):
    """A format that is read episode by episode."""

    name: str
    episodes: Callable[..., Iterator[Steps]]  # takes a path and obs_keys, and a subset if there are any
    ends: str = ""  # what marks the ends of episodes; in a table, its columns say
    successors: str = "next_obs, or else the next row"
    subsets: bool = False  # whether episodes may be chosen by the name of a subset


FORMATS = dict(
    robomimic=Format("robomimic HDF5", recordings.robomimic_episodes, "the ends of the demonstrations", subsets=True),
    ogbench=Format("OGBench npz", recordings.ogbench_episodes, "the ends of the trajectories"),
    d3rlpy=Format("d3rlpy HDF5", recordings.d3rlpy_episodes, "the ends of the episodes", "next row"),
    lerobot=Format("LeRobot", lerobot.lerobot_episodes, "episode_index", "next row", subsets=True),
    table=Format("table", tables.table_episodes),
)


def kind_of(path: Path, columns: Columns | None = None) -> str:
    """The format of a file or folder: "minari", "d4rl", "written" by ``Dataset.write``, one of ``FORMATS``, or
    "several" for a folder or glob pattern of files. An unknown format is "d4rl", whose reader explains what it expects.

    Args:
        path: of a file or folder, or a glob pattern such as ``logs/*.csv``.
        columns: a column mapping; with one, an ``.npz`` is a table even if it looks like OGBench's.
    """
    if path.is_dir():
        return folder_kind(path) or "several"
    if not path.is_file():
        return "several" if glob.has_magic(str(path)) else "d4rl"
    with path.open("rb") as file:
        begin = file.read(4096)
    if not begin and path.suffix.lower() in (".npz", ".parquet"):  # a log that was stopped at once
        return "table"
    if begin.startswith(b"\x89HDF\r\n\x1a\n"):
        return _of_hdf5(path)
    if begin.startswith(b"PAR1"):
        return "table"
    if begin.startswith(b"PK\x03\x04"):
        return _of_npz(path, columns)
    texts = b"\0" not in begin or begin.startswith(tables.UTF_16)
    named = path.suffix.lower() in (".csv", ".tsv") and texts  # even without rows yet
    return "table" if named or _is_text_table(begin) else "d4rl"


def is_table(path: Path, columns: Columns | None = None) -> bool:
    """Whether this is a table, or a folder or pattern of files, which may be tables: what a column mapping is for."""
    return kind_of(path, columns) in ("table", "several")


def _of_hdf5(path: Path) -> str:
    try:
        with h5py.File(path, "r") as file:
            if isinstance(file.get("data"), h5py.Group) and any(name.startswith("demo") for name in file["data"]):
                return "robomimic"
            return "d3rlpy" if {"num_episodes", "columns"} <= set(file) else "d4rl"
    except OSError:  # an incomplete file, which the reader reports
        return "d4rl"


def _of_npz(path: Path, columns: Columns | None) -> str:
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = set(archive.files)
    except (*UNSOUND, OSError):  # incomplete, which the reader reports, or an archive of something else
        return "table" if path.suffix.lower() == ".npz" else "d4rl"
    maybe = names.issuperset(recordings.OGBENCH) and columns is None and known_columns(path) is None
    return "ogbench" if maybe and recordings.ogbench_layout(path) else "table"


def _is_text_table(begin: bytes) -> bool:
    """Whether these bytes begin a text of delimited columns."""
    try:
        lines = begin.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        if error.start < len(begin) - 4:  # not just a character cut off at the end
            return False
        lines = begin[: error.start].decode("utf-8-sig").splitlines()
    lines = [line for line in lines if line.strip()]
    if len(lines) < 2 or lines[0].lstrip()[:1] in "{[<" or "\0" in lines[0]:
        return False
    return tables.delimiter_of(lines[0]) in lines[0] or lines[0].replace("_", "").isalnum()


def files_of(path: Path) -> list[Path]:
    """The files of a folder or glob pattern, sorted by the numbers that their names end in, then by name.

    Raises:
        UserError: there are none.
    """
    if path.is_dir():
        visible = (file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        found = [file for file in visible if file.suffix.lower() in SUFFIXES]
        what = f"the folder {path} holds no dataset, nor files of a format that is known"
    else:
        found = [Path(file) for file in glob.glob(str(path), recursive=True)]
        found = [file for file in found if file.suffix.lower() not in (".yaml", ".yml")]
        what = f"no file is like {path}"
    if not found:
        raise UserError(f"{what}; check the path")
    return sorted(found, key=lambda file: [recordings.by_number(part) for part in (*file.parts[:-1], file.stem)])


def episodes_of(kind: str, path: Path, entry: Entry) -> Iterator[Steps]:
    """The episodes of a file or folder in one of the ``FORMATS``.

    Raises:
        UserError: it cannot be read, or lacks what the entry asks for.
    """
    its = FORMATS[kind]
    if entry.subset is not None and not its.subsets:
        raise UserError(f"{path} is a {its.name} without subsets: leave out --subset")
    if entry.columns is not None and kind != "table":
        raise UserError(f"{path} is in the format {its.name}, which says what its columns are: leave out --columns")
    with reading(f"the dataset {path}", "download or write it again"):
        asked: dict[str, Any] = dict(obs_keys=entry.obs_keys)
        if its.subsets:
            asked["subset"] = entry.subset
        if kind == "table":
            asked["columns"] = columns_of(path, entry)
        yield from its.episodes(path, **asked)


def columns_of(path: Path, entry: Entry) -> Columns:
    """The column mapping of a table: as given, else as stored beside the file, else inferred from its column names."""
    given = entry.columns or known_columns(path)
    return given or tables.usual_columns(tables.read_names(path), str(path))


def several(files: Sequence[Path], entry: Entry) -> Iterator[tuple[Path, Entry]]:
    """The files that make up one dataset, and the entry to read each with, in which the columns of every table are in
    the order of the first.

    Raises:
        UserError: a table lacks a column that the first one has, or has one more; only log-probabilities may be
            missing.
    """
    first: tuple[Path, Columns] | None = None
    for file in files:
        if kind_of(file, entry.columns) != "table":
            yield file, entry
            continue
        try:
            its = tables.resolved(tables.read_names(file), columns_of(file, entry), str(file))
        except NoSteps:  # no header, which its reader reports
            yield file, entry
            continue
        first = first or (file, its)
        for field in {**first[1], **its}.keys() - {"log_prob"}:
            due, found = (set(of.get(field, ())) for of in (first[1], its))
            for without, other, lacking in ((file, first[0], due - found), (first[0], file, found - due)):
                if lacking:
                    raise UserError(
                        f"{without} has no column {min(lacking)!r}, which {other} has for {field}: name columns that"
                        " all files have with --columns, or put the files together with `offlinerl datasets merge`"
                    )
        yield file, replace(entry, columns={field: first[1].get(field, names) for field, names in its.items()})


def read(kind: str, path: Path, entry: Entry, into: Builder) -> Dataset:
    """Reads a file or folder in one of the ``FORMATS`` into the dataset that ``into`` builds; see
    ``episodes_of``."""
    obs_keys = entry.obs_keys and list(entry.obs_keys)
    facts: dict[str, Any] = dict(format=FORMATS[kind].name, file=str(path))
    if kind == "table":
        names, facts["columns"] = tables.read_names(path), columns_of(path, entry)
        obs_keys = obs_keys or tables.parts_named(facts["columns"])
        facts["actions"] = tables.resolved(names, facts["columns"], str(path))["action"]
        facts["unused_ids"] = tables.unused_ids(names, facts["columns"])
        identified = "episode" if "episode" in facts["columns"] else "step"
        fields = (identified, "terminated", "truncated", "last", "mask")
        ends = [field for field in fields if field in facts["columns"]]
        facts["episode_ends"] = " and ".join(ends) or FILE_END
        facts["successors"] = "next_obs" if "next_obs" in facts["columns"] else "next row"
    else:
        facts |= dict(episode_ends=FORMATS[kind].ends, successors=FORMATS[kind].successors)
    if kind == "lerobot":
        info = lerobot.lerobot_info(path)
        facts |= dict(version=info["codebase_version"], robot=info.get("robot_type"), fps=info.get("fps"))
        facts["left_out"] = lerobot.left_out(path, entry.obs_keys)
    facts |= dict(obs_keys=obs_keys, subset=entry.subset, provenance=_origin(kind, path))
    facts["parts"] = _parts_of(kind, path, entry)
    return assemble(str(path), entry.name, episodes_of(kind, path, entry), _known(facts), into)


def _parts_of(kind: str, path: Path, entry: Entry) -> Columns:
    """The parts of the observations in order, and the columns of each, if these have names."""
    found: Columns = {}
    if kind == "table":
        found = tables.parts_of(tables.read_names(path), columns_of(path, entry), str(path))
    elif kind == "robomimic":
        found = {part: [] for part in recordings.robomimic_parts(path, entry.subset)}
    elif kind == "lerobot":
        found = {part: [] for part in lerobot.parts_of(path, entry.obs_keys)}
    return {part: found.get(part, []) for part in entry.obs_keys or found}


def _origin(kind: str, path: Path) -> Any:
    """The provenance that ``offlinerl.data.writers`` stored in a file; None if it did not write the file."""
    with reading(f"what {path} says of where it is from", "export it again"):
        if kind == "robomimic":
            with h5py.File(path, "r") as file:
                return json.loads(file["data"].attrs.get("provenance", "null"))
        if kind == "lerobot" and (file := path / "meta" / "provenance.json").is_file():
            return json.loads(file.read_text("utf-8"))
    return None


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fact for name, fact in facts.items() if fact not in (None, [])}


def of_frame(
    source: Mapping[str, Any], columns: Columns | None, name: str, obs_keys: Sequence[str] | None = None
) -> Dataset:
    """The dataset of a table in memory, a mapping of column names to columns; see ``tables.table_episodes``."""
    columns = columns or tables.usual_columns([str(column) for column in source], "the table")
    episodes = tables.table_episodes(source, columns, obs_keys)
    facts = dict(format="table", columns=columns, obs_keys=tables.parts_named(columns, obs_keys))
    names = [str(column) for column in source]
    parts, facts["unused_ids"] = tables.parts_of(names, columns, "the table"), tables.unused_ids(names, columns)
    facts["actions"] = tables.resolved(names, columns, "the table")["action"]
    facts["parts"] = {part: parts.get(part, []) for part in obs_keys or parts}
    return assemble(name, name, episodes, _known(facts))
