"""Tables of transitions, from which blocks of batches are gathered: a dataset's, and what it shares with replay
buffers."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from offlinerl.agents.base import Agent
from offlinerl.data.columns import blocks
from offlinerl.data.dataset import COLUMNS, Dataset
from offlinerl.experience.mapped import MappedFiles, Maps, Stored, StoredNumbers
from offlinerl.learning import losses
from offlinerl.learning.seeds import Number
from offlinerl.types import ACTION_MARGIN, Batch, Leaf, Spec, Window
from offlinerl.util.errors import UserError
from offlinerl.util.trees import Tree, first_leaf, tree_leaves, tree_map

RESIDENT = 1 << 30
"""Bytes of a table's files that may be in this process's memory; beyond that, they are released after a gather."""

ENCODED = 256
"""Images encoded at a time."""


class Rows:
    """Transitions that are batched by index arithmetic: every observation is stored once, in its own dtype, and a row
    has the indices of its observation and its next observation; the numbers of a row are side by side, so that one
    gather fetches them all.

    Attributes:
        numbers: ``[R, A + 3]`` action, reward, terminated, last; ``last`` is 1 where the episode does not continue.
        observations: a tree of ``[M, ...]``; those of an episode are consecutive, in rings of ``size`` each.
        places: two of ``[R]``, the index of the observation and the index of the next observation.
        ages: ``[M]`` how many observations of its episode precede each; None without frame stacking.
        gamma: discount per step; if every seed has its own, rows are ``[K, S, ...]``.
        n_step: maximum number of rewards in an n-step return.
        next_actions: whether batches hold the next actions.
        returns: ``[R]`` discounted return to go, see ``returns_to_go``; None if batches do not hold it.
        stack: frames per observation: the preceding ones in its episode, oldest first; the first one is repeated.
    """

    numbers: Tensor | Stored
    observations: Tree
    places: Tensor | tuple[Tensor | Stored, ...]
    ages: Tensor | None
    size: int
    gamma: Number
    n_step: int
    stack: int
    next_actions = False
    returns: Tensor | None = None
    files: MappedFiles | None = None
    """The files of the observations, if these are on disk."""

    def following(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The rows one step later in the same episode, ``[n]``, and whether there are such."""
        raise NotImplementedError

    def remaining(self, rows: Tensor) -> Tensor:
        """The number of rows from each of these ``[...]`` to the last of its episode, itself included."""
        raise NotImplementedError

    def later(self, rows: Tensor, steps: Tensor) -> Tensor:
        """The rows so many steps after these ``[...]`` in the same episode."""
        raise NotImplementedError

    def goals(self, rows: Tensor, uniform: Tensor) -> Tree:
        """What is reached later in the same episode: the next observation of a row drawn uniformly from the given row
        to the episode's last, the "future" strategy of hindsight experience replay (Andrychowicz et al., 2017, section
        4.5).

        Args:
            rows: ``[...]``.
            uniform: ``[...]`` random numbers in [0, 1).

        Returns:
            Observations ``[..., ...]``, from which a goal is taken.
        """
        left = self.remaining(rows)
        ahead = (uniform * left).long().clamp(max=left - 1)
        found = self.observed(1, self.later(rows, ahead).flatten())
        return tree_map(lambda x: x.view(*rows.shape, *x.shape[1:]), found)

    def transitions(self, rows: Tensor) -> Batch:
        """The transitions that begin in rows ``[...]``: fields ``[..., ...]``.

        The n-step sum follows the episode to its end, or to the newest row (Sutton and Barto, Reinforcement Learning,
        2nd edition, 2018, equation 7.1).
        """
        flat = rows.reshape(-1)
        action, reward, terminated, last = self._gather(flat)
        gamma = self.gamma
        if isinstance(gamma, Tensor):  # one per seed
            gamma = gamma.view(-1, *[1] * (rows.ndim - 2)).expand(rows.shape).reshape(-1)
        discount, tail = gamma * (1 - terminated), flat
        for _ in range(self.n_step - 1):
            following, going = self.following(tail)
            going &= last == 0
            tail = torch.where(going, following, tail)
            _, value, terminated, last = self._gather(tail)
            reward = torch.where(going, reward + discount * value, reward)
            discount = torch.where(going, discount * gamma * (1 - terminated), discount)
        obs, next_obs = self.observed(0, flat), self.observed(1, tail)
        batch = Batch(obs, action, reward, discount, next_obs, last)
        if self.next_actions:
            following, going = self.following(tail)
            known = going & (last == 0)  # not yet known for a replay buffer's newest row
            next_action = self._gather(torch.where(known, following, tail))[0]
            batch = batch._replace(next_action=next_action, last=(~known).float())
        if self.returns is not None:
            batch = batch._replace(to_go=self.returns.index_select(0, flat))
        return tree_map(lambda x: x.view(*rows.shape, *x.shape[1:]), batch)

    def _gather(self, rows: Tensor) -> tuple[Tensor, ...]:
        numbers = self.numbers.index_select(0, rows)
        return numbers[:, :-3], *numbers[:, -3:].unbind(-1)

    def observed(self, which: int, rows: Tensor) -> Tree:
        """The observations of rows ``[n]`` or, if ``which`` is 1, their next observations, ``[n, ...]``."""
        places = self.places[which].index_select(0, rows)
        if self.ages is not None:
            back = torch.arange(self.stack - 1, -1, -1, device=places.device)
            back = torch.minimum(back, self.ages.index_select(0, places).unsqueeze(-1))  # [n, stack]
            ring = places - places % self.size
            places = ring.unsqueeze(-1) + (places.unsqueeze(-1) - back) % self.size
        places = places.flatten()

        def of(leaf: Tensor) -> Tensor:  # in files, it is not on the device
            return stacked(leaf.index_select(0, places.to(leaf.device)).to(places.device), self.stack)

        found = tree_map(of, self.observations)
        if self.files is not None:
            self.files.touched(len(places), sum(leaf.nbytes for _, leaf in tree_leaves(found)))
        return found

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        columns = (value for value in vars(self).values() if isinstance(value, Tensor | dict | tuple))
        return sum(leaf.nbytes for column in columns for _, leaf in tree_leaves(column) if isinstance(leaf, Tensor))


