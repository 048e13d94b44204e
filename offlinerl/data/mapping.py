"""The column mapping of a table: given once, and stored beside the table."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from offlinerl.util.atomic import write_whole
from offlinerl.util.errors import UserError, did_you_mean

Columns = dict[str, list[str]]
"""Names of a table's columns, or patterns of names such as ``joint_*``, by the field they hold."""

FIELDS = (
    "obs", "action", "reward", "episode", "step", "terminated", "truncated", "last", "mask", "next_obs", "log_prob",
)  # fmt: skip
"""The fields that columns may hold; ``obs.NAME`` and ``next_obs.NAME`` are parts of an observation."""

EXAMPLE = "as in --columns obs=x,y,angle action=throttle,wheel reward=r episode=run"


def parse_columns(words: Sequence[str] | Mapping[str, Any]) -> Columns:
    """A column mapping from ``obs=a,b action=u``, or from a mapping of fields to names or lists of names.

    Raises:
        UserError: a field is unknown, given twice or without a name, or the observation or the action is missing.
    """
    if isinstance(words, str):
        words = words.split()
    if not isinstance(words, Mapping):
        listed = words if isinstance(words, Sequence) else [words]
        if bad := [word for word in listed if not isinstance(word, str) or "=" not in word]:
            raise UserError(f"--columns takes FIELD=NAME,NAME words and not {bad[0]!r}, {EXAMPLE}")
        pairs = [word.partition("=") for word in listed]
        fields = [field for field, _, _ in pairs]
        if twice := [field for field in fields if fields.count(field) > 1]:
            raise UserError(f"--columns names {twice[0]} twice; give all its columns at once, as in {twice[0]}=x,y")
        words = {field: names for field, _, names in pairs}
    found: Columns = {}
    for field, names in words.items():
        base, dot, part = str(field).partition(".")
        if base not in FIELDS or (dot and (base not in ("obs", "next_obs") or not part)):
            raise UserError(f"--columns has no field {field!r}; {did_you_mean(base, FIELDS, ', '.join(FIELDS))}")
        listed = names.split(",") if isinstance(names, str) else list(names) if isinstance(names, Sequence) else []
        listed = [str(name) if isinstance(name, int) else name for name in listed]  # of a data frame
        if not listed or not all(isinstance(name, str) and name for name in listed):
            raise UserError(f"--columns needs the names of columns for {field}, {EXAMPLE}")
        found[str(field)] = listed
    if not any(field.partition(".")[0] == "obs" for field in found) or "action" not in found:
        raise UserError(f"--columns must say what the observation and the action are, {EXAMPLE}")
    return found


def sidecar(path: Path) -> Path:
    """Where the column mapping of a table is stored: beside the file, or inside the folder; for a glob pattern, in the
    folder that contains all its matches."""
    if path.is_dir():
        return path / "columns.yaml"
    if glob.has_magic(str(path)) and not path.exists():
        return Path(*takewhile(lambda part: not glob.has_magic(part), path.parts)) / "columns.yaml"
    return path.with_name(f"{path.name}.columns.yaml")


def known_columns(path: Path) -> Columns | None:
    """The mapping stored beside a table, or in its folder for all tables there; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    for place in (sidecar(path), path.parent / "columns.yaml"):
        if place.is_file():
            try:
                return parse_columns(yaml.safe_load(place.read_text("utf-8")))
            except (yaml.YAMLError, UnicodeDecodeError, TypeError, UserError) as error:
                why = str(error).splitlines()[0]  # YAML adds lines that show the position
                raise UserError(f"{place} does not say what the columns are: {why}; repair or delete it") from error
    return None


def remember(path: Path, columns: Mapping[str, Sequence[str]]) -> Path | None:
    """Stores the mapping beside a table, so that it need be given only once; one that it replaces is kept as a comment.
    Returns the file; None if the mapping is there already or cannot be written."""
    place = sidecar(path)
    text = yaml.safe_dump(dict(columns), sort_keys=False)
    try:
        before = place.read_text("utf-8") if place.is_file() else ""
        if before.endswith(f"\n{text}"):
            return None
        replaced = "".join(f"# before: {line}\n" for line in before.splitlines() if line and not line.startswith("#"))
        write_whole(place, f"# Which columns are what, for offlinerl\n{replaced}{text}")
    except OSError:  # the data may be read-only
        return None
    return place


def in_words(columns: Mapping[str, Sequence[str]]) -> str:
    """A mapping as written on the command line."""
    return " ".join(f"{field}={','.join(names)}" for field, names in columns.items())
