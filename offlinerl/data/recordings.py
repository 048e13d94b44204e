"""Files in the formats of robomimic, OGBench and d3rlpy, episode by episode."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from offlinerl.data.assemble import Steps, observed
from offlinerl.data.columns import as_flags, open_hdf5
from offlinerl.util.errors import UserError
from offlinerl.util.trees import Tree


def robomimic_episodes(path: Path, obs_keys: Sequence[str] | None = None, subset: str | None = None) -> Iterator[Steps]:
    """The demonstrations of a file of robomimic's, in the order of their numbers.

    Args:
        path: with ``data/demo_*/obs/*``, ``actions`` and, where there are, ``rewards``, ``dones`` and ``next_obs/*``.
            A row whose ``dones`` is 1 is terminal, as robomimic takes it; a demonstration ends where its group does.
        obs_keys: the parts of the observations, by default those of the first demonstration, by their names.
        subset: a filter key, such as "train", whose demonstrations are meant: those that ``mask/train`` lists.

    Raises:
        UserError: it is not such a file, lacks what is asked for, or its demonstrations observe other parts.

    Source: https://robomimic.github.io/docs/datasets/overview.html
    """
    with open_hdf5(path) as file:
        keys = list(obs_keys or ())
        for demo in _demos(file, path, subset):
            where, group = f"{path}, {demo}", file["data"][demo]
            if "obs" not in group or "actions" not in group:
                lacks = "observations" if "obs" not in group else "actions"
                raise UserError(
                    f"{where} has no {lacks}; make them with robomimic's dataset_states_to_obs.py, or record it again"
                )
            keys = keys or sorted(group["obs"])
            if not obs_keys and (odd := sorted(set(keys) ^ set(group["obs"]))):
                raise UserError(
                    f"{where} {'lacks' if odd[0] in keys else 'has'} the part {odd[0]!r} of observations, unlike the"
                    " demonstrations before it; choose parts that all of them have with --obs-keys"
                )

            def seen(name: str, group: h5py.Group = group, where: str = where) -> Tree:
                shown = [key for key in keys if obs_keys or key in group[name]]  # whether all are, shapes tell
                return observed({key: group[name][key][()] for key in group[name]}, shown or keys, where)

            action = group["actions"][()]
            zeros = np.zeros(len(action), np.float32)
            yield Steps(
                obs=seen("obs"),
                action=action,
                reward=group["rewards"][()] if "rewards" in group else zeros,
                terminated=group["dones"][()] if "dones" in group else zeros,
                next_obs=seen("next_obs") if "next_obs" in group else None,
                place=demo,
                log_prob=group["log_prob"][()] if "log_prob" in group else None,
            )


def _demos(file: h5py.File, path: Path, subset: str | None) -> list[str]:
    """The names of the demonstrations of a file, or of a subset of it, in the order of their numbers."""
    demos = sorted(file["data"], key=_by_number)
    if subset is None:
        return demos
    masks = file.get("mask", {})
    if subset not in masks:
        raise UserError(f"{path} has no subset {subset!r}; it has {', '.join(masks) or 'none'}")
    wanted = {name.decode() if isinstance(name, bytes) else str(name) for name in masks[subset][()]}
    if missing := sorted(wanted - set(demos), key=_by_number):
        raise UserError(
            f"{path}: the subset {subset!r} lists {missing[0]}, which the file does not have; mend mask/{subset}, or get"
            " the file again"
        )
    return [demo for demo in demos if demo in wanted]


def _by_number(name: str) -> tuple[int, str]:
    """A key to sort names by the number they end in."""
    number = re.search(r"\d+$", name)
    return int(number[0]) if number else -1, name


def ogbench_episodes(path: Path, obs_keys: Sequence[str] | None = None) -> Iterator[Steps]:
    """The trajectories of an ``.npz`` of OGBench's. A trajectory of T steps has T + 1 rows: ``terminals`` is 1 in the
    last one, which holds the observation that the last step led to, and an action that led nowhere and is not used.
    That is where it was cut off, and nothing terminates; there are no rewards.

    Raises:
        UserError: it is not such a file.

    Source: ``ogbench/utils.py`` of its repository.
    """
    with np.load(path, allow_pickle=False) as file:
        obs, action = file["observations"], file["actions"]
        ends = np.flatnonzero(as_flags(file["terminals"], f"{path}: terminals"))
        if not len(obs) == len(action) == len(file["terminals"]):
            raise UserError(
                f"{path}: its columns have unequal lengths (observations {len(obs)}, actions {len(action)}, terminals"
                f" {len(file['terminals'])}); download it again"
            )
        if not len(ends) or ends[-1] != len(obs) - 1:
            raise UserError(
                f"{path}: the last row is not the end of a trajectory, as in a file of OGBench's; if it is another one,"
                " say with --columns what its arrays are, as in --columns obs=observations action=actions"
            )
        for number, (first, end) in enumerate(zip([0, *(ends[:-1] + 1)], ends, strict=True)):
            T = end - first
            shown = observed({"": obs[first : end + 1]}, obs_keys, str(path))
            zeros, rows = np.zeros(T, np.float32), np.arange(first, end + 1)
            yield Steps(shown, action[first:end], zeros, zeros, place=f"trajectory {number}", rows=rows)


def d3rlpy_episodes(path: Path, obs_keys: Sequence[str] | None = None) -> Iterator[Steps]:
    """The episodes of a file that d3rlpy 2 wrote. It keeps no observation after the last step, so that the last step of
    an episode that was cut off has no successor. Its images, channels first, become ``[T, H, W, C]``; observations of
    several parts are named 0, 1 and so on.

    Raises:
        UserError: it is not such a file.

    Source: ``d3rlpy/dataset/io.py`` of its repository, version 2.8.1.
    """
    with open_hdf5(path) as file:
        for number in range(int(file["num_episodes"][()])):
            parts = {"": file[f"observations_{number}"][()]} if f"observations_{number}" in file else {
                str(part): file[f"observations_{number}_{part}"][()] for part in _parts(file, number)
            }  # fmt: skip
            shown = observed({key: _channels_last(part) for key, part in parts.items()}, obs_keys, str(path))
            action, reward = file[f"actions_{number}"][()], file[f"rewards_{number}"][()]
            terminated = np.zeros(len(action), bool)
            terminated[-1:] = bool(file[f"terminated_{number}"][()])
            yield Steps(shown, action, reward, terminated, place=f"episode {number}")


def _parts(file: h5py.File, number: int) -> Iterator[int]:
    return takewhile(lambda part: f"observations_{number}_{part}" in file, count())


def _channels_last(column: np.ndarray) -> Any:
    return np.moveaxis(column, 1, -1) if column.ndim == 4 else column
