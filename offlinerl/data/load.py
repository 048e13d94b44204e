"""Datasets as one flat table of transitions, which never crosses from one episode into the next."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium
import h5py
import numpy as np

from offlinerl import spaces
from offlinerl.data import registry
from offlinerl.data.registry import Entry, minari_metadata, minari_root
from offlinerl.errors import reading
from offlinerl.types import Batch, UserError

Mode = Literal["lossless", "d4rl"]

BLOCK = 1 << 16
"""Rows read or checked at a time, so that loading takes little more memory than the table itself."""

JUMP = 2.0
"""Metres an AntMaze ant cannot cover in one step of 0.1 s; resets cover more, unless a timeout marks them."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Transitions, one a row, episode after episode, in C-contiguous numpy arrays.

    Attributes:
        obs: ``[rows, O]`` float32; pixels keep their uint8 and their shape, ``[rows, H, W, C]``.
        action: ``[rows, A]`` float32; a discrete action is its number, with A = 1.
        reward: ``[rows]`` float32, as the agent shall see it: ``provenance["reward"]`` names the rule.
        terminated: ``[rows]`` bool, where nothing may be bootstrapped from ``next_obs``.
        last: ``[rows]`` bool, the last row of each episode, whether it terminated or was cut off.
        next_obs: like ``obs``; the row's own observation where the source ends without a successor.
        name: what it was loaded as.
        provenance: where the rows come from, and what was done to them.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    last: np.ndarray
    next_obs: np.ndarray
    name: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.reward)

    @cached_property
    def episode_starts(self) -> np.ndarray:
        """``[episodes]`` the first row of each."""
        return np.flatnonzero(np.r_[True, self.last[:-1]])

    @property
    def episode_lengths(self) -> np.ndarray:
        """``[episodes]`` rows of each."""
        return np.diff(np.r_[self.episode_starts, len(self)])

    @property
    def episode_returns(self) -> np.ndarray:
        """``[episodes]`` undiscounted sums of ``reward``, float64."""
        return np.add.reduceat(self.reward, self.episode_starts, dtype=np.float64)

    @property
    def nbytes(self) -> int:
        """Bytes the six columns take."""
        columns = (self.obs, self.action, self.reward, self.terminated, self.last, self.next_obs)
        return sum(column.nbytes for column in columns)

    def transitions(self, gamma: float, n: int = 1) -> Batch:
        """The table as an agent trains on it, every field ``[rows, ...]`` in numpy; ``last`` says that the
        n-step window reached the end of its episode.

        Args:
            gamma: discount of one step.
            n: steps summed into a reward, fewer at the end of an episode.
        """
        reward, discount, tail = n_step(self.reward, self.terminated, self.last, gamma, n)
        last = (self.last | self.terminated)[tail]
        next_obs = self.next_obs if n == 1 else self.next_obs[tail]
        return Batch(self.obs, self.action, reward, discount, next_obs, last)


