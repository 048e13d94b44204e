"""Sources of training data, which yield blocks of K updates to an agent."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offlinerl.agents.base import Agent
from offlinerl.experience.hindsight import Hindsight
from offlinerl.experience.ring import Replay
from offlinerl.experience.table import Table
from offlinerl.learning.rng import Streams
from offlinerl.learning.seeds import per_seed
from offlinerl.rollout.collector import Collector
from offlinerl.types import Batch, Transition, Window
from offlinerl.util.errors import ActingFailed, UserError
from offlinerl.util.trees import tree_map

PIECE = 16
"""Updates in a piece, for replay buffers."""

AT_ONCE = 64
"""The most batches that are drawn from a replay buffer at once; their number in a block has no limit."""


class Source(ABC):
    """Yields blocks of K updates for an agent.

    Attributes:
        piece: updates or steps in one Lightning batch, whose hooks cost as much as a small update.
    """

    piece: int

    @abstractmethod
    def blocks(self, count: int) -> Iterator[Batch | Window]:
        """The next blocks, of ``count`` updates or steps in total, each made on demand."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restores a saved state; returns whether everything was restored exactly."""

    def learned(self, priority: Tensor | None) -> None:  # noqa: B027  most sources draw uniformly
        """Called with the priorities ``[K, S, B]`` that the learner gives to the rows of the latest block, or None."""

    def epoch(self, count: int) -> Epoch:
        """The next ``count`` updates or steps, for Lightning to train on."""
        return Epoch(self, count)


