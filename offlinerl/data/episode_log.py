"""An unfinished collection, and the Minari dataset made from it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import h5py
from gymnasium.envs.registration import EnvSpec

from offlinerl.data import registry
from offlinerl.data.columns import open_hdf5
from offlinerl.data.episode import Episode
from offlinerl.data.journal import COLLECTION, Journal
from offlinerl.data.minari_writer import metadata_json, spec_json, write_minari
from offlinerl.util.atomic import alone, sweep, to_json, write_whole
from offlinerl.util.errors import UserError


def write_collection(folder: Path, *, metadata: Mapping[str, Any] | None = None, **about: Any) -> Path:
    """Writes ``collection.json``, which describes the journal beside it as metadata describe a Minari dataset. The
    folder can then be loaded as a dataset of the episodes finished so far.

    Args:
        folder: where ``episodes.journal`` is or will be.
        metadata: further entries.
        about: ``dataset_id``, ``env_spec``, ``observation_space`` and ``action_space``; for these and ``metadata`` see
            ``offlinerl.data.minari_writer.write_minari``.

    Returns:
        The file.
    """
    path = Path(folder) / COLLECTION
    write_whole(path, metadata_json(metadata or {}, "journal", **about))
    return path


def check_target(
    dataset_id: str,
    append: bool,
    agent: Any,
    env_spec: EnvSpec | str | None,
    observation_space: gymnasium.Space,
    obs_keys: Sequence[str] | None = None,
) -> Path:
    """Checks before a long collection whether ``seal`` will be able to write its dataset.

    Args:
        dataset_id: ``(namespace/)name-vN``.
        append: whether a dataset of the same agent and environment may exist already.
        agent: what acts, as in the provenance.
        env_spec: of the environment it acts in.
        observation_space: of the stored observations.
        obs_keys: the parts of the environment's observations that are stored; None: all.

    Returns:
        The dataset's folder, which need not exist.

    Raises:
        UserError: the id is malformed or that of a published dataset, or a dataset exists that may not be written.
    """
    path = path_of(dataset_id, "--dataset")
    if path.parent.is_dir():
        with alone(path.parent):
            sweep(path.parent, path.name)  # a process killed while replacing the dataset may have moved it away
    _check(path, append, agent, env_spec, observation_space, obs_keys)
    return path


def path_of(dataset_id: str, flag: str) -> Path:
    """The folder for a new Minari dataset with an id that was given by a flag.

    Raises:
        UserError: the id is malformed, or that of a published dataset, which no other dataset may have.
    """
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:  # TypeError if the version is missing
        raise UserError(
            f"{flag} {dataset_id} is no name of a dataset; choose one like cartpole/random-v0, with a version and"
            " words of two letters or more"
        ) from error
    if dataset_id in registry.names():
        raise UserError(f"{dataset_id} is the name of a published dataset; choose another {flag}")
    return registry.minari_root() / dataset_id


def seal(
    journal: Journal,
    path: Path,
    *,
    env_spec: EnvSpec | str | None,
    metadata: Mapping[str, Any],
    append: bool,
    **about: Any,
) -> Path:
    """Writes the episodes of a journal as a Minari dataset, whole or not at all. If the dataset has these episodes
    already, nothing changes, so that a process killed right after sealing can do it again.

    Args:
        path: the dataset's folder, as returned by ``check_target``.
        metadata: as for ``offlinerl.data.minari_writer.write_minari``. Its ``provenance`` names the ``agent``; the
            numbers of episodes and steps are added to it. An existing dataset keeps its metadata, and this provenance
            is appended to the list ``provenance["appended"]``.
        append: add the episodes to an existing dataset of the same agent and environment, after those that it has.
        about: ``dataset_id``, ``observation_space`` and ``action_space``; for these and ``env_spec`` see
            ``write_minari``.

    Returns:
        ``path``.

    Raises:
        UserError: the dataset exists and may not be appended to, there is no episode, or the disk is full.
    """
    path = Path(path)
    if not len(journal):
        raise UserError(f"{path} was not written, because no episode has ended; collect more steps")
    facts = dict(episodes=len(journal), steps=journal.steps, digest=journal.digest)
    provenance = {"collected_by": "offlinerl", **metadata["provenance"], **facts}
    with alone(path.parent):  # of two concurrent appends, the second would undo the first
        sweep(path.parent, path.name)  # a process may have been killed in the middle of this
        source = provenance["agent"], env_spec, about["observation_space"], metadata.get("obs_keys")
        old = _existing(path)
        parts = [] if old is None else _parts(old)
        if any(part.get("digest") == journal.digest for part in parts) and not _mismatch(old, *source):
            return path
        _check(path, append, *source)
        episodes = iter(journal)
        if old is not None:
            first, *appended = parts
            metadata, provenance = old, {**first, "appended": [*appended, provenance]}
            episodes = itertools.chain(_stored(path, int(old["total_episodes"])), episodes)
        metadata = {**metadata, "provenance": provenance}
        return write_minari(path, episodes, env_spec=env_spec, metadata=metadata, overwrite=old is not None, **about)


def _existing(path: Path) -> dict[str, Any] | None:
    """The metadata of the dataset in a folder; None if there is no such folder."""
    if not path.exists():
        return None
    if not (path / "data").is_dir():
        raise UserError(f"{path} exists and is no dataset; choose another --dataset")
    return registry.minari_metadata(path / "data")


def _check(path: Path, append: bool, *source: Any) -> None:
    """Raises a UserError if a dataset exists that may not be written from this source; see ``_mismatch``."""
    metadata = _existing(path)
    if metadata is None:
        return
    mismatch = _mismatch(metadata, *source)
    if not append:
        raise UserError(f"{path} exists already; choose another --dataset{'' if mismatch else ' or add --append'}")
    if mismatch:
        raise UserError(f"{path} {mismatch}, so that nothing is appended to it; choose another --dataset")


def _mismatch(
    metadata: Mapping[str, Any],
    agent: Any,
    env_spec: EnvSpec | str | None,
    observation_space: gymnasium.Space,
    obs_keys: Sequence[str] | None,
) -> str | None:
    """How an existing dataset differs from the one that the arguments of ``check_target`` describe, in words; None if
    it does not."""
    from minari.serialization import serialize_space

    provenance = _parts(metadata)[0]
    if provenance.get("collected_by") != "offlinerl":
        return "was not collected by `offlinerl collect`"
    agent = json.loads(json.dumps(agent, default=to_json))
    if provenance.get("agent") != agent:
        return f"was collected by {provenance.get('agent')}, not by {agent}"
    had, has = (json.loads(spec_json(spec) or "{}") for spec in (metadata.get("env_spec"), env_spec))
    for key in {**had, **has}:
        if had.get(key) != has.get(key):
            return f"was collected in an environment whose {key} is {had.get(key)!r}, not {has.get(key)!r}"
    keys = list(obs_keys or ()) or None
    if metadata.get("obs_keys") != keys:
        return f"was collected with obs_keys {metadata.get('obs_keys')}, not {keys}"
    if json.loads(metadata.get("observation_space", "{}")) != json.loads(serialize_space(observation_space)):
        return "has observations of another space"
    return None


def _parts(metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The provenance of a dataset's first episodes, and of each later append."""
    provenance = metadata.get("provenance")
    first = dict(provenance) if isinstance(provenance, Mapping) else {}
    return [first, *first.pop("appended", [])]


def _stored(folder: Path, count: int) -> Iterator[Episode]:
    """The episodes of a Minari dataset, as stored."""
    path = folder / "data" / "main_data.hdf5"

    def tree(node: h5py.Group | h5py.Dataset) -> Any:
        return {name: tree(inner) for name, inner in node.items()} if isinstance(node, h5py.Group) else node[()]

    with open_hdf5(path) as file:
        for number in range(count):
            try:
                group = file[f"episode_{number}"]
                columns = {name: tree(group[name]) for name in Episode._fields if name != "seed"}
            except (KeyError, OSError) as error:
                raise UserError(f"{path}: episode {number} cannot be read ({error}); collect it again") from error
            seed = group.attrs.get("seed")
            yield Episode(**columns, seed=None if seed is None else int(seed))