def n_step(
    reward: np.ndarray, terminated: np.ndarray, last: np.ndarray, gamma: float, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Discounted sums of up to n rewards, which stop where the episode does.

    Args:
        reward: ``[rows]``.
        terminated: ``[rows]`` bool.
        last: ``[rows]`` bool, true in the very last row.
        gamma: discount of one step.
        n: longest window, in steps.

    Returns:
        ``reward``: ``[rows]`` float32, ``sum_k gamma^k r_k`` over the k < n steps taken;
        ``discount``: ``[rows]`` float32, ``gamma^steps``, and 0 where the window ran into a terminal state;
        ``tail``: ``[rows]`` the last row of each window, whose successor is the one to bootstrap from.

    Raises:
        ValueError: n is less than 1.

    Source: Sutton and Barto, Reinforcement Learning, 2nd edition, 2018, equation 7.1.
    """
    if n < 1:
        raise ValueError(f"n-step windows take at least one step, not {n}")
    end = terminated | last
    total = reward.astype(np.float64)
    tail = np.arange(len(reward))
    going = tail[~end]  # the windows that may take another step
    for k in range(1, n):
        total[going] += gamma**k * reward[going + k]
        tail[going] += 1
        going = going[~end[going + k]]
    discount = gamma ** (tail - np.arange(len(reward)) + 1.0) * ~terminated[tail]
    return total.astype(np.float32), discount.astype(np.float32), tail


# ---------------------------------------------------------------------------------------------- rewards


def _as_is(dataset: Dataset) -> np.ndarray:
    return dataset.reward


def _minus_one(dataset: Dataset) -> np.ndarray:
    return dataset.reward - 1


def _scale_by_return_range(dataset: Dataset) -> np.ndarray:
    return dataset.reward * _range_factor(dataset)


def _range_factor(dataset: Dataset) -> float:
    spread = np.ptp(dataset.episode_returns)
    if not spread > 0:
        raise UserError(
            f"{dataset.name}: all episodes have the same return, which leaves no range to scale rewards by;"
            " use the reward rule none"
        )
    return 1000 / spread


def _count(dataset: Dataset) -> np.ndarray:
    if dataset.episode_returns.max() > 7:  # Kitchen has seven tasks: these rewards are counts already
        return dataset.reward
    total = np.cumsum(dataset.reward, dtype=np.float64)
    before = (total - dataset.reward)[dataset.episode_starts]
    return total - np.repeat(before, dataset.episode_lengths)


REWARDS = {
    "none": _as_is,
    "minus_one": _minus_one,  # AntMaze: a cost of one a step until the goal
    "scale_by_return_range": _scale_by_return_range,  # locomotion: x 1000 / (best return - worst return)
    "count": _count,  # Kitchen: tasks completed so far, which D4RL's files hold and the environment pays once
}
"""Training rewards by rule. Scores always come from what the environment pays."""


def online_reward(entry: Entry, raw: Dataset) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """What the environment pays, made into the rewards that a dataset is trained with.

    Args:
        entry: the dataset's, with its rule.
        raw: the dataset with its rewards as stored.

    Returns:
        A function of the rewards paid in a step and of their sum in the episode so far, both ``[...]``.

    Raises:
        UserError: see ``with_reward``.
    """
    stored_counts = (entry.score or {}).get("data") == "counts"  # D4RL's Kitchen: the environment pays once a task
    if entry.reward == "count" or stored_counts:
        return lambda reward, total: total
    if entry.reward == "minus_one":
        return lambda reward, total: reward - 1
    if entry.reward == "scale_by_return_range":
        factor = np.float32(_range_factor(raw))
        return lambda reward, total: reward * factor
    return lambda reward, total: reward


def with_reward(dataset: Dataset, rule: str) -> Dataset:
    """The dataset with its rewards replaced by one of the ``REWARDS``; the other columns are shared.

    Raises:
        UserError: the rule is unknown, or does not apply to these rewards.
    """
    if rule not in REWARDS:
        raise UserError(f"unknown reward rule {rule!r}; choose one of {', '.join(REWARDS)}")
    reward = REWARDS[rule](dataset).astype(np.float32, copy=False)
    return dataclasses.replace(dataset, reward=reward, provenance={**dataset.provenance, "reward": rule})


# ---------------------------------------------------------------------------------------------- by name


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
    return with_reward(dataset, entry.reward if reward is None else reward)


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


def require_vectors(entry: Entry) -> None:
    """Raises a UserError if the observations of a dataset hold images, unless its ``obs_keys`` leave them out."""
    path = locate(entry)
    if path.is_dir():
        metadata = minari_metadata(path / "data" if (path / "data").is_dir() else path)
        spaces.refuse_images(_parts(metadata, entry.obs_keys), entry.name)
        return
    with open_d4rl(path) as file:
        column = file["observations"]
        if column.ndim > 2:
            shape = column.shape[1:]
            box = gymnasium.spaces.Box(0, 255, shape, np.uint8)
            spaces.refuse_images({"": box}, entry.name)


# ---------------------------------------------------------------------------------------------- Minari


def load_minari(path: str | Path, *, name: str = "", obs_keys: Sequence[str] | None = None) -> Dataset:
    """Reads a Minari dataset, whose T + 1 observations give every transition its true successor.

    Args:
        path: the dataset's folder, its ``data`` folder, the folder of an unfinished collection, or the id of an
            installed dataset.
        name: what to call it; its id by default.
        obs_keys: parts of a ``Dict`` observation to concatenate, in this order; a nested part is
            ``outer/inner``. By default all of them, in the order of ``gymnasium.spaces.flatten``, as which each is
            encoded: what is not a ``Box`` becomes one-hot.

    Raises:
        UserError: it is not installed, or its content is not sound.

    Source: the layout of Minari 0.5.4; formats other than HDF5 are read through Minari itself.
    """
    folder = Path(path) if Path(path).is_dir() else _installed(str(path))
    folder = folder / "data" if (folder / "data").is_dir() else folder
    metadata = minari_metadata(folder)
    name = name or metadata["dataset_id"]
    rows = int(metadata["total_steps"])
    if not rows:
        raise UserError(f"{name}: the dataset is empty")
    table, at = None, 0
    mismatch = UserError(f"{name}: metadata.json promises {rows} steps, its episodes have another number of them")
    episodes = itertools.islice(minari_episodes(folder, obs_keys), int(metadata["total_episodes"]))  # it may grow
    action_space = spaces.from_json(json.loads(metadata.get("action_space", "{}")))
    for number, (observations, actions, rewards, terminations) in enumerate(episodes):
        steps = len(rewards)
        if not steps:
            continue
        place = f"{name}, episode {number}"
        lengths = dict(observations=len(observations) - 1, actions=len(actions), terminations=len(terminations))
        if any(length != steps for length in lengths.values()):
            raise UserError(
                f"{place}: {len(observations)} observations, {len(actions)} actions and"
                f" {len(terminations)} terminations do not go with {steps} rewards; record it again"
            )
        if table is None:
            table = _allocate(rows, observations, actions)
        if at + steps > rows:
            raise mismatch
        span = slice(at, at + steps)
        table["obs"][span], table["next_obs"][span] = observations[:-1], observations[1:]
        table["action"][span] = _checked_actions(actions, action_space, place)
        table["reward"][span], table["terminated"][span] = rewards, terminations
        at += steps
        table["last"][at - 1] = True
    if table is None or at < rows:
        raise mismatch
    _check_finite(name, {key: table[key] for key in ("obs", "next_obs", "action", "reward")})
    keep = ("env_spec", "eval_env_spec", "ref_min_score", "ref_max_score", "author", "provenance", "seed")
    provenance = dict(
        format="journal" if _is_journal(metadata) else f"Minari {metadata.get('minari_version', '?')}",
        file=str(folder),
        minari_id=metadata["dataset_id"],
        rows_in_source=rows,
        rows_dropped=0,
        episode_ends="episodes as stored",
        obs_keys=[part for part in _parts(metadata, obs_keys) if part] or None,
        reward="none",
        **{key: metadata[key] for key in keep if key in metadata},
    )
    return Dataset(**table, name=name, provenance=provenance)


def _installed(dataset_id: str) -> Path:
    """The folder of a Minari dataset, downloaded if it has to be and can be."""
    folder = minari_root() / dataset_id
    if (folder / "data").is_dir():
        return folder
    instead = (
        f"on a machine that is connected run `minari download {dataset_id}` and copy the folder to {folder},"
        " or pass a file with --dataset FILE"
    )
    try:  # Minari would retry for 23 seconds before it says that there is no network
        urllib.request.urlopen("https://huggingface.co", timeout=5).close()
    except OSError as error:
        raise UserError(
            f"the Minari dataset {dataset_id} is not installed and its server could not be reached: {instead}"
        ) from error
    import minari

    try:
        minari.download_dataset(dataset_id)
    except Exception as error:  # of many kinds, from a missing huggingface_hub to a misconfigured remote
        shutil.rmtree(folder, ignore_errors=True)  # a failed download would pass for an installed dataset
        raise UserError(f"the Minari dataset {dataset_id} could not be downloaded ({error}): {instead}") from error
    return folder


def _has_jpeg(metadata: Mapping[str, Any]) -> bool:
    """Whether there may be images in it that Minari stored as JPEG."""
    return metadata.get("jpeg_encoding", True) and "uint8" in str(metadata.get("observation_space", "uint8"))


def minari_episodes(folder: Path, obs_keys: Sequence[str] | None = None) -> Iterator[_Arrays]:
    """Observations ``[T + 1, O]``, actions ``[T, A]``, rewards ``[T]`` and terminations ``[T]`` of each
    episode of a Minari dataset or of an unfinished collection, given by its folder.

    Raises:
        UserError: it cannot be read, or holds flags or choices that mean nothing.
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
        episodes = _journal_episodes(folder, parts) if _is_journal(metadata) else _minari_episodes(folder, parts)
    return _encoded(episodes, parts, metadata["dataset_id"])


_Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
_Parts = Mapping[str, gymnasium.Space | None]
_Raw = tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]


