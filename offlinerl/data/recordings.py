"""Reads files in the formats of robomimic, OGBench and d3rlpy, episode by episode."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from offlinerl.data.assemble import Steps, observed
from offlinerl.data.columns import as_flags, open_hdf5, shrink_cache
from offlinerl.util.errors import UserError, reading


def robomimic_episodes(path: Path, obs_keys: Sequence[str] | None = None, subset: str | None = None) -> Iterator[Steps]:
    """The demonstrations in a robomimic file, in the order of their numbers.

    Args:
        path: with ``data/demo_*/obs/*``, ``actions`` and, if present, ``rewards``, ``dones`` and ``next_obs/*``. A row
            whose ``dones`` is 1 is terminal, as in robomimic; a demonstration ends where its group does.
        obs_keys: the parts of the observations; by default those of the first demonstration, sorted by name.
        subset: a filter key, such as "train", which selects the demonstrations listed in ``mask/train``.

    Raises:
        UserError: it is not such a file, lacks what is asked for, or its demonstrations differ in the parts of their
            observations.

    Source: https://robomimic.github.io/docs/datasets/overview.html
    """
    with open_hdf5(path) as file:
        shrink_cache(file)
        demos = _demos(file, path, subset)
        keys = obs_keys or _parts_of_first(file, demos)
        for demo in demos:
            with reading(f"{path}, {demo}", "record it again"):
                steps = _demonstration(file["data"][demo], f"{path}, {demo}", keys, exactly=not obs_keys)
            yield steps._replace(place=demo)


def robomimic_parts(path: Path, subset: str | None = None) -> list[str]:
    """The parts of the observations in a robomimic file, in order; empty if its first demonstration is invalid."""
    with open_hdf5(path) as file:
        return _parts_of_first(file, _demos(file, path, subset))


def _demonstration(demo: h5py.Group, where: str, keys: Sequence[str], exactly: bool) -> Steps:
    """One demonstration, whose observations must have the parts ``keys``: ``exactly`` these, or others as well."""
    of = dict(demo.items()) if isinstance(demo, h5py.Group) else {}  # once, because HDF5 takes long to find each
    has = [name for name in ("obs", "actions") if name in of]
    if len(has) < 2 or not len(of["obs"]):
        lacks = "actions" if has == ["obs"] else "observations"
        raise UserError(
            f"{where} has no {lacks}; make them with robomimic's dataset_states_to_obs.py, or record it again"
        )
    obs, action = _arrays(of["obs"], "obs", where), of["actions"][()]
    if exactly and (odd := sorted(set(keys) ^ set(obs))):
        raise UserError(
            f"{where} {'lacks' if odd[0] in keys else 'has'} the part {odd[0]!r} of observations, unlike the"
            " demonstrations before it; choose parts that all of them have with --obs-keys"
        )
    next_obs, zeros = None, np.zeros(len(action), np.float32)
    if "next_obs" in of:
        following = _arrays(of["next_obs"], "next_obs", where)
        found = [key for key in keys if key in following or not exactly]  # if one is missing, the shapes will differ
        next_obs = observed(following, found or keys, where)
    return Steps(
        obs=observed(obs, keys, where),
        action=action,
        reward=of["rewards"][()] if "rewards" in of else zeros,
        terminated=of["dones"][()] if "dones" in of else zeros,
        next_obs=next_obs,
        log_prob=of["log_prob"][()] if "log_prob" in of else None,
    )


def _parts_of_first(file: h5py.File, demos: Sequence[str]) -> list[str]:
    """The parts of the first demonstration's observations; empty if it is invalid."""
    obs = file["data"].get(f"{demos[0]}/obs") if demos else None
    return sorted(obs) if isinstance(obs, h5py.Group) else []


def _arrays(parts: Any, name: str, where: str) -> dict[str, np.ndarray]:
    """The arrays in one of a demonstration's groups.

    Raises:
        UserError: it is not a group of arrays.
    """
    if not isinstance(parts, h5py.Group):
        raise UserError(f"{where}: {name} is one array, and must be a group of them, as in {name}/eef; record it again")
    found = dict(parts.items())
    if groups := [key for key, part in found.items() if not isinstance(part, h5py.Dataset)]:
        raise UserError(f"{where}: {name}/{groups[0]} is a group, and must be an array; record it again")
    return {key: part[()] for key, part in found.items()}


def _demos(file: h5py.File, path: Path, subset: str | None) -> list[str]:
    """The names of the demonstrations in a file, or in a subset of it, in the order of their numbers."""
    demos = sorted(file["data"], key=by_number)
    if subset is None:
        return demos
    masks = file.get("mask", {})
    if subset not in masks:
        raise UserError(f"{path} has no subset {subset!r}; it has {', '.join(masks) or 'none'}")
    wanted = {name.decode() if isinstance(name, bytes) else str(name) for name in masks[subset][()]}
    if missing := sorted(wanted - set(demos), key=by_number):
        raise UserError(
            f"{path}: the subset {subset!r} lists {missing[0]}, which the file does not have; mend mask/{subset}, or"
            " get the file again"
        )
    return [demo for demo in demos if demo in wanted]


def by_number(name: str) -> tuple[int, str]:
    """A key that sorts names by the number they end in, then by name."""
    number = re.search(r"\d+$", name)
    return int(number[0]) if number else -1, name


OGBENCH = ("observations", "actions", "terminals")
"""The columns of OGBench's files."""

OGBENCH_INFOS = {"qpos", "qvel", "button_states", "oracle_reps"}
"""Further columns that they may have."""


def ogbench_layout(path: Path) -> str | None:
    """Which of OGBench's layouts an ``.npz`` has: "raw", as in its files; "compact" or "regular", as returned by its
    ``load_dataset``. None if it is something else.

    The latter two are recognised by their ``terminals``. Compact ones mark the last two rows of a trajectory, and
    ``valids`` is 0 in the last one. Regular ones are float32 and 1 in the file's last row, and there are
    ``next_observations`` but no rewards.
    """
    with reading(str(path), "download or write it again"), np.load(path, allow_pickle=False) as file:
        names = set(file.files)
        if not names.issuperset(OGBENCH):
            return None
        if "valids" in names and "next_observations" not in names:
            final = np.atleast_1d(file["valids"] == 0)
            if final[-1:].all() and np.array_equal(file["terminals"] != 0, final | np.r_[final[1:], True]):
                return "compact"
        if names - OGBENCH_INFOS == {*OGBENCH, "next_observations"}:
            terminals = file["terminals"]
            return "regular" if terminals.dtype == np.float32 and (terminals[-1:] == 1).all() else None
        return None if names & {"rewards", "timeouts", "next_observations"} else "raw"


def ogbench_episodes(path: Path, obs_keys: Sequence[str] | None = None) -> Iterator[Steps]:
    """The trajectories in an ``.npz`` with one of OGBench's layouts. A trajectory of T steps has T + 1 rows, the last
    of which holds the observation after the last step and an unused action. It is the row where ``terminals`` is 1, or
    ``valids`` is 0 in the compact layout. The regular layout has ``next_observations`` instead of this row, and
    ``terminals`` mark the last step. All of these ends are truncations: steps are terminal only where ``masks`` exist
    and are 0. Rewards are 0 if there are none.

    Raises:
        UserError: it is not such a file.

    Source: ``ogbench/utils.py`` of its repository.
    """
    layout = ogbench_layout(path)
    more = dict(compact=("valids", "rewards", "masks"), regular=("next_observations",)).get(str(layout), ())
    with np.load(path, allow_pickle=False) as file:
        columns = {name: file[name] for name in (*OGBENCH, *more) if name in file}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise UserError(f"{path}: its columns have unequal lengths ({listed}); download it again")
        obs, action, following = columns["observations"], columns["actions"], columns.get("next_observations")
        name = "valids" if layout == "compact" else "terminals"
        marks = as_flags(columns[name], f"{path}: {name}")
        ends = np.flatnonzero(marks != (layout == "compact"))
        if not len(ends) or ends[-1] != len(obs) - 1:
            raise UserError(
                f"{path}: the last row is not the end of a trajectory, as in a file of OGBench's; if it is another one,"
                " say with --columns what its arrays are, as in --columns obs=observations action=actions"
            )
        zeros = np.zeros(len(obs), np.float32)
        reward = columns.get("rewards", zeros)
        terminated = ~as_flags(columns["masks"], f"{path}: masks") if "masks" in columns else zeros
        for number, (first, end) in enumerate(zip([0, *(ends[:-1] + 1)], ends, strict=True)):
            shown, steps = slice(first, end + 1), slice(first, end + (layout == "regular"))
            yield Steps(
                observed({"": obs[shown]}, obs_keys, str(path)), action[steps], reward[steps], terminated[steps],
                None if following is None else observed({"": following[shown]}, obs_keys, str(path)),
                f"trajectory {number}", np.arange(first, end + 1),
            )  # fmt: skip


def d3rlpy_episodes(path: Path, obs_keys: Sequence[str] | None = None) -> Iterator[Steps]:
    """The episodes in a file written by d3rlpy 2. It stores no observation after the last step, so that the last step
    of a truncated episode has no next observation. Its images, channels first, become ``[T, H, W, C]``; the parts of
    observations are named 0, 1 and so on.

    Raises:
        UserError: it is not such a file.

    Source: ``d3rlpy/dataset/io.py`` of its repository, version 2.8.1.
    """
    with open_hdf5(path) as file:
        total = int(file["num_episodes"][()])
        for number in range(total):
            where = f"{path}, episode {number}"
            names = [f"{name}_{number}" for name in ("observations", "actions", "rewards", "terminated")]
            if missing := [name for name in names if name not in file and f"{name}_0" not in file]:
                raise UserError(f"{where}: there are no {missing[0]}, though it has {total} episodes; write it again")
            with reading(where, "write it again"):
                whole, *columns = names
                parts = {"": file[whole][()]} if whole in file else {
                    str(part): file[f"{whole}_{part}"][()] for part in _parts(file, number)
                }  # fmt: skip
                shown = observed({key: _channels_last(part) for key, part in parts.items()}, obs_keys, where)
                action, reward, terminal = (file[name][()] for name in columns)
                terminated = np.zeros(len(action), bool)
                terminated[-1:] = bool(terminal)
                steps = Steps(shown, action, reward, terminated, place=f"episode {number}")
            yield steps


def _parts(file: h5py.File, number: int) -> Iterator[int]:
    return takewhile(lambda part: f"observations_{number}_{part}" in file, count())


def _channels_last(column: np.ndarray) -> Any:
    return np.moveaxis(column, 1, -1) if column.ndim == 4 else column
