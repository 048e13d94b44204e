"""The commands ``offlinerl datasets ...``: thin functions that print."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

import offlinerl.envs  # noqa: F401  (registers our environments)
from offlinerl.data import describe, edit, formats, load, registry, writers
from offlinerl.data.columns import LOG_PROB, LOG_PROB_INFO
from offlinerl.data.d4rl import ENDS
from offlinerl.data.dataset import Dataset
from offlinerl.data.episode import Episode
from offlinerl.data.episode_log import path_of
from offlinerl.data.inferred import spec_of_data
from offlinerl.data.listing import console, print_facts
from offlinerl.data.minari_writer import MINARI, Sink, metadata_of, write_minari
from offlinerl.data.registry import Entry
from offlinerl.data.validate import validate as find_faults
from offlinerl.envs import checks, spaces
from offlinerl.envs.make import make, specification, without_stack
from offlinerl.util.atomic import atomic_write, require_place, swept, write_json
from offlinerl.util.errors import UserError, command, counted
from offlinerl.util.folder import numbered
from offlinerl.util.trees import Tree, tree_map

HDF5 = (".hdf5", ".h5")


def show(
    name: str,
    png: Path | None = None,
    obs_keys: Sequence[str] | None = None,
    json_file: Path | None = None,
    **reading: Any,
) -> None:
    """Prints what one first wants to know about a dataset, with rewards and returns as stored, and plots it.

    Args:
        name: a dataset's name, Minari id or file.
        png: where to save the plot; by default nothing is plotted.
        obs_keys: the parts of the observations to use; by default the dataset's own.
        json_file: where to write all its statistics, see ``offlinerl.data.describe.describe``; "-" prints them instead.
        reading: ``columns`` and ``subset``; see ``offlinerl.data.load.load``.
    """
    require_place(png)
    require_place(json_file)
    entry = registry.limited(registry.resolve(name, obs_keys=obs_keys), reading)
    dataset = load.load(entry, reward="none")
    if json_file is not None:
        facts = describe.describe(dataset)
        if str(json_file) == "-":
            print(json.dumps(facts, indent=1, default=str))
            return
        write_json(json_file, json.loads(json.dumps(facts, default=str)))
    print_facts(dataset.name, describe.summary(dataset))
    if png is not None:
        console.print(f"picture: {describe.plot(dataset, Path(png))}")


def picture_of(name: str) -> Path:
    """The default file for a dataset's plot: the first of NAME.png, NAME-2.png ... that does not exist, or is such a
    plot."""
    files = (Path(f"{stem}.png") for stem in numbered(Path(registry.resolve(name).name.rpartition("/")[2])))
    return next(file for file in files if not file.exists() or describe.is_plot(file))


def validate(
    name_or_file: str,
    env: str | None = None,
    obs_keys: Sequence[str] | None = None,
    action_range: Sequence[Any] | None = None,
    **reading: Any,
) -> int:
    """Prints what is wrong with a dataset, and notes on what may be intended. Returns the exit status: 1 if there is a
    fault.

    Args:
        name_or_file: see ``show``, also for ``obs_keys`` and ``reading``.
        env: the environment it was collected in, whose shapes and bounds it must have; by default its own.
        action_range: lower and upper bounds of the actions, a number or A numbers each, if the environment is unknown
            or has none.
    """
    findings = find_faults(registry.limited(registry.resolve(name_or_file, env, obs_keys), reading), action_range)
    for kind, message, rows, fault, places in findings:
        where = f" ({len(rows)} rows: {'; '.join([_first(rows), *_where(places)])})" if len(rows) else ""
        console.print(f"{'fault' if fault else 'note'}: {kind}: {message}{where}")
    faults = any(finding.fault for finding in findings)
    if not faults:
        console.print(f"{name_or_file}: nothing wrong was found")
    return int(faults)


def _first(rows: np.ndarray) -> str:
    return ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")


def _where(places: Mapping[str, np.ndarray]) -> list[str]:
    """Rows by the file or episode that they are in, for a few of these."""
    first = [f"{_first(rows)} of {place}" for place, rows in list(places.items())[:3]]
    return first + ([f"and in {len(places) - 3} more"] if len(places) > 3 else [])


def import_file(
    file: Path,
    dataset_id: str,
    env: str | None = None,
    overwrite: bool = False,
    obs_keys: Sequence[str] | None = None,
    score_range: Sequence[float] | None = None,
    **reading: Any,
) -> None:
    """Installs a file or folder of any format as a Minari dataset, with its environment if that is known.

    Args:
        file: one named after an entry of the registry is that dataset.
        dataset_id: the id to install it under, ``(namespace/)name-vN``.
        env: the environment it was collected in, if its name does not tell: a Gymnasium id, or a name in the registry.
        overwrite: replace an existing dataset of that id.
        obs_keys: see ``show``, also for ``reading``.
        score_range: two returns that count as scores 0 and 100, to store as Minari's reference scores.

    Raises:
        UserError: the file cannot be read, there is no such environment, or the file's rows do not fit it.
    """
    path = path_of(dataset_id, "id")
    require_place(path, overwrite, MINARI)
    entry = registry.limited(registry.resolve(str(file), env, obs_keys), reading)
    (dataset,) = _read([entry], path)
    scores = dict(zip(("ref_min_score", "ref_max_score"), score_range or (), strict=False))
    _write_minari(dataset, entry, path, dataset_id, f"{entry.name}, imported", env is not None, overwrite, scores)


def _write_minari(
    dataset: Dataset, entry: Entry, path: Path, dataset_id: str, description: str, asked: bool, overwrite: bool,
    more: Mapping[str, Any] = {},
) -> None:  # fmt: skip
    dataset = _chained(dataset)
    spec, observation_space, action_space = _home(entry, dataset, asked)
    metadata = metadata_of(description, "unknown", dataset.provenance, entry.licence)
    if entry.obs_keys:
        metadata["obs_keys"] = list(entry.obs_keys)
    if stack := (entry.env or {}).get("stack", dataset.provenance.get("frame_stack")):
        metadata["frame_stack"] = stack
    if not asked:
        metadata |= {key: dataset.provenance[key] for key in edit.EVALUATED if key in dataset.provenance}
        if "eval_env_spec" in metadata:
            spec = dataset.provenance.get("env_spec")
    metadata |= more
    with swept(path):
        write_minari(
            path,
            _episodes(dataset, observation_space, action_space),
            dataset_id=dataset_id,
            env_spec=spec,
            observation_space=observation_space,
            action_space=action_space,
            metadata=metadata,
            overwrite=overwrite,
        )
    console.print(f"{dataset_id}: {len(dataset):,} transitions in {path}")


def export(
    name: str, file: Path, overwrite: bool = False, format: str = "d4rl", fps: float | None = None, **reading: Any
) -> Path:
    """Writes a dataset, see ``show``, in another format, from which it loads back equal. Returns ``file``.

    Args:
        name: a dataset's name, Minari id or file.
        file: to write; a folder for LeRobot.
        overwrite: replace what is there already.
        format: "d4rl", an HDF5 file with ``next_observations`` that names its environment; "robomimic"; or "lerobot",
            for both of which see ``offlinerl.data.writers``.
        fps: LeRobot's frames, that is steps, per second; by default the dataset's own.
        reading: see ``merge``.

    Raises:
        UserError: the dataset cannot be read or cannot be stored in that format, or the file exists.
    """
    file = Path(file)
    if re.search(r"-v\d+$", file.name):
        raise UserError(
            f"{file} is the id of a Minari dataset, and export writes {format}: name a file, such as {file}.hdf5, or"
            f" use `{command('datasets', 'merge', name, '--out', file)}`"
        )
    require_place(file, overwrite, registry.LEROBOT if format == "lerobot" else None)
    entry = _entry(name, reading)
    (dataset,) = _read([entry], file)
    if format == "d4rl":
        instead = "another format, as in --format robomimic"
        return _write_hdf5(dataset, entry, file, overwrite, instead)
    if format == "robomimic":
        with swept(file):
            writers.write_robomimic(dataset, file, overwrite, entry.env_id)
        if (highest := np.abs(dataset.action).max()) > 1:
            console.print(f"actions reach {highest:.4g}, and robomimic's policies act within -1 to 1: rescale them")
    else:
        fps = fps or dataset.provenance.get("fps")
        if fps is None:
            raise UserError(f"{name} does not state its steps per second, which LeRobot needs: give --fps")
        with swept(file):
            writers.write_lerobot(_chained(dataset), file, fps, entry.name, overwrite)
    console.print(f"{entry.name}: {len(dataset):,} transitions in {file}")
    return file


def _write_hdf5(dataset: Dataset, entry: Entry, file: Path, overwrite: bool, instead: str) -> Path:
    """Writes a file in D4RL's format; ``instead`` is what else can hold observations of several parts."""
    name, keys = entry.name, entry.obs_keys or dataset.provenance.get("obs_keys")
    if isinstance(dataset.observations, Mapping):
        raise UserError(
            f"{name}: a file in D4RL's format holds one array of observations, but these have parts: choose one with"
            f" --obs-keys, or {instead}"
        )
    terminated, last = dataset.terminated, dataset.last
    beyond = bool((terminated & ~last).any())  # as in AntMaze, whose original files mark every end as a timeout
    columns = dict(
        observations=dataset.obs, actions=dataset.stored_actions, rewards=dataset.reward, terminals=terminated,
        timeouts=last if beyond else last & ~terminated, next_observations=dataset.next_obs,
    )  # fmt: skip
    if dataset.log_prob is not None:
        columns[LOG_PROB] = dataset.log_prob
    with (
        swept(file),
        atomic_write(file, overwrite) as temporary,
        Sink(temporary) as sink,
        h5py.File(sink, "w") as hdf5,
    ):
        for key, column in columns.items():
            hdf5.create_dataset(key, data=column, compression="gzip", shuffle=True)
        hdf5.attrs["provenance"] = json.dumps(dataset.provenance, default=str)
        hdf5.attrs[ENDS] = "timeouts" if beyond else "terminals and timeouts"
        hdf5.attrs["task"] = json.dumps(dict(env=entry.env, obs_keys=keys and list(keys)))
    console.print(f"{name}: {len(dataset):,} transitions in {file}")
    return file


