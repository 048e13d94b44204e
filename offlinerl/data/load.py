"""Datasets by name, id or file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from offlinerl.data import registry
from offlinerl.data.d4rl import Mode, load_hdf5
from offlinerl.data.dataset import Dataset
from offlinerl.data.minari_reader import _installed, load_minari
from offlinerl.data.registry import Entry
from offlinerl.data.rewards import with_reward
from offlinerl.util.errors import UserError, reading


def load(
    source: str | Path | Entry,
    env: str | None = None,
    *,
    mode: Mode = "lossless",
    reward: str | None = None,
    obs_keys: Sequence[str] | None = None,
) -> Dataset:
    """Loads a dataset by name, Minari id or file, downloading or unpacking what has to be.

    Args:
        source: a name in the registry, a Minari id, a D4RL file, a Minari folder, the folder of an unfinished
            collection, or an ``Entry``.
        env: the environment of a file: a name in the registry or a Gymnasium id.
        mode: for files in D4RL's format; see ``load_hdf5``.
        reward: a rule among ``REWARDS`` instead of the dataset's own; "none" leaves them as they are stored.
        obs_keys: the parts of the observations to use, where ``source`` is no ``Entry``; by default the dataset's own.

    Raises:
        UserError: the dataset is unknown, out of reach, or not sound.
    """
    entry = source if isinstance(source, Entry) else registry.resolve(str(source), env, obs_keys)
    if entry.kind == "object":
        return entry.where
    path = locate(entry)
    if path.is_dir() and mode != "lossless":
        raise UserError(f"{entry.name} is not a file in D4RL's format; the mode {mode} is for those only")
    with reading(f"the dataset {path}", "get or write it again"):
        if path.is_dir():
            dataset = load_minari(path, name=entry.name, obs_keys=entry.obs_keys)
        else:
            allowed = entry.steps_allowed
            dataset = load_hdf5(
                path, mode, name=entry.name, max_episode_steps=allowed, split=entry.split,
                longest=None if entry.overlong else allowed, env=entry.env,
            )  # fmt: skip
    dataset.provenance.update(dataset=entry.name, checksum=entry.checksum(path))
    return replace(with_reward(dataset, entry.reward if reward is None else reward), entry=entry)


def locate(entry: Entry) -> Path:
    """The file or folder that holds a dataset, fetched first if it is not on this machine.

    Raises:
        UserError: it is not there and cannot be fetched.
    """
    kind, where = entry.kind, entry.where
    if kind == "minari":
        return _installed(where)
    path = entry.path
    if kind == "d4rl" and not path.exists():
        registry.download(entry)
    if not path.exists():
        hint = {
            "recipe": f"generate it with `offlinerl datasets generate {entry.name}`",
            "builtin": "the installation lacks it: install the package again",
        }.get(kind, "check the path")
        raise UserError(f"{path} does not exist; {hint}")
    return path
