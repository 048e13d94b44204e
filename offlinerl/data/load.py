"""Loads datasets by name, id or file."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from offlinerl.data import formats, registry
from offlinerl.data.assemble import observed
from offlinerl.data.builder import Builder
from offlinerl.data.d4rl import Mode, load_hdf5
from offlinerl.data.dataset import Dataset
from offlinerl.data.edit import Made, covers, made_of, of_all, require_same_parts
from offlinerl.data.mapping import known_columns, remember
from offlinerl.data.minari_reader import installed, load_minari
from offlinerl.data.on_disk import through_cache
from offlinerl.data.registry import Entry
from offlinerl.data.rewards import with_reward
from offlinerl.util.display import Display
from offlinerl.util.errors import NoSteps, UserError, counted, either, reading
from offlinerl.util.trees import tree_leaves


def load(
    source: str | Path | Entry,
    env: str | None = None,
    *,
    mode: Mode = "lossless",
    reward: str | None = None,
    obs_keys: Sequence[str] | None = None,
    columns: Sequence[str] | Mapping[str, Any] | None = None,
    subset: str | None = None,
    table: str = "memory",
    display: Display | None = None,
    store_columns: bool = True,
) -> Dataset:
    """Loads a dataset by name, Minari id or file, downloading or unpacking it if necessary.

    Args:
        source: a name in the registry, a Minari id, a file or folder in any supported format, a glob pattern of files,
            or an ``Entry``; see ``offlinerl.data.registry.resolve``.
        env: the environment of a file: a name in the registry or a Gymnasium id.
        mode: for files in D4RL's format; see ``load_hdf5``.
        reward: a rule among ``offlinerl.data.rewards.RULES`` instead of the dataset's own; "none" keeps the rewards
            as stored.
        obs_keys: the parts of the observations to use, if ``source`` is not an ``Entry``; by default the dataset's own.
        columns: the column mapping of a table, as in ``{"obs": ["x", "y"], "action": ["u"], "episode": ["run"]}`` or
            ``"obs=x,y action=u episode=run"``; see ``offlinerl.data.tables``. It is stored beside the table and, by
            default, read from there.
        subset: a filter key of a robomimic file or a split of a LeRobot dataset.
        table: where to keep the columns: "memory"; "disk", in files in the user's cache that are written once; or
            "auto", on disk if they are too large for the available memory.
        display: reports where the columns are, if they are not in memory.
        store_columns: whether to store the column mapping, if one is given, beside the table.

    Raises:
        UserError: the dataset is unknown, cannot be obtained, or is invalid.
    """
    entry = source if isinstance(source, Entry) else registry.resolve(str(source), env, obs_keys)
    if columns is not None or subset is not None:
        entry = registry.limited(entry, dict(columns=columns, subset=subset))
    if entry.kind == "object":
        return _chosen(entry)
    path = locate(entry)
    if table == "memory":
        dataset = read(path, entry, mode, Builder(str(path)))
    else:
        dataset = through_cache(partial(read, path, entry, mode), path, entry, mode, table, display or Display())
    if store_columns and entry.columns is not None:
        remember(path, entry.columns)
    dataset.provenance.update(dataset=entry.name, checksum=entry.checksum(path))
    return replace(with_reward(dataset, entry.reward if reward is None else reward), entry=entry)


def _chosen(entry: Entry) -> Dataset:
    """A dataset in memory, restricted to the parts of its observations that an entry asks for."""
    data: Dataset = entry.where
    task_keys = data.entry and data.entry.obs_keys
    if not entry.obs_keys or entry.obs_keys == task_keys:
        return data
    own = list(data.provenance.get("obs_keys") or task_keys or ())
    if own and covers(entry.obs_keys, own):
        return data
    if isinstance(data.observations, Mapping):
        parts = dict(tree_leaves(data.observations))
        provenance = {**data.provenance, "obs_keys": list(entry.obs_keys)}
        shown = observed(parts, entry.obs_keys, entry.name)
        return replace(data, observations=shown, provenance=provenance, entry=entry)
    if own or entry.env is None:  # else they are the environment's parts, in the vector's order
        what = f"one vector of {', '.join(own)} already" if own else "one vector without parts"
        raise UserError(f"{entry.name}: its observations are {what}; leave out obs_keys, or give them to load_dataset")
    return data


def read(path: Path, entry: Entry, mode: Mode, into: Builder) -> Dataset:
    """Reads a file or folder of any format, or several files of one format."""
    kind = formats.kind_of(path, entry.columns)
    if kind == "several":
        return _several(path, entry, mode, into)
    if kind != "d4rl" and mode != "lossless":
        raise UserError(f"{entry.name} is not a file in D4RL's format; the mode {mode} is for those only")
    if kind in formats.FORMATS:
        return formats.read(kind, path, entry, into)
    if given := [flag for flag in ("columns", "subset") if getattr(entry, flag) is not None]:
        raise UserError(f"{path} is no table and has no subsets: leave out --{given[0]}")
    with reading(f"the dataset {path}", "download or write it again"):
        if kind == "written":
            data = Dataset.mapped(path)
            if entry.obs_keys is None:
                return data
            parts = dict(tree_leaves(data.observations))
            return replace(data, observations=observed(parts, entry.obs_keys, str(path)))
        if kind == "minari":
            return load_minari(path, name=entry.name, obs_keys=entry.obs_keys, into=into)
        if entry.obs_keys and entry.env is None and entry.obs_keys != registry.resolve(str(path)).obs_keys:
            raise UserError(f"{path}: its observations are one vector without parts; leave out --obs-keys")
        allowed = entry.steps_allowed
        return load_hdf5(
            path, mode, name=entry.name, max_episode_steps=allowed, split=entry.split,
            longest=None if entry.overlong else allowed, env=entry.env, into=into,
        )  # fmt: skip


def _several(path: Path, entry: Entry, mode: Mode, into: Builder) -> Dataset:
    """Reads the files of a folder or glob pattern, one after another. Files without a step, such as a log that was
    stopped at once, are left out and counted, like episodes without a step."""
    if entry.columns is None and (known := known_columns(path)):
        entry = replace(entry, columns=known)
    facts: list[dict[str, Any]] = []
    files, empty, rows = [], [], 0
    split: list[dict[str, str]] = []
    made: list[Made] = []
    for file, one in formats.several(formats.files_of(path), entry):
        try:
            part = read(file, one, mode, into.part())
        except NoSteps as error:
            empty.append(file.name)
            rows += error.rows
            continue
        before, its = facts[-1].get("open_episode") if facts else None, part.provenance
        if before is not None and its.get("first_episode") == before:
            split.append(dict(episode=before, begins=files[-1].name, goes_on=file.name))
        files.append(file)
        facts.append(its)
        if len(kinds := {fact["format"] for fact in facts}) > 1:
            raise UserError(
                f"{path} has files of {either(*sorted(kinds))}; put those of one kind into their own folder"
            )
        made.append(made_of(part))
        require_same_parts(str(files[0]), made[0], str(file), made[-1])
        into.add(part, str(file))
        into.drop()
    if not files:
        raise NoSteps(f"none of the {counted(len(empty), 'file')} of {path} holds a step to learn from", rows)
    names = [file.name for file in files]
    about = {**facts[0], **of_all(facts, names, rows), "file": str(path), "files": names}
    for name in ("first_episode", "open_episode"):
        about.pop(name, None)
    if "columns" in about:
        about["columns"] = formats.columns_of(files[0], entry)
    more = dict(empty_files=empty, split_episodes=split)
    return into.finish(entry.name, about | {name: found for name, found in more.items() if found})


def locate(entry: Entry) -> Path:
    """The file or folder of a dataset, downloaded first if it is not on this machine.

    Raises:
        UserError: it does not exist and cannot be downloaded.
    """
    kind, where = entry.kind, entry.where
    if kind == "minari":
        return installed(where)
    path = entry.path
    if kind == "d4rl" and not path.exists():
        registry.download(entry)
    if not path.exists() and not glob.has_magic(str(path)):
        whole = entry.name.removesuffix(registry.HELDOUT)
        split = "" if whole == entry.name else " --split heldout"
        hint = {
            "recipe": f"generate it with `offlinerl datasets generate {whole}{split}`",
            "builtin": "the installation lacks it: install the package again",
        }.get(kind, "check the path")
        raise UserError(f"{path} does not exist; {hint}")
    return path


def require_readable(entry: Entry) -> None:
    """Raise a UserError if a dataset is not on this machine and cannot be downloaded, or if the columns of its tables
    are not known. No row is read."""
    path = locate(entry)
    kind = formats.kind_of(path, entry.columns)
    if kind in ("table", "several"):
        files = [path] if kind == "table" else formats.files_of(path)
        for _ in formats.several(files, replace(entry, columns=entry.columns or known_columns(path))):
            pass