class Epoch:
    """A number of updates or steps of a source, in pieces; the last one may be shorter than the others."""

    def __init__(self, source: Source, count: int):
        self.source, self.count = source, count

    def __len__(self) -> int:
        return -(-self.count // self.source.piece)

    def __iter__(self) -> Iterator[Piece]:
        for first in range(0, self.count, self.source.piece):
            yield Piece(self.source, min(self.source.piece, self.count - first))


class Piece:
    """Blocks in sequence, each made after the agent has learned from the one before.

    Attributes:
        learned: to be called after each block with the learner's priorities; see ``Source.learned``.
    """

    def __init__(self, source: Source, count: int):
        self.blocks, self.learned = source.blocks(count), source.learned

    def __iter__(self) -> Iterator[Batch]:
        return self.blocks


class OfflineData(Source):
    """Uniform minibatches of a fixed table.

    Args:
        table: transitions.
        seeds: S integers; each draws its own rows.
        batch_size: B.
        updates: K, updates per block.
        rank: of the process, if several train together; each draws its own rows.
    """

    def __init__(self, table: Table, seeds: Sequence[int], batch_size: int, updates: int = 50, rank: int = 0):
        self.table, self.batch_size, self.piece = table, batch_size, updates
        self.streams = Streams(seeds, "rows", table.numbers.device, rank)

    def draw(self, updates: int | None = None) -> Batch | Window:
        """The next block, ``[K, S, B, ...]``."""
        rows = self.streams.integers(len(self.table), (updates or self.piece, self.batch_size))  # [S, K, B]
        return self.table.transitions(rows.transpose(0, 1))

    def blocks(self, count: int) -> Iterator[Batch | Window]:
        for first in range(0, count, self.piece):
            yield self.draw(min(self.piece, count - first))

    def state_dict(self) -> dict[str, Any]:
        return self.streams.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        self.streams.load_state_dict(state)
        return True


class GoalData(OfflineData):
    """Minibatches of transitions with other goals than those of their episodes.

    The arguments are those of ``OfflineData``, and ``hindsight`` chooses the goals.
    """

    def __init__(self, *args: Any, hindsight: Hindsight, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.hindsight = hindsight

    def draw(self, updates: int | None = None) -> Batch:
        rows = self.streams.integers(len(self.table), (updates or self.piece, self.batch_size)).transpose(0, 1)
        return self.hindsight.transitions(self.table, rows, self.streams)


class EpisodeData(OfflineData):
    """Minibatches of whole episodes, ``[K, S, B, T, ...]``, in which ``last`` is 1 in terminal steps, and from an
    episode's last step on. T is the length of the longest episode; shorter ones are padded with their last row.

    The arguments are those of ``OfflineData``, with B episodes.
    """

    def __init__(self, table: Table, *args: Any, **kwargs: Any):
        super().__init__(table, *args, **kwargs)
        starts, lengths = table.whole
        steps, final = torch.arange(int(lengths.max()), device=lengths.device), lengths[:, None] - 1
        self.rows = starts[:, None] + torch.minimum(steps, final)  # [episodes, T]
        terminated = torch.from_numpy(np.array(table.terminated)).to(self.rows.device)[self.rows]
        self.last = ((steps >= final) | terminated).float()

    def draw(self, updates: int | None = None) -> Batch:
        episodes = self.streams.integers(len(self.rows), (updates or self.piece, self.batch_size)).transpose(0, 1)
        return self.table.transitions(self.rows[episodes])._replace(last=self.last[episodes])


class WindowData(OfflineData):
    """Minibatches of windows, ``[K, S, B, T, ...]``, each from a row that is drawn uniformly.

    The arguments are those of ``OfflineData``, with B windows, and the windows' length T.
    """

    def __init__(self, *args: Any, length: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.length = length

    def draw(self, updates: int | None = None) -> Window:
        rows = self.streams.integers(len(self.table), (updates or self.piece, self.batch_size))
        return self.table.windows(rows.transpose(0, 1), self.length)


class ActingData(Source):
    """Base class of sources whose agent acts: between two blocks it takes environment steps, which are counted on the
    agent.

    Args:
        agent: acts, and learns from the blocks.
        collector: its environments.
        block_steps: steps per seed in a block.
        least: minimum number of steps in a piece, rounded up to whole blocks.

    Attributes:
        stride: a piece has a multiple of this many steps.
        replay: the replay buffer, if the steps are stored.
    """

    stride: int
    replay: Replay | None = None

    def __init__(self, agent: Agent, collector: Collector, block_steps: int, least: int):
        self.agent, self.collector, self.envs = agent, collector, len(collector.lanes)
        self.block_steps = block_steps
        self.piece = block_steps * -(-least // block_steps)
        agent.explore_in(collector.lanes)

    @abstractmethod
    def draw(self, steps: int | None = None) -> Batch:
        """The next block, from this many steps."""

    def collect(self, count: int, random: int = 0) -> Iterator[Transition]:
        """Takes ``count`` steps in every environment, the first ``random`` of them at random."""
        for transition in self.collector.rollout(self.agent, count, random):
            self.agent.steps += self.envs
            obs, next_obs = self.agent.kept(transition.obs), self.agent.kept(transition.next_obs)
            yield transition._replace(obs=obs, next_obs=next_obs)

    @property
    def steps(self) -> int:
        """Environment steps per seed so far."""
        return self.agent.steps

    def blocks(self, count: int) -> Iterator[Batch]:
        for first in range(0, count, self.block_steps):
            with self.whole():
                block = self.draw(min(self.block_steps, count - first))
            yield block

    @contextmanager
    def whole(self) -> Iterator[None]:
        """If an environment fails in a block, none of its steps count, because the agent learns nothing from them; a
        replay buffer keeps those it got, and every environment stays where its latest complete step left it."""
        before = self.agent.steps
        try:
            yield
        except ActingFailed:
            self.agent.steps = before
            raise

    def state_dict(self) -> dict[str, Any]:
        """The state of the environments; the content of a replay buffer is saved separately, because it is large."""
        return dict(interaction=self.collector.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        return self.collector.load_state_dict(state["interaction"])


class ReplayData(ActingData):
    """Minibatches of the agent's own experience: every block steps the environments, adds to the replay buffer and
    draws from it.

    Args:
        agent: acts, and learns from the blocks.
        collector: its environments.
        replay: the buffer they fill.
        batch_size: B.
        updates: K, updates per block; rounded up to whole steps of all environments.
        steps_per_update: environment steps per seed for every update: one in TD3 and SAC, four in DQN. A fraction 1/n
            makes n updates per step, each with its own batch.
        warm_up: random steps per seed before the first update.
        table: a dataset to draw from as well, for fine-tuning.
        old_share: fraction of a batch drawn from the dataset, from 0 to 1, given the steps so far; by default every row
            of both is equally likely.
        reward: training rewards, given the environment's rewards ``[S, E]`` and their sum in the episode so far; by
            default the environment's.
        reward_clip: clip rewards to this distance from 0 (Mnih et al., Nature 2015, methods).
        terminal_ends: whether truncated episodes count as terminated.
        hindsight: gives the transitions of the replay buffer other goals.

    Attributes:
        stride: see ``stride_of``.
    """

    replay: Replay

    def __init__(
        self,
        agent: Agent,
        collector: Collector,
        replay: Replay,
        batch_size: int,
        updates: int = 1,
        steps_per_update: int | Fraction = 1,
        warm_up: int = 1000,
        table: Table | None = None,
        old_share: Callable[[int], float] | None = None,
        reward: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
        reward_clip: float | None = None,
        terminal_ends: bool = False,
        hindsight: Hindsight | None = None,
    ):
        self.stride = stride_of(len(collector.lanes), steps_per_update)
        block_steps = math.ceil(updates * steps_per_update / self.stride) * self.stride
        super().__init__(agent, collector, block_steps, least=math.ceil(PIECE * steps_per_update))
        self.replay, self.table, self.old_share = replay, table, old_share
        self.reward, self.reward_clip, self.terminal_ends = reward, reward_clip, terminal_ends
        self.hindsight = hindsight
        self.batch_size, self.steps_per_update, self.warm_up = batch_size, Fraction(steps_per_update), warm_up

    def draw(self, steps: int | None = None) -> Batch:
        """The next block, ``[K, S, B, ...]``; during warm-up it has no updates."""
        return self.sample(self.act(steps or self.block_steps))

    def blocks(self, count: int) -> Iterator[Batch]:
        for first in range(0, count, self.block_steps):
            with self.whole():
                updates = self.act(min(self.block_steps, count - first))
            for done in range(0, max(updates, 1), AT_ONCE):
                yield self.sample(min(AT_ONCE, updates - done))

    def act(self, steps: int) -> int:
        """Takes this many steps per seed. Returns the number of updates to make of them."""
        for transition in self.collect(steps // self.envs, -(-(self.warm_up - self.steps) // self.envs)):
            if self.reward is not None:
                transition = transition._replace(reward=self.reward(transition.reward, self.collector.totals()))
            if (limit := self.reward_clip) is not None:
                transition = transition._replace(reward=transition.reward.clip(-limit, limit))
            if self.terminal_ends:
                transition = transition._replace(terminated=transition.last)
            self.replay.add(transition)
        ready = self.steps > self.warm_up and len(self.replay)  # a resumed run may lack its rows
        return int(steps / self.steps_per_update) if ready else 0

    def sample(self, updates: int) -> Batch:
        """K minibatches of the replay buffer, and of the table if there is one."""
        replay, streams, B = self.replay, self.replay.streams, self.batch_size
        if self.hindsight is not None:
            rows = streams.integers(replay.counts, (updates, B)).transpose(0, 1)
            return self.hindsight.transitions(replay, rows, streams)
        if self.table is None:
            return replay.sample(updates, B)
        old = len(self.table)
        if self.old_share is None:
            rows = streams.integers(old + self.replay.counts, (updates, B)).transpose(0, 1)
            is_old = rows < old  # [K, S, B]
            given = self.table.transitions(rows.clamp(max=old - 1))
            own = self.replay.transitions((rows - old).clamp(min=0))

            def either(old: Tensor, new: Tensor) -> Tensor:
                return torch.where(is_old.view(*is_old.shape, *[1] * (old.ndim - 3)), old, new)

            return tree_map(either, given, own)
        count = round(B * self.old_share(self.steps))
        given = self.table.transitions(streams.integers(old, (updates, count)).transpose(0, 1))
        own = self.replay.transitions(streams.integers(self.replay.counts, (updates, B - count)).transpose(0, 1))
        return tree_map(lambda *pair: torch.cat(pair, 2), given, own)

    def learned(self, priority: Tensor | None) -> None:
        if priority is not None:
            self.replay.prioritize(priority)
        elif self.replay.priorities is not None and len(self.replay.drawn):
            raise UserError(f"{type(self.agent).__name__} returns no priorities: leave out --train.prioritized")


def stride_of(envs: int, steps_per_update: int | Fraction) -> int:
    """The smallest number of steps per seed that makes whole updates and whole steps of its environments."""
    return math.lcm(envs, Fraction(steps_per_update).numerator)


class RolloutData(ActingData):
    """On-policy rollouts of the current policy, each learned from once and then discarded.

    Args:
        agent: acts, and learns from the rollouts.
        collector: its environments.
        batch_size: steps per seed in a rollout, over all its environments.

    Raises:
        UserError: the steps cannot be divided evenly among the environments.
    """

    PIECE = 256
    """Minimum number of steps per seed in a piece."""

    def __init__(self, agent: Agent, collector: Collector, batch_size: int):
        super().__init__(agent, collector, batch_size, least=self.PIECE)
        self.stride = batch_size
        if batch_size % self.envs:
            raise UserError(f"batch must be a multiple of envs, which is {self.envs}, not {batch_size}")

    def draw(self, steps: int | None = None) -> Batch:
        """The next rollout, ``[1, S, E, T, ...]``."""
        rollout = list(self.collect((steps or self.stride) // self.envs))
        obs, action, reward, terminated, next_obs, last = tree_map(self._stacked, *rollout)
        gamma = per_seed(self.agent.gamma, terminated[0])
        return Batch(obs, action, reward, gamma * (1 - terminated), next_obs, last)

    def _stacked(self, *steps: np.ndarray) -> Tensor:
        """One column of a rollout, ``[1, S, E, T, ...]``: numbers become float32, and images stay as they are."""
        column = np.stack(steps, 2)
        column = column if column.dtype == np.uint8 else column.astype(np.float32)
        return torch.from_numpy(column).unsqueeze(0).to(self.agent.device)