def _encoded(episodes: Iterable[_Raw], parts: _Parts, source: str) -> Iterator[_Arrays]:
    """Episodes with the parts of their observations joined, each encoded as its space asks."""
    for number, (columns, actions, rewards, terminations) in enumerate(episodes):
        place = f"{source}, episode {number}"
        rewards = _single(rewards, f"{place}: rewards")
        terminations = _as_flags(terminations, f"{place}: terminations")
        try:
            pixels = len(columns) == 1 and _is_pixels(columns[0])
            yield columns[0] if pixels else spaces.join(parts, columns), actions, rewards, terminations
        except spaces.Misfit as misfit:
            raise UserError(f"{place}: observation {misfit.row} {misfit.what}; repair or remove it") from misfit


def _hdf5_episodes(path: Path, count: int, parts: _Parts) -> Iterator[_Raw]:
    """Observations by part, actions, rewards and terminations of each episode. h5py's low level is what makes many
    short episodes load in a second rather than in seven."""
    with open_hdf5(path) as file:
        _shrink_cache(file)
        dtypes: dict[bytes, np.dtype] = {}

        def read(group: h5py.h5g.GroupID, column: str) -> np.ndarray:
            name = column.encode()
            data = h5py.h5d.open(group, name)
            if name not in dtypes:
                dtypes[name] = data.dtype
            array = np.empty(data.shape, dtypes[name])
            data.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
            return array

        try:
            if isinstance(file["episode_0/actions"], h5py.Group):
                raise UserError(f"{path}: actions made of several parts are not supported")
            for number in range(count):
                group = h5py.h5g.open(file.id, f"episode_{number}".encode())
                observations = [read(group, f"observations/{part}".rstrip("/")) for part in parts]
                yield observations, *(read(group, name) for name in ("actions", "rewards", "terminations"))
        except (KeyError, OSError) as error:
            raise UserError(f"{path}: an episode cannot be read ({error}); get the dataset again") from error


