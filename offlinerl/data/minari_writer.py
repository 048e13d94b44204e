"""Writes episodes as Minari datasets, whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
from gymnasium.envs.registration import EnvSpec

from offlinerl.data.episode import Episode
from offlinerl.util.atomic import atomic_write, to_json
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_leaves

MINARI = "data/metadata.json"
"""The file by which a folder is recognised as a Minari dataset."""


class Sink(io.FileIO):
    """A new file for HDF5 to write to, which holds back its first error until ``check`` or the end of the ``with``.
    HDF5 does not survive a failed write: it prints its stack, never closes the file and may crash the interpreter."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while self.error is None and rest:
                rest = rest[super().write(rest) :]  # writes are partial if the disk is nearly full
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        """Raises the first error met so far."""
        if self.error is not None:
            raise self.error

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        super().__exit__(kind, *details)
        if kind is None or issubclass(kind, Exception):  # HDF5 may raise one because of the failed write
            self.check()


def metadata_of(
    description: str, algorithm: str, provenance: Mapping[str, Any], licence: str = "MIT", **more: Any
) -> dict[str, Any]:
    """Minari's metadata of a dataset that this program made."""
    return dict(
        author="offlinerl", description=description, algorithm_name=algorithm, licence=licence,
        requirements=["offlinerl"], **more, provenance=dict(provenance),
    )  # fmt: skip


def write_minari(
    path: Path,
    episodes: Iterable[Episode],
    *,
    dataset_id: str,
    env_spec: EnvSpec | str | None,
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a dataset in Minari's HDF5 format, one episode at a time, in the arrays' own dtypes.

    Minari loads it by id if ``path`` is ``<Minari's root>/<dataset_id>``, and otherwise with
    ``minari.MinariDataset(path / "data")``; with an ``env_spec``, it recovers the environment too.

    Args:
        path: the dataset's folder; ``path/data`` receives ``main_data.hdf5`` and ``metadata.json``.
        episodes: consumed lazily, so that a recording need not fit in memory.
        dataset_id: ``(namespace/)name-vN``.
        env_spec: the environment's specification or its JSON, or None if there is no environment.
        metadata: further entries, such as author, licence, description, algorithm_name, code_permalink, requirements,
            seed, provenance.
        overwrite: replace an existing dataset once the new one is complete.

    Returns:
        ``path``.

    Raises:
        UserError: ``path`` exists and ``overwrite`` is not set, or it is not a Minari dataset; there is no episode, or
            the disk is full.
        ValueError: an episode's arrays do not have matching lengths, or the id is malformed.
        TypeError: the id has no version.

    Source: the layout of Minari 0.5.4, ``minari/dataset/_storages/hdf5_storage.py``.
    """
    # Importing Minari takes a second, so it is imported only where a dataset is written.
    from minari import __version__ as minari_version
    from minari.dataset.minari_dataset import parse_dataset_id

    parse_dataset_id(dataset_id)
    metadata = dict(metadata or {})
    for key in ("author", "author_email"):  # Minari makes a set of it, which for a string would hold its letters
        if isinstance(metadata.get(key), str):
            metadata[key] = [metadata[key]]
    with atomic_write(path, overwrite, MINARI) as temporary:
        data = temporary / "data"
        data.mkdir(parents=True)
        total_episodes = total_steps = 0
        # The format of HDF5 1.10 (2016) needs a few bytes to index a chunk; the default needs kilobytes.
        with Sink(data / "main_data.hdf5") as sink, h5py.File(sink, "w", libver="v110") as file:
            for episode in episodes:
                _write_episode(file, total_episodes, episode)
                total_episodes += 1
                total_steps += len(episode.rewards)
                sink.check()
        if not total_episodes:
            raise UserError(f"{path} was not written, because there was no episode to write")
        facts = dict(
            minari_version=minari_version,
            total_episodes=total_episodes,
            total_steps=total_steps,
            dataset_size=round((data / "main_data.hdf5").stat().st_size / 1e6, 1),  # megabytes
        )
        text = metadata_json(metadata | facts, "hdf5", dataset_id, env_spec, observation_space, action_space)
        (data / "metadata.json").write_text(text)
    return Path(path)


def metadata_json(
    metadata: Mapping[str, Any],
    data_format: str,
    dataset_id: str,
    env_spec: EnvSpec | str | None,
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
) -> str:
    """The metadata of a dataset in some data format, as JSON for Minari; for the other arguments see
    ``write_minari``."""
    from minari.serialization import serialize_space

    entries = {
        **metadata,
        "dataset_id": dataset_id,
        "data_format": data_format,
        "jpeg_encoding": False,  # lossy, and Minari's default for anything shaped like an image
        "observation_space": serialize_space(observation_space),
        "action_space": serialize_space(action_space),
    }
    if env_spec is not None:
        entries["env_spec"] = spec_json(env_spec)
    return json.dumps(entries, default=to_json, indent=1)


def spec_json(env_spec: EnvSpec | str | None) -> str | None:
    """An environment's specification as JSON, if it is not JSON already."""
    return env_spec.to_json() if isinstance(env_spec, EnvSpec) else env_spec


def _write_episode(file: h5py.File, number: int, episode: Episode) -> None:
    steps = len(episode.rewards)
    lengths = {"observations": steps + 1, "actions": steps, "terminations": steps, "truncations": steps}
    group = file.create_group(f"episode_{number}")
    group.attrs.update(id=number, total_steps=steps)
    if episode.seed is not None:
        group.attrs["seed"] = episode.seed
    group.create_group("infos")  # Minari cannot read an episode without it
    for name, array in tree_leaves(episode.columns):
        field = name.partition("/")[0]
        if not steps or (field in lengths and len(array) != lengths[field]):
            raise ValueError(f"episode {number}: {name} has {len(array)} rows for {steps} rewards")
        array = np.asarray(array)
        dtype = h5py.string_dtype() if array.dtype.kind == "U" else array.dtype
        packing = dict(compression="gzip", shuffle=True, chunks=_chunk(array)) if array.nbytes else {}
        group.create_dataset(name, data=array.astype(dtype, copy=False), **packing)


def _chunk(array: np.ndarray, target: int = 1 << 20) -> tuple[int, ...]:
    """A chunk shape of whole rows, about a megabyte in total, so that an episode is read in one or a few pieces."""
    rows = target * len(array) // array.nbytes
    return (min(len(array), max(1, rows)), *array.shape[1:])
