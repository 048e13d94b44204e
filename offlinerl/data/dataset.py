"""Datasets as one flat table of transitions, none of which crosses an episode boundary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offlinerl.data.columns import blocks
from offlinerl.data.scales import Moments, moments
from offlinerl.util.atomic import atomic_write, write_json
from offlinerl.util.errors import UserError, counted, reading
from offlinerl.util.trees import Tree, first_leaf, observed_in_words, tree_leaves, tree_like, tree_map

if TYPE_CHECKING:
    from offlinerl.data.registry import Entry

COLUMNS = ("observations", "at", "next_at", "action", "reward", "terminated", "last", "log_prob")
ABOUT = "dataset.json"
"""The file beside a folder's columns that describes the dataset."""
FEW = 1 << 10
"""Rows whose observations, possibly images, are compared at a time."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Transitions, one per row, one episode after another, in C-contiguous numpy arrays. Every observation is stored
    once.

    Attributes:
        observations: a tree of ``[M, ...]``: a vector ``[M, O]`` float32, an image ``[M, H, W, C]`` in its own dtype,
            or a dictionary of these by path.
        at: ``[rows]`` int64, index of each row's observation, in ascending order.
        next_at: ``[rows]`` int64, index of its next observation, which is ``at + 1``; ``at`` itself where the source
            ends without a next observation.
        action: ``[rows, A]`` float32; a discrete action is its number, with A = 1.
        reward: ``[rows]`` float32, as used for training: ``provenance["reward"]`` names the reward rule.
        terminated: ``[rows]`` bool, where not to bootstrap from the next observation.
        last: ``[rows]`` bool, the last row of each episode, whether it terminated or was truncated.
        name: the name it was loaded under.
        provenance: where the rows come from, and how they were processed.
        entry: the task it was loaded with, if it was loaded by ``offlinerl.data.load.load``.
        log_prob: ``[rows]`` float32, log-probability of the action under the behaviour policy, or its log-density in
            the action's own units; None if unknown.
    """

    observations: Tree
    at: np.ndarray
    next_at: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    last: np.ndarray
    name: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    entry: Entry | None = field(default=None, repr=False)
    log_prob: np.ndarray | None = None

    @classmethod
    def of_rows(cls, obs: Tree, next_obs: Tree, ahead: Tree = None, **columns: Any) -> Dataset:
        """Builds a dataset from rows that each have a next observation, ``[rows, ...]``. Where it equals the next row's
        observation, it is stored once. If the rows continue in a later part, ``ahead``, ``[1, ...]``, is the
        observation of the row after the last one."""
        rows, next_obs = len(first_leaf(obs)), tree_like(obs, next_obs)
        following, own = np.ones(rows, bool), np.ones(rows, bool)  # whether it is the next row's obs, the row's own
        following[-1:] = ahead is not None
        for (_, current), (_, successor) in zip(tree_leaves(obs), tree_leaves(next_obs), strict=True):
            following[:-1] &= _same(successor[:-1], current[1:])
            own &= _same(successor, current)
        if ahead is not None:
            ahead = tree_like(obs, ahead)
            for (_, beyond), (_, successor) in zip(tree_leaves(ahead), tree_leaves(next_obs), strict=True):
                following[-1:] &= _same(successor[-1:], beyond)
        following &= ~columns["last"]  # episodes share no observation, even if the next one begins with an equal one
        apart = ~(following | own)
        at = np.arange(rows) + np.r_[0, np.cumsum(apart)[:-1]]
        total = rows + int(apart.sum())

        def merged(current: np.ndarray, successor: np.ndarray) -> np.ndarray:
            both = np.empty((total, *current.shape[1:]), current.dtype)
            both[at], both[at[apart] + 1] = current, successor[apart]
            return both

        observations = tree_map(merged, obs, next_obs) if apart.any() else obs
        return cls(observations, at, at + ~(own & ~following), **columns)

    def write(self, folder: str | Path) -> None:
        """Writes every column as a numpy file into a new folder, which appears only once it is complete; see
        ``mapped``.

        Raises:
            UserError: the folder exists, or the disk is full.
        """
        with atomic_write(Path(folder), mark=ABOUT) as temporary:
            for path, column in tree_leaves(self._columns()):
                file = temporary / f"{path}.npy"
                file.parent.mkdir(parents=True, exist_ok=True)
                np.save(file, column)
            write_about(temporary, [path for path, _ in tree_leaves(self._columns())], self.name, self.provenance)

    @classmethod
    def mapped(cls, folder: str | Path) -> Dataset:
        """The dataset in a folder made by ``write``, memory-mapped: its columns stay on disk and are paged in as they
        are used, so that it may be larger than memory.

        Raises:
            UserError: the folder holds no dataset.
        """
        folder = Path(folder)
        if not (folder / ABOUT).is_file():
            raise UserError(f"{folder} holds no dataset: it lacks {ABOUT}; write one there with Dataset.write")
        columns: dict[str, Any] = {}
        with reading(f"the dataset {folder}", "write it again"):
            about = json.loads((folder / ABOUT).read_text("utf-8"))
            for whole in about["columns"]:
                name, _, path = whole.partition("/")
                # not copy-on-write, which the system refuses for a file larger than memory
                column = np.load(folder / f"{whole}.npy", mmap_mode="r")
                columns[name] = {**columns.get(name, {}), path: column} if path else column
            return cls(**columns, name=about["name"], provenance=about["provenance"])

    def _columns(self) -> dict[str, Tree]:
        return {name: column for name, column in vars(self).items() if name in COLUMNS and column is not None}

    def _singles(self, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        """Some rows of the columns with one number per row, without the indices of observations."""
        names = ("reward", "terminated", "last", "log_prob")
        return {name: column[rows] for name, column in self._columns().items() if name in names}

    def __len__(self) -> int:
        return len(self.reward)

    def __repr__(self) -> str:
        observed = observed_in_words({path: leaf.shape[1:] for path, leaf in tree_leaves(self.observations)})
        return (
            f"<Dataset {self.name or 'without a name'}: {counted(len(self), 'transition')} in"
            f" {counted(len(self.episode_starts), 'episode')}, {observed}, {counted(self.action.shape[1], 'action')}>"
        )

    def __getitem__(self, rows: slice) -> Dataset:
        """The dataset of consecutive rows, as in ``data[:1000]``; the last one ends an episode. For whole episodes see
        ``take``.

        Raises:
            TypeError: it is not a slice.
            ValueError: the slice is empty, or has a step other than 1.
        """
        if not isinstance(rows, slice):
            raise TypeError(f"a dataset has slices, as in data[:1000], and no row {rows!r}; its columns have rows")
        begin, end, step = rows.indices(len(self))
        if step != 1 or begin >= end:
            raise ValueError("a slice of a dataset has at least one row, and all that lie between its first and last")
        first, final = self.at[begin], max(self.at[end - 1], self.next_at[end - 1]) + 1
        columns = dict(self._singles(slice(begin, end)), action=self.action[begin:end])
        columns["last"] = np.r_[columns["last"][:-1], True]
        return replace(
            self, observations=tree_map(lambda leaf: leaf[first:final], self.observations),
            at=self.at[begin:end] - first, next_at=self.next_at[begin:end] - first, **columns,
        )  # fmt: skip

    def to_pandas(self, next_obs: bool = False) -> Any:
        """A pandas DataFrame with one row per transition and the columns ``obs_0`` and so on, ``action_0`` and so on,
        ``reward``, ``terminated``, ``truncated``, ``episode`` and ``step``, and ``log_prob`` if it is known; for
        observations with parts, ``obs_NAME_0`` and so on. ``load_dataset`` reads it.

        Args:
            next_obs: also add ``next_obs_0`` and so on, without which the last step of a truncated episode has no next
                observation.

        Raises:
            UserError: the dataset holds images, or pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("a frame needs pandas, which is not installed: pip install pandas") from error
        columns: dict[str, np.ndarray] = {}

        def add(field: str, column: np.ndarray) -> None:
            if column.ndim != 2:
                raise UserError(f"{self.name}: a frame has numbers, and {field} are images; choose parts with obs_keys")
            columns.update({f"{field}_{i}": of for i, of in enumerate(np.asarray(column).T)})

        for name, tree in dict(obs=self.obs, **(dict(next_obs=self.next_obs) if next_obs else {})).items():
            for path, leaf in tree_leaves(tree):
                add(f"{name}_{path}" if path else name, leaf)
        add("action", self.stored_actions)
        if self.log_prob is not None:
            columns["log_prob"] = self.log_prob
        numbers = np.arange(len(self.episode_starts))
        steps = np.arange(len(self)) - np.repeat(self.episode_starts, self.episode_lengths)
        return pandas.DataFrame(columns | dict(
            reward=self.reward, terminated=self.terminated, truncated=self.last & ~self.terminated,
            episode=np.repeat(numbers, self.episode_lengths), step=steps,
        ))  # fmt: skip

    @property
    def obs(self) -> Tree:
        """The observation of every row, a tree of ``[rows, ...]``."""
        return tree_map(lambda leaf: leaf if len(leaf) == len(self) else leaf[self.at], self.observations)

    @property
    def next_obs(self) -> Tree:
        """The next observation of every row, a tree of ``[rows, ...]``."""
        return tree_map(lambda leaf: leaf[self.next_at], self.observations)

    @property
    def stored_actions(self) -> np.ndarray:
        """The actions ``[rows, A]`` as written to a file: discrete ones as integers, by which readers recognise
        them."""
        whole = np.dtype(self.provenance.get("action_dtype", "float32")).kind in "biu"
        return np.asarray(self.action, np.int64) if whole else self.action

    @cached_property
    def episode_starts(self) -> np.ndarray:
        """``[episodes]`` the first row of each episode."""
        return np.flatnonzero(np.r_[True, self.last[:-1]])

    @property
    def episode_lengths(self) -> np.ndarray:
        """``[episodes]`` the number of rows in each episode."""
        return np.diff(np.r_[self.episode_starts, len(self)])

    @cached_property
    def leaps(self) -> np.ndarray:
        """``[n]`` rows within an episode whose next observation is not the next row's observation, as in a log of
        single transitions. Differences due to rounding are ignored."""
        found, first = [np.empty(0, int)], 0
        for next_at, at, last in zip(blocks(self.next_at), blocks(self.at, more=1), blocks(self.last), strict=True):
            for rows in blocks(np.flatnonzero((next_at[: len(at) - 1] != at[1:]) & ~last[: len(at) - 1]), FEW):
                pairs = (
                    (leaf.take(next_at[rows], 0), leaf.take(at[rows + 1], 0))
                    for _, leaf in tree_leaves(self.observations)
                )
                found.append(first + rows[~np.logical_and.reduce([near(*pair) for pair in pairs])])
            first += len(next_at)
        return np.concatenate(found)

    @property
    def episode_returns(self) -> np.ndarray:
        """``[episodes]`` undiscounted sums of ``reward``, float64."""
        return np.add.reduceat(self.reward, self.episode_starts, dtype=np.float64)

    def take(self, episodes: np.ndarray) -> Dataset:
        """The dataset of the episodes with these numbers ``[n]``, in their original order. Columns on disk stay
        there."""
        wanted = np.isin(np.arange(len(self.episode_starts)), episodes)
        places = np.r_[self.at[self.episode_starts], len(first_leaf(self.observations))]
        rows = np.repeat(wanted, self.episode_lengths)
        if self.on_disk:
            shown = np.diff(places)[wanted]
            of_obs = partial(Stretches, begins=places[:-1][wanted], lengths=shown)
            of_rows = partial(Stretches, begins=self.episode_starts[wanted], lengths=self.episode_lengths[wanted])
            less = places[:-1][wanted] - np.r_[0, np.cumsum(shown)[:-1]]  # how far an observation moves down
            return replace(
                self, observations=tree_map(of_obs, self.observations), action=of_rows(self.action),
                at=of_rows(self.at, less=less), next_at=of_rows(self.next_at, less=less),
                **self._singles(rows),
            )  # fmt: skip
        kept = np.repeat(wanted, np.diff(places))
        moved = kept.cumsum() - 1  # the new index of an observation
        return replace(
            self, observations=tree_map(lambda leaf: leaf[kept], self.observations), at=moved[self.at[rows]],
            next_at=moved[self.next_at[rows]], action=self.action[rows], **self._singles(rows),
        )  # fmt: skip

    def best(self, share: float, returns: np.ndarray | None = None) -> Dataset:
        """The dataset of the episodes with the highest returns: the fraction ``share`` of all, and at least one.
        Episodes may be ranked by other ``returns`` ``[episodes]`` than their own."""
        count = max(1, round(share * len(self.episode_starts)))
        returns = self.episode_returns if returns is None else returns
        return self.take(np.argsort(-returns, kind="stable")[:count])

    def with_terminal_ends(self) -> Dataset:
        """The dataset with truncated episodes marked as terminated."""
        return replace(self, terminated=self.terminated | self.last)

    @property
    def action_limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest value in every action dimension, ``[A]`` each."""
        low, high = zip(*((block.min(0), block.max(0)) for block in blocks(self.action)), strict=True)
        return np.min(low, 0), np.max(high, 0)

    @property
    def on_disk(self) -> bool:
        """Whether its columns are on disk and are read on demand."""
        return isinstance(self.at, np.memmap | Stretches)

    @cached_property
    def moments(self) -> Moments:
        """The mean and standard deviation by which vector observations are normalised; every observation counts
        once."""
        return moments(self.observations)

    @property
    def nbytes(self) -> int:
        """Size of all columns in bytes."""
        return sum(column.nbytes for _, column in tree_leaves(self._columns()))


class Stretches:
    """Contiguous ranges of an array ``[N, ...]`` on disk, concatenated, and read on demand.

    Args:
        array: memory-mapped, or itself ``Stretches``.
        begins: ``[n]`` the first index of each range.
        lengths: ``[n]`` the length of each range.
        less: ``[n]`` what is subtracted from the values in each range; by default nothing.
    """

    def __init__(self, array: Any, begins: np.ndarray, lengths: np.ndarray, less: np.ndarray | None = None):
        self.array, self.less, self.ends = array, less, np.cumsum(lengths)
        self.moved = begins - (self.ends - lengths)  # offset from an index here to that in the array
        self.shape, self.dtype, self.ndim = (int(self.ends[-1]), *array.shape[1:]), array.dtype, array.ndim
        self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        first, rest = (*index, ...)[0], index[1:]
        if first is None or first is ...:
            return np.asarray(self)[index]
        if isinstance(first, slice):
            return self.take(np.arange(*first.indices(len(self))))[(slice(None), *rest)]
        rows = np.arange(len(self))[first]  # resolves masks and negative indices
        found = self.take(rows)
        return found[(*np.indices(rows.shape, sparse=True), *rest)] if rest else found

    def take(self, index: np.ndarray, axis: int = 0) -> np.ndarray:
        """The rows at indices ``[n]``, as ``[n, ...]``."""
        stretch = np.searchsorted(self.ends, index, "right")
        found = self.array.take(index + self.moved[stretch], axis)
        return found if self.less is None else found - self.less[stretch]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def write_about(folder: Path, columns: Sequence[str], name: str, provenance: Mapping[str, Any]) -> None:
    """Writes the file that marks a folder of columns as a dataset, with the columns' paths in order, its name and
    provenance."""
    write_json(folder / ABOUT, dict(name=name, columns=list(columns), provenance=provenance))


def near(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """``[rows]`` bool, where two columns are equal up to rounding."""
    close = np.isclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)
    return close.reshape(len(close), -1).all(1)


def _same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """``[rows]`` bool, where two columns are equal."""
    return (one == other).all(tuple(range(1, one.ndim)))