def merge(names: Sequence[str], out: str, overwrite: bool = False, **reading: Any) -> None:
    """Merges the episodes of several datasets.

    Args:
        names: of two datasets or more; see ``show``, also for ``reading``, which may contain ``obs_keys`` as well.
        out: the HDF5 file to write, or the Minari id to install it under.
        overwrite: replace what is there already.

    Raises:
        UserError: one cannot be read, or they cannot be merged.
    """
    parts = _read([_entry(name, reading) for name in names], _place(out, overwrite))
    merged = edit.merge(parts, out)
    if what := merged.provenance.get("log_prob"):
        console.print(f"log_prob is {what}")
    _store(merged, out, f"{', '.join(names)}, merged", overwrite)


def split(name: str, out: Sequence[str], share: float, seed: int = 0, overwrite: bool = False, **reading: Any) -> None:
    """Splits a dataset's episodes at random; for the arguments see ``merge`` and ``offlinerl.data.edit.split``."""
    first, second = (_place(target, overwrite) for target in out)
    if first.resolve() == second.resolve():
        raise UserError(f"--out names {first} twice: each part needs a place of its own")
    (whole,) = _read([_entry(name, reading)], first, second)
    for part, target in zip(edit.split(whole, share, seed), out, strict=True):
        _store(part, target, f"a part of {name}", overwrite)