def _shrink_cache(file: h5py.File, size: int = 1 << 20) -> None:
    """Keeps HDF5 from holding on to the headers of thousands of arrays, larger than the arrays themselves."""
    config = file.id.get_mdc_config()
    config.set_initial_size, config.initial_size = True, size
    config.min_size = config.max_size = size
    file.id.set_mdc_config(config)


def _minari_episodes(folder: Path, parts: _Parts) -> Iterator[_Raw]:
    import minari

    try:
        yield from _columns(minari.MinariDataset(folder), parts)
    except ImportError as error:
        needed = getattr(error, "name", None) or "pyarrow"
        raise UserError(f"{folder} is stored in a format that needs {needed}: pip install {needed}") from error


def _journal_episodes(folder: Path, parts: _Parts) -> Iterator[_Raw]:
    from offlinerl.data.journal import EPISODES, Journal  # here, because it imports this module

    with Journal(folder / EPISODES, write=False) as journal:
        yield from _columns(journal, parts)


def _is_journal(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("data_format") == "journal"


def _columns(episodes: Iterable[Any], parts: _Parts) -> Iterator[_Raw]:
    for episode in episodes:
        columns = [np.asarray(spaces.child(episode.observations, part)) for part in parts]
        yield columns, np.asarray(episode.actions), episode.rewards, episode.terminations


def _parts(metadata: Mapping[str, Any], obs_keys: Sequence[str] | None) -> dict[str, gymnasium.Space | None]:
    """The parts of a dataset's observations and their spaces; see ``offlinerl.spaces.parts``."""
    try:
        space = spaces.from_json(json.loads(metadata.get("observation_space", "{}")))
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        source = metadata["dataset_id"]
        raise UserError(f"{source}: its metadata describe no observation space; write the dataset again") from error
    return spaces.parts(space, obs_keys, metadata["dataset_id"])


def _is_pixels(array: Any) -> bool:
    return array.dtype == np.uint8 and array.ndim >= 3


def _single(column: np.ndarray, what: str) -> np.ndarray:
    """A column ``[T]`` or ``[T, 1]`` as ``[T]``."""
    column = np.asarray(column)
    if column.ndim == 1:
        return column
    if column.ndim != 2 or column.shape[1] != 1:
        raise UserError(f"{what} must have one number a row, but they are {column.shape}; write them again")
    return column[:, 0]


def _as_flags(column: np.ndarray, what: str) -> np.ndarray:
    """A column ``[T]`` or ``[T, 1]`` of noughts and ones as bool.

    Raises:
        UserError: another value stands in it.
    """
    column = _single(column, what)
    if column.dtype.kind == "b":
        return column
    if column.dtype.kind not in "iuf":
        raise UserError(f"{what} must be 0 or 1, but they are of type {column.dtype}; write them again")
    wrong = np.flatnonzero((column != 0) & (column != 1))
    if len(wrong):
        raise UserError(f"{what} must be 0 or 1, but row {wrong[0]} holds {column[wrong[0]]:g}; repair or remove it")
    return column.astype(bool)


def _checked_actions(
    actions: np.ndarray, space: gymnasium.Space | None, what: str, rows: np.ndarray | None = None
) -> np.ndarray:
    """Actions as ``[T, A]``; ``rows`` are their rows in the source.

    Raises:
        UserError: an action is not one of the numbered ones there are.
    """
    actions = np.asarray(actions).reshape(len(actions), -1)
    if isinstance(space, gymnasium.spaces.Discrete) and actions.shape[1] == 1:
        try:
            spaces.require_choices(actions, np.array([space.n]), np.array([space.start]))
        except spaces.Misfit as misfit:
            row = misfit.row if rows is None else rows[misfit.row]
            raise UserError(f"{what}: the action in row {row} {misfit.what}; repair or remove it") from misfit
    return actions


def _allocate(rows: int, observations: np.ndarray, actions: np.ndarray) -> dict[str, np.ndarray]:
    shape = (rows, *observations.shape[1:])
    dtype = np.uint8 if _is_pixels(observations) else np.float32
    width = int(np.prod(actions.shape[1:]))
    return dict(
        obs=np.empty(shape, dtype),
        action=np.empty((rows, width), np.float32),
        reward=np.empty(rows, np.float32),
        terminated=np.empty(rows, bool),
        last=np.zeros(rows, bool),
        next_obs=np.empty(shape, dtype),
    )


# ---------------------------------------------------------------------------------------------- D4RL's HDF5


def load_hdf5(
    path: str | Path,
    mode: Mode = "lossless",
    *,
    name: str = "",
    max_episode_steps: int | None = None,
    split: str | None = None,
    longest: int | None = None,
    env: Mapping[str, Any] | None = None,
) -> Dataset:
    """Reads a file in D4RL's format: ``observations [N, O]``, ``actions [N, A]``, ``rewards [N]``,
    ``terminals [N]`` and, where the file has them, ``timeouts [N]`` and ``next_observations [N, O]``. The flags of
    episodes' ends may have the other names in ``TERMINAL``, ``CUT`` and ``END``.

    The successor of a row is ``next_observations``, or else the next row of the same episode. The lossless
    mode keeps every row that has one, and those that end in a terminal state, where none is needed.
    The d4rl mode gives the rows of ``d4rl.qlearning_dataset``, no more and no fewer: without those that time
    out and without the last one, the next row always being the successor.

    Args:
        mode: "lossless" or "d4rl".
        name: what to call it; the file's name by default.
        max_episode_steps: length at which an episode was cut off, for files without ``timeouts``.
        split: "jump" ends episodes where the position (columns 0 and 1) jumps or times out, never at
            ``terminals``; as AntMaze needs, where the ant walks on beyond the goal.
        longest: steps that an episode may have at the most, unless they are split at jumps; None is no limit.
        env: what the rows were collected in, see ``offlinerl.envs.make``; it is made where the rows may hold choices
            of a finite number, for its spaces.

    Raises:
        UserError: the file is missing, broken, empty, lacks a key, has wrong shapes or non-finite values, flags that
            are neither 0 nor 1, choices that its environment does not have, or an episode that is too long.

    Source: Fu et al., D4RL, 2020, and ``d4rl/__init__.py`` of its repository.
    """
    path = Path(path)
    if mode not in ("lossless", "d4rl"):
        raise UserError(f"unknown mode {mode!r}; choose lossless or d4rl")
    with open_d4rl(path) as file:
        rows = len(file["rewards"])
        flags = episode_flags(file, max_episode_steps, split)
        terminals, cut = flags.terminal, flags.cut
        has_next = "next_observations" in file and mode == "lossless"
        end = cut.copy() if split == "jump" else cut | terminals
        end[-1] = True
        if longest is not None and split != "jump":
            _require_short(path, end, longest)
        observation_space, action_space = _spaces_of(file, env)
        if mode == "d4rl":
            keep = ~(cut if flags.told else _d4rl_timeouts(terminals, max_episode_steps or rows + 1))
            keep[-1] = False
        else:
            keep = np.ones(rows, bool) if has_next else ~end | terminals
        if not keep.any():
            raise UserError(f"{path}: no row has a successor, so that there is nothing to learn from")
        count = int(keep.sum())
        table = _allocate(count, file["observations"], file["actions"])
        if table["obs"].ndim == 1:
            table["obs"], table["next_obs"] = table["obs"][:, None], table["next_obs"][:, None]
        table["terminated"][:] = terminals[keep]
        table["last"][:] = (end | ~np.r_[keep[1:], False])[keep]  # it also ends where a row was left out
        _read(file["rewards"], keep, table["reward"])
        _read(file["actions"], keep, table["action"])
        _read(file["observations"], keep, table["obs"], None if has_next else table["next_obs"])
        if has_next:
            _read(file["next_observations"], keep, table["next_obs"])
    if mode == "lossless" and not has_next:
        final = table["last"] & table["terminated"]
        table["next_obs"][final] = table["obs"][final]
    fields = dict(observations="obs", next_observations="next_obs", actions="action", rewards="reward")
    _check_finite(str(path), {key: table[column] for key, column in fields.items()}, keep)
    kept = np.flatnonzero(keep)
    _checked_actions(table["action"], action_space, str(path), kept)
    if observation_space is not None:
        for column in ("obs", "next_obs"):
            try:
                table[column] = spaces.encode(observation_space, table[column])
            except spaces.Misfit as misfit:
                raise UserError(
                    f"{path}: the observation of row {kept[misfit.row]} or its successor {misfit.what}; repair or"
                    " remove it"
                ) from misfit
    provenance = dict(
        format="D4RL HDF5",
        file=str(path),
        mode=mode,
        rows_in_source=rows,
        rows_dropped=rows - count,
        episode_ends=flags.basis,
        successors="next_observations" if has_next else "next row",
        reward="none",
    )
    return Dataset(**table, name=name or path.stem, provenance=provenance)


@contextmanager
def open_d4rl(path: Path) -> Iterator[h5py.File]:
    """Opens a file in D4RL's format, its shapes checked.

    Raises:
        UserError: it is missing, broken, empty, lacks a key or has wrong shapes.
    """
    with open_hdf5(path) as file:
        if any(isinstance(file.get(group), h5py.Group) for group in ("data", "episode_0")):
            kind = "robomimic's format" if "data" in file else "Minari's format, without the metadata beside it"
            raise UserError(f"{path} is in {kind}, and not in D4RL's; {REWRITE}")
        missing = {"observations", "actions", "rewards"} - set(file)
        if missing:
            has = ", ".join(sorted(file)) or "nothing"
            raise UserError(f"{path} lacks {', '.join(sorted(missing))}; it has {has}; {REWRITE}")
        columns = {key: file[key] for key in D4RL_KEYS if key in file}
        for key, column in columns.items():
            wanted = D4RL_KEYS[key]
            if not isinstance(column, h5py.Dataset) or column.ndim not in wanted:
                shape = getattr(column, "shape", "a group")
                raise UserError(f"{path}: {key} must have {wanted[0]} axes, but it is {shape}")
            if column.dtype.kind not in "biuf":
                raise UserError(f"{path}: {key} must be numbers, but they are of type {column.dtype}")
            if wanted == (1, 2) and column.ndim == 2 and column.shape[1] != 1:
                raise UserError(f"{path}: {key} must have 1 axes, but it is {column.shape}")
        lengths = {key: len(column) for key, column in columns.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
            raise UserError(f"{path}: its columns have unequal lengths ({listed}); cut or regenerate it")
        if not lengths["rewards"]:
            raise UserError(f"{path} is empty: it has no rows")
        yield file


TERMINAL = ("terminals", "terminal", "terminations", "termination", "terminated", "terminateds", "is_terminal")
"""Names of flags that say where nothing follows."""

CUT = ("timeouts", "timeout", "truncations", "truncation", "truncated", "truncateds", "episode_truncations")
"""Names of flags that say where an episode was cut off."""

END = (
    "episode_terminals", "episode_terminal", "dones_float", "dones", "done", "episode_ends", "episode_end", "ends",
    "is_last", "last",
)  # fmt: skip
"""Names of flags that say where an episode ended, whether it terminated or was cut off."""

D4RL_KEYS = {
    "observations": (2, 1, 4),
    "actions": (2, 1),
    "rewards": (1, 2),
    **dict.fromkeys((*TERMINAL, *CUT, *END), (1, 2)),
    "next_observations": (2, 1, 4),
}
"""Columns of a D4RL file, and the numbers of axes each may have."""

REWRITE = (
    "write the rows, episode after episode, into an HDF5 file with the keys of D4RL: observations, actions, rewards,"
    " terminals and timeouts"
)
"""What to do with data in another format."""

OTHER_FORMATS = {
    (".csv", ".tsv", ".txt", ".json", ".jsonl", ".xlsx", ".xls"): "a table or text",
    (".parquet", ".feather", ".arrow"): "a table of columns",
    (".npz", ".npy"): "an archive of numpy",
    (".pkl", ".pickle", ".pt", ".pth", ".ckpt"): "a file of Python objects",
    (".zip", ".tar", ".gz", ".tgz"): "an archive",
    (".tfrecord", ".rlds"): "a file of TensorFlow's records",
    (".zarr",): "a Zarr store",
}
"""What a file probably is that is not HDF5, by the end of its name."""


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading.

    Raises:
        UserError: it is missing, broken or something else.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; check the path")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        for endings, kind in OTHER_FORMATS.items():
            if path.suffix.lower() in endings:
                raise UserError(f"{path} is {kind}, and not an HDF5 file in D4RL's format; {REWRITE}") from error
        raise UserError(f"{path} is not an HDF5 file, or only a part of one; download or write it again") from error
    with file, reading(str(path), "download or write it again"):
        yield file


class Flags(NamedTuple):
    """Where the episodes of a D4RL file end."""

    terminal: np.ndarray  # [N] bool
    cut: np.ndarray  # [N] bool
    basis: str  # in words, what tells
    told: bool  # whether the file itself says where episodes were cut off


def episode_flags(file: h5py.File, max_episode_steps: int | None, split: str | None) -> Flags:
    """Where the episodes end: by the flags in the file, of any of the usual names; where none says which were cut
    off, also after every ``max_episode_steps`` steps.

    Raises:
        UserError: a flag is neither 0 nor 1, or there are none at all.
    """

    def flags(names: Sequence[str]) -> tuple[list[str], np.ndarray]:
        found = [name for name in names if name in file]
        columns = [_as_flags(file[name][()], f"{file.filename}: {name}") for name in found]
        return found, np.logical_or.reduce([np.zeros(rows, bool), *columns])

    rows = len(file["rewards"])
    (terminal_names, terminal), (cut_names, cut), (end_names, end) = map(flags, (TERMINAL, CUT, END))
    if not (terminal_names or cut_names or end_names) and (max_episode_steps is None or rows % max_episode_steps):
        has = ", ".join(sorted(file))
        raise UserError(
            f"{file.filename} lacks terminals; it has {has}; D4RL's keys are needed, of which terminals and timeouts"
            " say where episodes end"
        )
    names = " and ".join([*terminal_names, *cut_names, *end_names])
    if split == "jump":
        place = file["observations"][:, :2].astype(np.float64)
        jump = np.r_[np.linalg.norm(np.diff(place, axis=0), axis=1) > JUMP, False]
        return Flags(terminal, cut | jump, "timeouts and jumps of the position", bool(cut_names))
    if not terminal_names:
        terminal = end & ~cut
        if max_episode_steps and not cut_names:  # an end after that many steps is the time limit's
            terminal &= _steps_in_episode(end) != max_episode_steps
    told = bool(cut_names or end_names)
    if told:
        return Flags(terminal, cut | end & ~terminal, names, told)
    if max_episode_steps is None:
        return Flags(terminal, cut, names, told)
    cut = _steps_in_episode(terminal) % max_episode_steps == 0
    return Flags(terminal, cut, " and ".join([*terminal_names, f"every {max_episode_steps} steps"]), told)


def _steps_in_episode(end: np.ndarray) -> np.ndarray:
    """The number of every row ``[N]`` in its episode, from 1 on."""
    index = np.arange(len(end))
    return index - np.maximum.accumulate(np.where(np.r_[False, end[:-1]], index, 0)) + 1


def _require_short(path: Path, end: np.ndarray, longest: int) -> None:
    """Raises a UserError if an episode is longer than its environment allows."""
    steps = _steps_in_episode(end)
    beyond = np.flatnonzero(steps > longest)
    if len(beyond):
        row = beyond[0]
        raise UserError(
            f"{path}: the episode that begins in row {row - longest} goes on in row {row}, after the {longest} steps"
            " that its environment allows; mark where episodes end in timeouts, name another environment with --env,"
            " or allow more steps with --max-episode-steps"
        )


def _spaces_of(file: h5py.File, env: Mapping[str, Any] | None) -> tuple[gymnasium.Space | None, gymnasium.Space | None]:
    """The space in which a D4RL file's observations must be encoded, None if they need not, and the actions' space,
    None if nothing has to be known of it."""

    def may_be_choices(name: str) -> bool:
        column = file[name]
        start = column[: min(1000, len(column))]
        return column.ndim <= 2 and (
            start.reshape(len(start), -1).shape[1] == 1 or bool((start == np.floor(start)).all())
        )

    if env is None or not (may_be_choices("observations") or may_be_choices("actions")):
        return None, None
    from offlinerl.envs.make import make  # here, for most files need no environment

    made = make(env, flat=False)
    try:
        observation_space, action_space = made.observation_space, made.action_space
    finally:
        made.close()
    column = file["observations"]
    width = int(np.prod(column.shape[1:]))
    kinds = (gymnasium.spaces.Discrete, gymnasium.spaces.MultiDiscrete)
    raw = isinstance(observation_space, kinds) and column.ndim <= 2
    raw = raw and width == int(np.prod(observation_space.shape))
    return observation_space if raw else None, action_space


def _d4rl_timeouts(terminals: np.ndarray, max_episode_steps: int) -> np.ndarray:
    """The rows ``[N]`` at which D4RL thinks that time is up where a file has no ``timeouts``: it counts steps, from
    one after a terminal state and from zero elsewhere."""
    timeouts, begin, count = np.zeros_like(terminals), 0, 0
    for end in [*np.flatnonzero(terminals), len(terminals) - 1]:
        timeouts[begin + max_episode_steps - 1 - count : end + 1 : max_episode_steps] = True
        begin, count = end + 1, int(not timeouts[end])
    return timeouts


def _read(column: h5py.Dataset, keep: np.ndarray, out: np.ndarray, successors: np.ndarray | None = None) -> None:
    """Fills ``out`` with the rows to keep, and ``successors`` with the rows after them."""
    at = 0
    for start in range(0, len(keep), BLOCK):
        chosen = keep[start : start + BLOCK]
        block = column[start : start + len(chosen) + 1]
        if len(block) == len(chosen):
            block = np.concatenate([block, block[-1:]])  # the file's last row has no row after it
        block = block.reshape(len(block), *out.shape[1:])
        span = slice(at, at + int(chosen.sum()))
        out[span] = block[:-1][chosen]
        if successors is not None:
            successors[span] = block[1:][chosen]
        at = span.stop


def _check_finite(source: str, columns: Mapping[str, np.ndarray], keep: np.ndarray | None = None) -> None:
    """Refuses columns with a NaN; ``keep`` tells which rows of the source are in them."""
    for name, column in columns.items():
        bad = nonfinite_rows(column)
        if len(bad):
            first = bad[0] if keep is None else np.flatnonzero(keep)[bad[0]]
            raise UserError(
                f"{source}: {name} has NaN or infinite values in {len(bad)} rows, the first of them {first};"
                " remove or repair them"
            )


def nonfinite_rows(column: np.ndarray) -> np.ndarray:
    """The rows of ``[rows, ...]`` that hold a NaN or an infinity."""
    if column.dtype.kind != "f":
        return np.empty(0, int)
    blocks = (column[at : at + BLOCK] for at in range(0, len(column), BLOCK))
    finite = [np.isfinite(block).reshape(len(block), -1).all(axis=1) for block in blocks]
    return np.flatnonzero(~np.concatenate(finite))