def returns_to_go(reward: Tensor, terminated: Tensor, last: Tensor, gamma: float, horizon: str) -> Tensor:
    """The discounted sum of the rewards from each row to the last of its episode.

    Args:
        reward: ``[R]``.
        terminated: ``[R]`` bool; nothing that follows in the episode counts.
        last: ``[R]`` bool, the last row of an episode.
        gamma: discount per step, below 1.
        horizon: "infinite": if the last row is not terminal, its reward repeats forever, as in the code of Cal-QL
            (Nakamoto et al., 2023) for Kitchen and for AntMaze's failures; "finite": nothing follows it.

    Returns:
        ``[R]`` float32.
    """
    if horizon == "infinite":
        reward = torch.where(last & ~terminated, reward / (1 - gamma), reward)
    return losses.accumulate(reward.double(), gamma * (~(last | terminated)).double()).float()


def stacked(frames: Tensor, count: int) -> Tensor:
    """Every ``count`` frames concatenated to one observation: vectors ``[n count, O] -> [n, count O]``, images
    ``[n count, H, W, C] -> [n, H, W, count C]``."""
    return frames if count == 1 else torch.cat(frames.unflatten(0, (-1, count)).unbind(1), -1)


def frame_of(leaf: Leaf, stack: int) -> Leaf:
    """One frame of an observation that is a frame stack."""
    if stack == 1:
        return leaf
    *shape, last = leaf.shape
    return leaf._replace(shape=(*shape, last // stack))


class Table(Rows):
    """The transitions of a dataset. If that is on disk it stays there, and rows are read as they are drawn.

    Episodes also end, as truncated, at the dataset's ``leaps``: no n-step sum, next action, window or frame stack
    crosses one.

    Args:
        dataset: with actions in the environment's units.
        spec: the shapes and bounds that it must have.
        gamma: see ``Rows``.
        n_step: see ``Rows``.
        device: where the table is stored.
        stack: see ``Rows``.

    Attributes:
        starts: ``[episodes]`` the first row of each episode; one with leaps counts as several.
        lengths: ``[episodes]`` the number of rows in each.
        whole: the same two for the dataset's own episodes, whatever leaps are in them.

    Raises:
        UserError: the dataset's shapes are not those of ``spec``.
    """

    def __init__(
        self, dataset: Dataset, spec: Spec, gamma: Number, n_step: int = 1, device: torch.device | str = "cpu",
        stack: int = 1,
    ):  # fmt: skip
        require_shapes(dataset, spec, stack)
        self.gamma, self.n_step, self.stack = gamma, n_step, stack
        self.reward, self.terminated = dataset.reward, dataset.terminated
        own = dataset.episode_starts, dataset.episode_lengths
        if len(dataset.leaps):
            last = np.array(dataset.last)
            last[dataset.leaps] = True
            dataset = replace(dataset, last=last)
        if stack > 1:
            dataset = in_line(dataset)
        ends = dataset.terminated | dataset.last
        columns = (dataset.action, dataset.reward, dataset.terminated, ends)
        pack, device = partial(packed, spec), torch.device(device)
        if dataset.on_disk:
            maps = Maps(RESIDENT)
            self.numbers: Tensor | Stored = StoredNumbers(pack, columns, device, maps)
            keep = partial(Stored, device=device, maps=maps)
        else:
            self.numbers = torch.from_numpy(pack(*columns)).to(device)
            keep = lambda leaf: torch.from_numpy(leaf).to(device)  # noqa: E731
        self.observations = tree_map(keep, dataset.observations)
        self.size = len(first_leaf(dataset.observations))
        self.places = tree_map(keep, (dataset.at, dataset.next_at))
        starts, lengths = dataset.episode_starts, dataset.episode_lengths
        self.starts, self.lengths = (torch.from_numpy(of_each).to(device) for of_each in (starts, lengths))
        self.whole = tuple(torch.from_numpy(of_each).to(device) for of_each in own)
        self.ages = None
        if stack > 1:
            first = dataset.at[starts]
            ages = np.arange(self.size) - np.repeat(first, np.diff(np.r_[first, self.size]))
            self.ages = torch.from_numpy(ages).to(device)

    @classmethod
    def of(cls, agent: Agent, dataset: Dataset, stack: int = 1) -> Table:
        """The table that an agent learns from; if the agent has a frozen encoder, latents replace the images."""
        if agent.frozen is not None:
            require_shapes(dataset, agent.spec, stack)
            images = dataset.observations
            latents = [agent.kept(np.asarray(images[i : i + ENCODED])) for i in range(0, len(images), ENCODED)]
            columns = {name: getattr(dataset, name) for name in COLUMNS if name != "observations"}
            others = {name: np.asarray(column) for name, column in columns.items() if column is not None}
            dataset = replace(dataset, observations=np.concatenate(latents), **others)
        table = cls(dataset, agent.kept_spec, agent.gamma, agent.n_step, agent.device, stack)
        table.next_actions = agent.next_actions
        if agent.returns_to_go:
            columns = map(table._column, (dataset.reward, dataset.terminated, dataset.last))
            table.returns = returns_to_go(*columns, agent.gamma, agent.returns_to_go)
        return table

    def __len__(self) -> int:
        """Number of transitions."""
        return len(self.numbers)

    def following(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        following = rows + 1
        return following, following < len(self)

    def episode(self, rows: Tensor, whole: bool = False) -> tuple[Tensor, Tensor]:
        """The first and the last row of the episodes that contain rows ``[...]``; unless they are ``whole``, these end
        at leaps too."""
        starts, lengths = self.whole if whole else (self.starts, self.lengths)
        number = torch.bucketize(rows.contiguous(), starts, right=True) - 1
        return starts[number], starts[number] + lengths[number] - 1

    def windows(self, rows: Tensor, length: int) -> Window:
        """The steps of an episode from rows ``[...]`` on, fields ``[..., T, ...]``. Past the end of the episode, or a
        terminal step in its middle, the last row is repeated and the mask is 0.

        Args:
            rows: where the windows begin.
            length: T.
        """
        first, final = self.episode(rows, whole=True)[0], self.final[rows]
        steps = rows.unsqueeze(-1) + torch.arange(length, device=rows.device)  # [..., T]
        at = torch.minimum(steps, final.unsqueeze(-1))
        flat = at.flatten()
        action, reward, *_ = (x.view(*at.shape, *x.shape[1:]) for x in self._gather(flat))
        obs = tree_map(lambda x: x.view(*at.shape, *x.shape[1:]), self.observed(0, flat))
        best, largest = (of.expand(rows.shape) for of in (self.best, self.largest))
        mask = (steps == at).float()
        return Window(obs, action, reward, self.to_go[at], at - first.unsqueeze(-1), mask, best, largest)

    @cached_property
    def final(self) -> Tensor:
        """``[R]``, where the episode of each row ends, or leaps; see ``_final``."""
        return self._final(self.starts, self.lengths)

    def _final(self, starts: Tensor, lengths: Tensor) -> Tensor:
        """``[R]``, the first row from each on that is terminal or the last of its episode: an episode may continue
        after a terminal step, as in AntMaze, and nothing that follows it counts in its return."""
        ends = self._column(self.terminated)
        ends[starts + lengths - 1] = True
        places = torch.where(ends, torch.arange(len(ends), device=ends.device), len(ends))
        return places.flip(0).cummin(0).values.flip(0)

    def _column(self, column: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(column)).to(self.starts.device)

    @cached_property
    def to_go(self) -> Tensor:
        """``[R]`` return to go: the sum of the rewards from each row to the end of its episode, across leaps."""
        reward = self._column(self.reward)
        total = reward.double().cumsum(0)
        return (total[self._final(*self.whole)] - total).float() + reward

    @cached_property
    def best(self) -> Tensor:
        """The highest return of an episode, ``[]``."""
        return self.to_go[self.whole[0]].amax()

    @cached_property
    def largest(self) -> Tensor:
        """The largest absolute return to go, ``[]``."""
        return self.to_go.abs().amax()

    def remaining(self, rows: Tensor) -> Tensor:
        return self.episode(rows)[1] - rows + 1

    def later(self, rows: Tensor, steps: Tensor) -> Tensor:
        return rows + steps


def in_line(dataset: Dataset) -> Dataset:
    """The dataset with the next row's observation as the next observation of each row. One that differs from it only by
    rounding is stored between the two, and a frame stack would contain both.

    Raises:
        UserError: there are such next observations in a dataset on disk.
    """
    at, next_at = np.asarray(dataset.at), np.array(dataset.next_at)
    beside = np.flatnonzero(~dataset.last[:-1] & (next_at[:-1] != at[1:]) & (next_at[:-1] != at[:-1]))
    if not len(beside):
        return dataset
    if dataset.on_disk:
        raise UserError(
            f"the successors in {dataset.name} are rounded differently than the observations that follow, so frames"
            " on disk cannot be stacked: give --train.table memory"
        )
    next_at[beside] = at[beside + 1]
    kept = np.zeros(len(first_leaf(dataset.observations)), bool)
    kept[at] = kept[next_at] = True
    moved = kept.cumsum() - 1  # the new index of an observation
    observations = tree_map(lambda leaf: leaf[kept], dataset.observations)
    return replace(dataset, observations=observations, at=moved[at], next_at=moved[next_at])


def packed(spec: Spec, action: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """The numbers of some rows side by side, ``[n, A + 3]``: scaled actions, and columns ``[n]``."""
    action = spec.in_unit(action) if spec.num_actions else in_unit(action, spec)
    return np.concatenate([action, *(column[:, None] for column in columns)], 1, dtype=np.float32)


def in_unit(action: np.ndarray, spec: Spec) -> np.ndarray:
    """The environment's actions scaled to [-1, 1] and clipped slightly inside."""
    return np.clip(spec.in_unit(action), -1 + ACTION_MARGIN, 1 - ACTION_MARGIN)


def entries_outside(action: np.ndarray, spec: Spec) -> int:
    """The number of entries of continuous actions ``[rows, A]`` outside the bounds by more than rounding."""
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    slack = ACTION_MARGIN * np.maximum(high - low, np.maximum(abs(low), abs(high)))
    return sum(int(((block < low - slack) | (block > high + slack)).sum()) for block in blocks(action))


def require_shapes(dataset: Dataset, spec: Spec, stack: int = 1) -> None:
    """Raises a UserError if rows do not have the task's shapes, or hold a discrete action that the task does not
    have."""
    shapes = {leaf.path: frame_of(leaf, stack).shape for leaf in spec.obs}
    observed = tree_map(lambda leaf: leaf.shape[1:], dataset.observations)
    for name, have, want in (
        ("observations", observed, shapes.get("", shapes)),
        ("actions", dataset.action.shape[1:], (spec.action_dim,)),
    ):
        if have != want:
            raise UserError(
                f"the dataset's {name} have shape {have} and the environment's {want}; name the"
                " environment the data was collected in with --env"
            )
    if spec.num_actions:
        action = spec.in_unit(np.asarray(dataset.action))
        wrong = np.flatnonzero((action != np.floor(action)) | (action < 0) | (action >= spec.num_actions))
        if len(wrong):
            first, final = spec.first_action, spec.first_action + spec.num_actions - 1
            raise UserError(
                f"the action in row {wrong[0]} of the dataset is {dataset.action[wrong[0], 0]:g}, but the environment"
                f" has those from {first} to {final}; repair or remove it"
            )