def some(name: str, out: str, asked: Mapping[str, Any], overwrite: bool = False, **reading: Any) -> None:
    """Keeps the episodes of a dataset that satisfy the conditions ``asked``, which are those of
    ``offlinerl.data.edit.some``; for the other arguments see ``merge``."""
    (whole,) = _read([_entry(name, reading)], _place(out, overwrite))
    _store(edit.some(whole, **asked), out, f"some of {name}", overwrite)


def _entry(name: str, reading: Mapping[str, Any]) -> Entry:
    return registry.limited(registry.resolve(name, obs_keys=reading.get("obs_keys")), reading)


def _read(entries: Sequence[Entry], *targets: Path) -> list[Dataset]:
    """Loads the datasets from which something is to be written to ``targets``.

    Raises:
        UserError: one cannot be read, or would be overwritten.
    """
    for entry in entries:
        source = load.locate(entry)
        several = formats.kind_of(source, entry.columns) == "several"
        files = [file.resolve() for file in (formats.files_of(source) if several else [source])]
        for target in targets:
            if any(file.is_relative_to(target.resolve()) for file in files):
                raise UserError(f"{target} is also to be read and would be replaced: choose another place to write")
    return [load.load(entry, reward="none") for entry in entries]


def _place(out: str, overwrite: bool) -> Path:
    """The path of an HDF5 file or a Minari dataset, whichever ``out`` names; checked before long work.

    Raises:
        UserError: it names neither, or something is there already.
    """
    if Path(out).suffix in HDF5:
        path = Path(out)
    elif re.fullmatch(r"[-\w/]+-v\d+", out):
        path = path_of(out, "--out")
    else:
        raise UserError(f"--out must be an HDF5 file, as in some.hdf5, or a Minari id, as in mine/some-v0, not {out}")
    require_place(path, overwrite, None if path.suffix in HDF5 else MINARI)
    return path


