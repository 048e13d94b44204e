"""What ``offlinerl datasets ...`` does: thin functions that print."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
from rich.progress import Progress

import offlinerl.envs  # noqa: F401  (registers our environments)
from offlinerl.data import inspect, load, registry
from offlinerl.data.listing import console, print_table
from offlinerl.data.record import Episode, Sink, aside, write_minari
from offlinerl.data.registry import Entry
from offlinerl.types import UserError


def show(name: str, png: Path | None = None) -> None:
    """Prints a dataset in figures, rewards and returns as they are stored, and draws its histograms.

    Args:
        name: a dataset's name, Minari id or file.
        png: where to draw; nothing is drawn by default.
    """
    entry = registry.resolve(name)
    dataset = load.load(entry, reward="none")
    rows = [(key, _plain(value)) for key, value in _lines(inspect.describe(dataset, entry))]
    print_table(("what", "value"), rows)
    if png is not None:
        console.print(f"histograms: {inspect.plot(dataset, Path(png))}")


def validate(name_or_file: str) -> int:
    """Prints what is wrong with a dataset, and returns the exit status: 1 if there is anything, else 0."""
    findings = inspect.validate(name_or_file)
    for kind, message, rows in findings:
        first = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        console.print(f"{kind}: {message} ({len(rows)} rows: {first})")
    if not findings:
        console.print(f"{name_or_file}: nothing wrong was found")
    return 1 if findings else 0


def generate(name: str, out: Path | None = None, episodes: Iterable[int] | None = None, processes: int = 1) -> Path:
    """Makes a dataset from its recipe and writes it as a Minari dataset.

    Args:
        name: of the recipe.
        out: the folder to write; in the cache by default.
        episodes: numbers of the episodes to make; all by default.
        processes: how many to make at a time.

    Returns:
        The folder.
    """
    from offlinerl.data import generate as recipes  # loads a simulator

    recipe = recipes.recipe(name)
    numbers = list(range(recipe["episodes"]) if episodes is None else episodes)
    path = Path(out) if out else registry.paths.cache("datasets", name)
    env = gymnasium.make(recipe["env"])
    with _progress() as bar:
        task = bar.add_task(f"generating {name}", total=len(numbers))
        write_minari(
            path,
            recipes.generate(name, numbers, processes, lambda done: bar.update(task, completed=done)),
            dataset_id=recipe["dataset_id"],
            env_spec=env.spec,
            observation_space=env.observation_space,
            action_space=env.action_space,
            metadata=_metadata(f"{name}, made from its recipe", "scripted", recipe=recipe, episodes=numbers)
            | {"seed": recipe["seed"]},
        )
    console.print(f"{name}: {len(numbers)} episodes in {path}")
    return path


def import_file(file: Path, dataset_id: str, env: str | None = None) -> Path:
    """Installs a file in D4RL's format as a Minari dataset; its environment comes along if it is known.

    Args:
        file: in D4RL's format; one named after an entry of the registry is that dataset.
        dataset_id: the id to install it under, ``(namespace/)name-vN``.
        env: the environment it was collected in, where its name does not tell: a Gymnasium id, or a name in
            the registry.

    Returns:
        The dataset's folder.

    Raises:
        UserError: the file cannot be read, or there is no such environment.
    """
    entry = registry.resolve(str(file), env)
    dataset = load.load(entry, reward="none")
    spec = _spec(entry)
    path = registry.minari_root() / dataset_id
    write_minari(
        path,
        _episodes(dataset),
        dataset_id=dataset_id,
        env_spec=spec,
        observation_space=_box(dataset.obs),
        action_space=_box(dataset.action),
        metadata=_metadata(f"{entry.name}, imported", "unknown", entry.licence, **dataset.provenance),
    )
    console.print(f"{dataset_id}: {len(dataset)} transitions in {path}")
    return path


def export(name: str, file: Path) -> Path:
    """Writes a dataset as a file in D4RL's format, with ``next_observations``, that loads back equal.

    Args:
        name: a dataset's name, Minari id or file.
        file: the HDF5 file to write.

    Returns:
        ``file``.
    """
    dataset = load.load(name, reward="none")
    columns = dict(
        observations=dataset.obs,
        actions=dataset.action,
        rewards=dataset.reward,
        terminals=dataset.terminated,
        timeouts=dataset.last & ~dataset.terminated,
        next_observations=dataset.next_obs,
    )
    with aside(Path(file)) as temporary, Sink(temporary) as sink, h5py.File(sink, "w") as hdf5:
        for key, column in columns.items():
            hdf5.create_dataset(key, data=column, compression="gzip", shuffle=True)
        hdf5.attrs["provenance"] = json.dumps(dataset.provenance, default=str)
    console.print(f"{name}: {len(dataset)} transitions in {file}")
    return Path(file)


def _episodes(dataset: load.Dataset) -> Iterator[Episode]:
    for start, length in zip(dataset.episode_starts, dataset.episode_lengths, strict=True):
        span = slice(start, start + length)
        observations = np.concatenate([dataset.obs[span], dataset.next_obs[span][-1:]])
        terminations = dataset.terminated[span]
        truncations = dataset.last[span] & ~terminations
        yield Episode(observations, dataset.action[span], dataset.reward[span], terminations, truncations)


def _spec(entry: Entry) -> Any:
    """The specification of the task's environment, or None if there is none."""
    if entry.env is None:
        return None
    if "spec" in entry.env:
        return entry.env["spec"]
    try:
        spec = copy.deepcopy(gymnasium.spec(entry.env["id"]))
    except gymnasium.error.Error as error:
        raise UserError(f"{entry.name}: there is no environment {entry.env['id']}; pass another one") from error
    kwargs = dict(entry.env.get("kwargs", {}))
    spec.max_episode_steps = kwargs.pop("max_episode_steps", spec.max_episode_steps)
    spec.kwargs.update(kwargs)
    return spec


def _box(column: np.ndarray) -> gymnasium.spaces.Box:
    if column.dtype == np.uint8:
        return gymnasium.spaces.Box(0, 255, column.shape[1:], np.uint8)
    return gymnasium.spaces.Box(-np.inf, np.inf, column.shape[1:], np.float32)


def _metadata(description: str, algorithm: str, licence: str = "MIT", **provenance: Any) -> dict[str, Any]:
    return dict(
        author="offlinerl",
        description=description,
        algorithm_name=algorithm,
        licence=licence,
        requirements=["offlinerl"],
        provenance=provenance,
    )


def _lines(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{prefix}{key} ")
        else:
            yield prefix + key, value


def _plain(value: Any) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else "" if value is None else str(value)


def _progress() -> Progress:
    return Progress(console=console, disable=not console.is_terminal)
