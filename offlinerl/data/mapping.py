"""Which columns of a table are what: said once, and written beside it."""

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
"""The names of a table's columns, or patterns of them as in ``joint_*``, by what they hold."""

FIELDS = (
    "obs", "action", "reward", "episode", "step", "terminated", "truncated", "last", "mask", "next_obs", "log_prob",
)  # fmt: skip
"""What a column may hold; ``obs.NAME`` and ``next_obs.NAME`` are parts of an observation."""

EXAMPLE = "as in --columns obs=x,y,angle action=throttle,wheel reward=r episode=run"


def parse_columns(words: Sequence[str] | Mapping[str, Any]) -> Columns:
    """A mapping of columns from ``obs=a,b action=u``, or from a mapping of names or lists of them.

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
        if not listed or not all(isinstance(name, str) and name for name in listed):
            raise UserError(f"--columns needs the names of columns for {field}, {EXAMPLE}")
        found[str(field)] = listed
    if not any(field.partition(".")[0] == "obs" for field in found) or "action" not in found:
        raise UserError(f"--columns must say what the observation and the action are, {EXAMPLE}")
    return found


def sidecar(path: Path) -> Path:
    """Where the mapping of a table's columns is written: beside the file, or within the folder, which of a pattern is
    that of all files that are like it."""
    if path.is_dir():
        return path / "columns.yaml"
    if glob.has_magic(str(path)) and not path.exists():
        return Path(*takewhile(lambda part: not glob.has_magic(part), path.parts)) / "columns.yaml"
    return path.with_name(f"{path.name}.columns.yaml")


def known_columns(path: Path) -> Columns | None:
    """The mapping that was written beside a table, or in its folder for all tables there; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    for place in (sidecar(path), path.parent / "columns.yaml"):
        if place.is_file():
            try:
                return parse_columns(yaml.safe_load(place.read_text("utf-8")))
            except (yaml.YAMLError, UnicodeDecodeError, TypeError, UserError) as error:
                why = str(error).splitlines()[0]  # YAML shows the place in lines of its own
                raise UserError(f"{place} does not say what the columns are: {why}; repair or delete it") from error
    return None


def remember(path: Path, columns: Mapping[str, Sequence[str]]) -> Path | None:
    """Write the mapping beside a table, so that it is given once; None if it is there already, or cannot be written."""
    place = sidecar(path)
    text = "# Which columns are what, for offlinerl\n" + yaml.safe_dump(dict(columns), sort_keys=False)
    try:
        if place.is_file() and place.read_text("utf-8") == text:
            return None
        write_whole(place, text)
    except OSError:  # data may lie where nobody may write
        return None
    return place


def in_words(columns: Mapping[str, Sequence[str]]) -> str:
    """A mapping as it is given on the command line."""
    return " ".join(f"{field}={','.join(names)}" for field, names in columns.items())