def _store(dataset: Dataset, out: str, description: str, overwrite: bool) -> None:
    """Writes a dataset into an HDF5 file or as a Minari dataset; see ``_place``."""
    entry, path = dataset.entry or Entry(Path(out).stem, {}), _place(out, overwrite)
    if entry.env is None and "env_spec" in dataset.provenance:
        stack = {"stack": dataset.provenance["frame_stack"]} if "frame_stack" in dataset.provenance else {}
        entry = replace(entry, env={"spec": dataset.provenance["env_spec"]} | stack)
    if path.suffix in HDF5:
        instead = "write a Minari dataset, as with --out mine/some-v0"
        _write_hdf5(dataset, replace(entry, name=description), path, overwrite, instead)
    else:
        _write_minari(dataset, entry, path, out, description, False, overwrite)


def _chained(dataset: Dataset) -> Dataset:
    """The dataset as formats of whole episodes need it, with a message if that splits some; see
    ``offlinerl.data.edit.chained``."""
    chained = edit.chained(dataset)
    before, after = (len(of.episode_starts) for of in (dataset, chained))
    if after > before:
        console.print(
            f"in {counted(after - before, 'step')}, the next observation is not the next row's, and this format ends"
            f" episodes there: {before} became {after}; an HDF5 file keeps them as they are"
        )
    return chained


def _episodes(dataset: Dataset, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> Iterator[Episode]:
    """The episodes of a dataset; discrete values are stored as the numbers that their spaces have for them."""
    for start, length in zip(dataset.episode_starts, dataset.episode_lengths, strict=True):
        span = slice(start, start + length)
        shown = np.r_[dataset.at[span], dataset.next_at[span][-1:]]
        observations = tree_map(lambda leaf, shown=shown: leaf[shown], dataset.observations)
        actions = dataset.action[span]
        if isinstance(observation_space, Discrete):
            observations = observations.argmax(1) + observation_space.start
        if isinstance(action_space, Discrete):
            actions = actions[:, 0].astype(np.int64)
        terminated = dataset.terminated[span]
        infos = {} if dataset.log_prob is None else {LOG_PROB_INFO: dataset.log_prob[span]}
        yield Episode(observations, actions, dataset.reward[span], terminated, dataset.last[span] & ~terminated, infos)


def _home(entry: Entry, dataset: Dataset, asked: bool) -> tuple[str | None, gymnasium.Space, gymnasium.Space]:
    """The specification and the spaces of a dataset's environment; if it cannot be made here or is unknown, those that
    the dataset states. One that the user asked for must exist, and the dataset must fit it."""
    spec = spec_of_data(dataset)[0]
    stated = spaces.from_json(json.loads(dataset.provenance.get("action_space") or "{}"))
    fits = isinstance(stated, Box) and stated.shape == dataset.action.shape[1:] and stated.dtype.kind == "f"
    actions = stated if fits else _box(dataset.action)
    if spec.num_actions:
        actions = Discrete(spec.num_actions, start=spec.first_action)
    boxes = _box(dataset.observations), actions
    if entry.env is None:
        return None, *boxes
    try:
        env = make(without_stack(entry.env), observed=False)
    except UserError:
        if asked:
            raise
        return dataset.provenance.get("env_spec", entry.env.get("spec")), *boxes
    observation_space, action_space = env.observation_space, env.action_space
    checks.close(env)
    if not (isinstance(observation_space, Discrete) or spaces.is_observed(observation_space)):
        observation_space = spaces.observed(spaces.parts(observation_space, entry.obs_keys, entry.env_id))
    shapes = [tree_map(lambda leaf: leaf.shape[1:], dataset.observations), dataset.action.shape[1:]]
    choices = isinstance(observation_space, Discrete)
    due = [(int(observation_space.n),) if choices else spaces.shapes(observation_space), action_space.shape or (1,)]
    if shapes != due:
        raise UserError(
            f"{entry.name}: observations of shape {shapes[0]} and actions of shape {shapes[1]} do not fit"
            f" {entry.env_id}, which has {due[0]} and {due[1]}; name the environment the data was"
            " collected in with --env"
        )
    return specification(env), observation_space, action_space


def _box(column: Tree) -> gymnasium.Space:
    if isinstance(column, Mapping):
        return Dict({path: _box(leaf) for path, leaf in column.items()})
    if column.dtype == np.uint8:
        return Box(0, 255, column.shape[1:], np.uint8)
    return Box(-np.inf, np.inf, column.shape[1:], np.float32)
