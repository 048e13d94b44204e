"""Reads Minari datasets and unfinished collections."""

from __future__ import annotations

import itertools
import json
import shutil
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import gymnasium
import h5py
import numpy as np

from offlinerl.data.builder import Builder
from offlinerl.data.columns import (
    LOG_PROB,
    LOG_PROB_INFO,
    Rounded,
    as_flags,
    as_float32,
    as_observations,
    checked_actions,
    open_hdf5,
    require_finite,
    require_one_length,
    shrink_cache,
    single,
    usable_log_prob,
)
from offlinerl.data.dataset import Dataset
from offlinerl.data.journal import EPISODES, Journal
from offlinerl.data.registry import installed_ids, minari_metadata, minari_root
from offlinerl.envs import spaces
from offlinerl.util.errors import UserError, did_you_mean
from offlinerl.util.trees import Tree, first_leaf, tree_leaves, tree_map

TOGETHER = 1 << 18
"""Bytes of episodes added to a dataset at once, because a call costs more than copying a short episode."""

_Parts = Mapping[str, gymnasium.Space | None]
_Raw = tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]
_Item = TypeVar("_Item")
_Episode = tuple[Tree, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


def load_minari(
    path: str | Path, *, name: str = "", obs_keys: Sequence[str] | None = None, into: Builder | None = None
) -> Dataset:
    """Reads a Minari dataset, whose T + 1 observations per episode give every transition its true next observation.

    Args:
        path: the dataset's folder, its ``data`` folder, the folder of an unfinished collection, or the id of an
            installed dataset.
        name: the dataset's name; by default its id.
        obs_keys: parts of a ``Dict`` observation, in this order; a nested part is ``outer/inner``. By default all of
            them. For what agents see of them, see ``offlinerl.envs.spaces.observe``.
        into: collects the episodes; by default in memory.

    Raises:
        UserError: it is not installed, or its content is invalid.

    Source: the layout of Minari 0.5.4; formats other than HDF5 are read through Minari itself.
    """
    folder = Path(path) if Path(path).is_dir() else installed(str(path))
    folder = folder / "data" if (folder / "data").is_dir() else folder
    metadata = minari_metadata(folder)
    name = name or metadata["dataset_id"]
    rows = int(metadata["total_steps"])
    if not rows:
        raise UserError(f"{name}: the dataset is empty")
    into = into or Builder(name)
    into.expect(rows, rows + int(metadata["total_episodes"]))
    mismatch = UserError(f"{name}: metadata.json promises {rows} steps, its episodes have another number of them")
    episodes = itertools.islice(minari_episodes(folder, obs_keys), int(metadata["total_episodes"]))  # it may be growing
    action_space = spaces.from_json(json.loads(metadata.get("action_space", "{}")))
    dtypes, rounded = set(), Rounded()
    for place, alike in _prefetched(_alike(_checked(episodes, action_space, name))):
        part = _joined(alike)
        dtypes.add(alike[0][1].dtype)
        for shown, *_ in alike:
            rounded.see(shown)
        if into.rows + len(part) > rows:
            raise mismatch
        into.add(part, place)
    if not into.rows or into.rows < rows:
        raise mismatch
    keep = [
        "env_spec", "eval_env_spec", "ref_min_score", "ref_max_score", "author", "provenance", "seed", "frame_stack",
        "action_space",
    ]  # fmt: skip
    provenance = dict(
        format="journal" if _is_journal(metadata) else f"Minari {metadata.get('minari_version', '?')}",
        file=str(folder),
        minari_id=metadata["dataset_id"],
        rows_in_source=rows,
        rows_dropped=0,
        episode_ends="episodes as stored",
        obs_keys=[part for part in _parts(metadata, obs_keys) if part] or None,
        vector_of=None if any(_parts(metadata, None)) else metadata.get("obs_keys") or [],
        reward="none",
        action_dtype=str(np.result_type(*dtypes)),
        **{key: metadata[key] for key in keep if key in metadata},
        **rounded.facts(),
    )
    data = into.finish(name, provenance)
    require_finite(name, dict(observations=data.observations, actions=data.action, rewards=data.reward))
    return data


def _checked(
    episodes: Iterable[_Episode], action_space: gymnasium.Space | None, name: str
) -> Iterator[tuple[str, _Episode]]:
    """The episodes of ``minari_episodes`` that have steps, and their places for messages, with lengths, actions and
    log-probabilities checked."""
    for number, (shown, actions, rewards, terminations, log_prob) in enumerate(episodes):
        steps = len(rewards)
        if not steps:
            continue
        place = f"{name}, episode {number}"
        lengths = {len(leaf) - 1 for _, leaf in tree_leaves(shown)} | {len(actions), len(terminations)}
        if lengths != {steps}:
            raise UserError(
                f"{place}: {len(first_leaf(shown))} observations, {len(actions)} actions and"
                f" {len(terminations)} terminations do not match {steps} rewards; record it again"
            )
        log_prob = None if log_prob is None else usable_log_prob(log_prob, steps)
        yield place, (shown, checked_actions(actions, action_space, place), rewards, terminations, log_prob)


def _alike(episodes: Iterable[tuple[str, _Episode]]) -> Iterator[tuple[str, list[_Episode]]]:
    """Groups of consecutive episodes whose columns have the same dtypes and shapes, of about ``TOGETHER`` bytes each,
    and the place of the first of them."""
    alike: list[_Episode] = []
    first, kind, size = "", None, 0
    for place, episode in episodes:
        columns = [*tree_leaves(episode)]
        its_kind = [(path, column.dtype, column.shape[1:]) for path, column in columns]
        if alike and (size >= TOGETHER or its_kind != kind):
            yield first, alike
            alike, size = [], 0
        first = first if alike else place
        alike.append(episode)
        kind, size = its_kind, size + sum(column.nbytes for _, column in columns)
    if alike:
        yield first, alike


def _prefetched(items: Iterator[_Item]) -> Iterator[_Item]:
    """The items, prefetched one ahead by a thread while the latest is used: HDF5 decompresses without Python's lock."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _joined(episodes: Sequence[_Episode]) -> Dataset:
    """Episodes with the same dtypes and shapes, concatenated."""
    observations, actions, rewards, terminations, log_probs = zip(*episodes, strict=True)
    lengths = np.array([len(column) for column in rewards])
    ends = lengths.cumsum()
    at = np.arange(ends[-1]) + np.repeat(np.arange(len(lengths)), lengths)  # one more observation than steps
    last = np.zeros(ends[-1], bool)
    last[ends - 1] = True
    return Dataset(
        tree_map(lambda *leaves: as_observations(np.concatenate(leaves)), *observations), at, at + 1,
        as_float32(np.concatenate(actions), copy=False), as_float32(np.concatenate(rewards), copy=False),
        np.concatenate(terminations), last, log_prob=None if log_probs[0] is None else np.concatenate(log_probs),
    )  # fmt: skip


def installed(dataset_id: str) -> Path:
    """The folder of a Minari dataset, downloaded if necessary and possible."""
    folder = minari_root() / dataset_id
    if (folder / "data").is_dir():
        return folder
    near = did_you_mean(dataset_id, installed_ids(), "")
    near = f" ({near})" if near else ""
    instead = (
        f"on a machine that is connected run `minari download {dataset_id}` and copy the folder to {folder},"
        " or pass a file with --dataset FILE"
    )
    try:  # Minari would retry for 23 seconds before reporting that there is no network
        urllib.request.urlopen("https://huggingface.co", timeout=5).close()
    except OSError as error:
        raise UserError(
            f"the Minari dataset {dataset_id} is not installed{near} and its server could not be reached: {instead}"
        ) from error
    import minari

    try:
        minari.download_dataset(dataset_id)
    except Exception as error:  # of many kinds, from a missing huggingface_hub to a misconfigured remote
        shutil.rmtree(folder, ignore_errors=True)  # else a failed download would look like an installed dataset
        raise UserError(
            f"the Minari dataset {dataset_id} could not be downloaded ({error}){near}: {instead}"
        ) from error
    return folder


def _has_jpeg(metadata: Mapping[str, Any]) -> bool:
    """Whether a dataset may hold images that Minari stored as JPEG."""
    return metadata.get("jpeg_encoding", True) and "uint8" in str(metadata.get("observation_space", "uint8"))


def minari_episodes(folder: Path, obs_keys: Sequence[str] | None = None) -> Iterator[_Episode]:
    """The episodes of a Minari dataset or of an unfinished collection, given by its folder: for each, the observations
    as agents see them, a tree of ``[T + 1, ...]``, actions ``[T, A]`` or ``[T]``, rewards ``[T]``, terminations
    ``[T]``, and the behaviour policy's log-probabilities or None.

    Raises:
        UserError: it cannot be read, or holds invalid flags or discrete values.
    """
    folder = folder / "data" if (folder / "data").is_dir() else folder
    metadata = minari_metadata(folder)
    parts = _parts(metadata, obs_keys)
    for space in parts.values():
        if space is not None and not spaces.is_image(space):
            spaces.size(space)
    if metadata.get("data_format", "hdf5") == "hdf5" and not _has_jpeg(metadata):
        episodes = _hdf5_episodes(folder / "main_data.hdf5", int(metadata["total_episodes"]), parts)
    else:
        episodes = _other_episodes(folder, metadata, parts)
    for number, (columns, actions, rewards, terminations, log_prob) in enumerate(episodes):
        place = f"{metadata['dataset_id']}, episode {number}"
        rewards = single(rewards, f"{place}: rewards")
        terminations = as_flags(terminations, f"{place}: terminations")
        require_one_length(dict(zip(parts, columns, strict=True)), place)
        try:
            yield spaces.observe(parts, columns), actions, rewards, terminations, log_prob
        except spaces.Misfit as misfit:
            raise UserError(f"{place}: observation {misfit.row} {misfit.what}; repair or remove it") from misfit


def _hdf5_episodes(path: Path, count: int, parts: _Parts) -> Iterator[_Raw]:
    """Observations by part, actions, rewards, terminations and log-probabilities of each episode. h5py's low-level
    interface loads many short episodes in one second instead of seven."""
    with open_hdf5(path) as file:
        shrink_cache(file)
        types: dict[bytes, tuple[np.dtype, h5py.h5t.TypeID]] = {}  # of columns, slow to look up

        def read(group: h5py.h5g.GroupID, column: str) -> np.ndarray:
            name = column.encode()
            data = h5py.h5d.open(group, name)
            stored = data.get_type()
            if name not in types or not stored.equal(types[name][1]):  # else HDF5 would truncate floats to integers
                types[name] = data.dtype, stored
            dtype, in_memory = types[name]
            array = np.empty(data.shape, dtype)
            data.read(h5py.h5s.ALL, h5py.h5s.ALL, array, in_memory)
            return array

        try:
            if isinstance(file["episode_0/actions"], h5py.Group):
                raise UserError(f"{path}: actions made of several parts are not supported")
            logged = f"episode_0/{LOG_PROB}" in file
            for number in range(count):
                group = h5py.h5g.open(file.id, f"episode_{number}".encode())
                log_prob = read(group, LOG_PROB) if logged and LOG_PROB.encode() in group else None
                observations = [read(group, f"observations/{part}".rstrip("/")) for part in parts]
                yield observations, *(read(group, name) for name in ("actions", "rewards", "terminations")), log_prob
        except (KeyError, OSError) as error:
            raise UserError(f"{path}: an episode cannot be read ({error}); get the dataset again") from error


def _other_episodes(folder: Path, metadata: Mapping[str, Any], parts: _Parts) -> Iterator[_Raw]:
    """As ``_hdf5_episodes``, from a journal or through Minari itself."""
    if _is_journal(metadata):
        with Journal(folder / EPISODES, write=False) as journal:
            yield from _columns(journal, parts)
        return
    import minari

    try:
        yield from _columns(minari.MinariDataset(folder), parts)
    except ImportError as error:
        needed = getattr(error, "name", None) or "pyarrow"
        raise UserError(f"{folder} is stored in a format that needs {needed}: pip install {needed}") from error


def _is_journal(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("data_format") == "journal"


def _columns(episodes: Iterable[Any], parts: _Parts) -> Iterator[_Raw]:
    for episode in episodes:
        columns = [np.asarray(spaces.child(episode.observations, part)) for part in parts]
        log_prob = (episode.infos or {}).get(LOG_PROB_INFO)
        yield columns, np.asarray(episode.actions), episode.rewards, episode.terminations, log_prob


def _parts(metadata: Mapping[str, Any], obs_keys: Sequence[str] | None) -> dict[str, gymnasium.Space | None]:
    """The parts of a dataset's observations, with their spaces; see ``offlinerl.envs.spaces.parts``."""
    try:
        space = spaces.from_json(json.loads(metadata.get("observation_space", "{}")))
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        source = metadata["dataset_id"]
        raise UserError(f"{source}: its metadata describe no observation space; write the dataset again") from error
    return spaces.parts(space, obs_keys, metadata["dataset_id"])
