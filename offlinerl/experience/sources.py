"""What yields blocks of K updates to an agent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offlinerl.agents.base import Agent
from offlinerl.experience.ring import Replay
from offlinerl.experience.table import Table
from offlinerl.learning.rng import Streams
from offlinerl.rollout.collector import Collector
from offlinerl.types import Batch
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_map

STRETCH = 16
"""Updates from a replay to a batch of Lightning's, whose hooks cost as much as a small update."""


class OfflineData:
    """Uniform minibatches of a fixed table.

    Args:
        table: transitions.
        seeds: S integers; each draws its own rows.
        batch_size: B.
        updates: K, updates a block.

    Attributes:
        updates_ahead: updates an epoch; its last block may be shorter than the others.
    """

    def __init__(self, table: Table, seeds: Sequence[int], batch_size: int, updates: int = 50):
        self.table, self.batch_size, self.updates, self.updates_ahead = table, batch_size, updates, updates
        self.streams = Streams(seeds, "rows", table.numbers.device)

    def draw(self, updates: int | None = None) -> Batch:
        """The next block, ``[K, S, B, ...]``."""
        rows = self.streams.integers(len(self.table), (updates or self.updates, self.batch_size))  # [S, K, B]
        return self.table.transitions(rows.transpose(0, 1))

    def __len__(self) -> int:
        return -(-self.updates_ahead // self.updates)

    def __iter__(self) -> Iterator[Batch]:
        ahead = self.updates_ahead
        while ahead > 0:
            block = min(self.updates, ahead)
            yield self.draw(block)
            ahead -= block

    def state_dict(self) -> dict:
        return self.streams.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.streams.load_state_dict(state)


class EpisodeData(OfflineData):
    """Minibatches of whole episodes, ``[K, S, B, T, ...]``; T is the longest one's length, and shorter ones repeat
    their last row, in which ``last`` is 1.

    The arguments are those of ``OfflineData``, with B episodes.
    """

    def __init__(self, table: Table, *args: Any, **kwargs: Any):
        super().__init__(table, *args, **kwargs)
        steps = np.minimum(np.arange(table.lengths.max()), table.lengths[:, None] - 1)
        self.rows = torch.from_numpy(table.starts[:, None] + steps).to(table.numbers.device)  # [episodes, T]

    def draw(self, updates: int | None = None) -> Batch:
        episodes = self.streams.integers(len(self.rows), (updates or self.updates, self.batch_size))
        return self.table.transitions(self.rows[episodes].transpose(0, 1))


class ActingData:
    """What the sources share whose agent acts: blocks are lived through one after another, each when the one before
    it has been learnt from.

    Args:
        agent: acts, and learns from the blocks.
        collector: its environments.
        block_steps: steps of a seed to a block.
        least: to a batch of Lightning's, rounded up to whole blocks.

    Attributes:
        steps_ahead: steps an epoch; its last stretch and block may be shorter than the others.
    """

    def __init__(self, agent: Agent, collector: Collector, block_steps: int, least: int):
        self.agent, self.collector, self.envs = agent, collector, len(collector.lanes)
        self.block_steps = block_steps
        self.stretch_steps = block_steps * -(-least // block_steps)
        self.steps_ahead = self.stretch_steps
        agent.explore_in(collector.lanes)

    def draw(self, steps: int | None = None) -> Batch:
        """The next block, of so many steps."""
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """Environment steps of every seed so far."""
        return self.agent.steps

    def __len__(self) -> int:
        return -(-self.steps_ahead // self.stretch_steps)

    def __iter__(self) -> Iterator[Iterator[Batch]]:
        """Stretches of blocks."""
        for first in range(0, self.steps_ahead, self.stretch_steps):
            yield self.stretch(min(self.stretch_steps, self.steps_ahead - first))

    def stretch(self, steps: int) -> Iterator[Batch]:
        """Blocks of so many steps together."""
        for first in range(0, steps, self.block_steps):
            yield self.draw(min(self.block_steps, steps - first))

    def state_dict(self) -> dict[str, Any]:
        """Where the environments stand; what a replay holds is kept apart, for it is large."""
        return dict(interaction=self.collector.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Go on from a saved state; whether the environments came back to where they stood."""
        return self.collector.load_state_dict(state["interaction"])


class ReplayData(ActingData):
    """Minibatches of what the agent has just lived through: every block steps the environments, adds to the
    replay and draws from it.

    Args:
        agent: acts, and learns from the blocks.
        collector: its environments.
        replay: the ring they fill.
        batch_size: B.
        updates: K, updates a block; rounded up to whole steps of all environments.
        steps_per_update: environment steps of a seed for every update. One is what TD3 and SAC do, four DQN.
        warm_up: steps of a seed, taken at random, before the first update.
        table: a dataset to draw from too, every row of it as often as one of the replay's: fine-tuning.
        reward: what to learn from, given the rewards ``[S, E]`` and their sum in the episode so far; the
            rewards themselves by default.

    Attributes:
        stride: the fewest steps of a seed that make whole updates of whole steps of its environments; all others
            are multiples of it.
    """

    def __init__(
        self,
        agent: Agent,
        collector: Collector,
        replay: Replay,
        batch_size: int,
        updates: int = 1,
        steps_per_update: int = 1,
        warm_up: int = 1000,
        table: Table | None = None,
        reward: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ):
        self.stride = math.lcm(len(collector.lanes), steps_per_update)
        block_steps = -(-updates * steps_per_update // self.stride) * self.stride
        super().__init__(agent, collector, block_steps, least=STRETCH * steps_per_update)
        self.replay, self.table, self.reward = replay, table, reward
        self.batch_size, self.steps_per_update, self.warm_up = batch_size, steps_per_update, warm_up

    def draw(self, steps: int | None = None) -> Batch:
        """The next block, ``[K, S, B, ...]``; while warming up, one of no updates at all."""
        if self.agent.priorities is not None:
            self.replay.prioritize(self.agent.priorities)
        steps = steps or self.block_steps
        count, random = steps // self.envs, -(-(self.warm_up - self.steps) // self.envs)
        for transition in self.collector.rollout(self.agent, count, random):
            if self.reward is not None:
                transition = transition._replace(reward=self.reward(transition.reward, self.collector.totals()))
            self.replay.add(transition)
        return self.sample(steps // self.steps_per_update * (self.steps > self.warm_up))

    def sample(self, updates: int) -> Batch:
        """K minibatches of the replay, and of the table if there is one."""
        if self.table is None:
            return self.replay.sample(updates, self.batch_size)
        old = len(self.table)
        rows = self.replay.streams.integers(old + len(self.replay), (updates, self.batch_size)).transpose(0, 1)
        lived = self.replay.transitions((rows - old).clamp(min=0))
        given = self.table.transitions(rows.clamp(max=old - 1))
        is_old = rows < old  # [K, S, B]

        def either(given: Tensor, lived: Tensor) -> Tensor:
            return torch.where(is_old.view(*is_old.shape, *[1] * (given.ndim - 3)), given, lived)

        return tree_map(either, given, lived)


class RolloutData(ActingData):
    """Rollouts of the policy as it is, each learnt from once and forgotten.

    Args:
        agent: acts, and learns from the rollouts.
        collector: its environments.
        batch_size: steps of a seed in a rollout, those of all its environments together.

    Attributes:
        stride: steps of a rollout; an epoch has whole ones.

    Raises:
        UserError: the environments cannot share the steps evenly.
    """

    STRETCH = 256
    """Steps of a seed, at least, to a batch of Lightning's."""

    def __init__(self, agent: Agent, collector: Collector, batch_size: int):
        super().__init__(agent, collector, batch_size, least=self.STRETCH)
        self.stride = batch_size
        if batch_size % self.envs:
            raise UserError(f"batch must be a multiple of envs, which is {self.envs}, and not {batch_size}")

    def draw(self, steps: int | None = None) -> Batch:
        """The next rollout, ``[1, S, E, T, ...]``."""
        rollout = list(self.collector.rollout(self.agent, (steps or self.stride) // self.envs))
        obs, action, reward, terminated, next_obs, last = tree_map(self._stacked, *rollout)
        return Batch(obs, action, reward, self.agent.gamma * (1 - terminated), next_obs, last)

    def _stacked(self, *steps: np.ndarray) -> Tensor:
        """One column of a rollout, ``[1, S, E, T, ...]``; numbers are float32, but images stay as they are."""
        column = np.stack(steps, 2)
        column = column if column.dtype == np.uint8 else column.astype(np.float32)
        return torch.from_numpy(column).unsqueeze(0).to(self.agent.device)


class FineTuningData:
    """Blocks of a dataset until the agent has taken so many updates, and then of what it lives through besides.

    Args:
        offline: the dataset.
        online: the environments; its replay draws from the dataset too.
        switch: updates after which they begin to be stepped.

    Attributes:
        updates_ahead: updates an epoch, which may not cross the switch.
    """

    def __init__(self, offline: OfflineData, online: ReplayData, switch: int):
        self.offline, self.online, self.switch = offline, online, switch
        self.updates_ahead = offline.updates

    def _part(self) -> OfflineData | ReplayData:
        if self.online.agent.updates < self.switch:
            self.offline.updates_ahead = self.updates_ahead
            return self.offline
        self.online.steps_ahead = self.updates_ahead * self.online.steps_per_update
        return self.online

    def __len__(self) -> int:
        return len(self._part())

    def __iter__(self) -> Iterator[Batch | Iterator[Batch]]:
        return iter(self._part())

    def state_dict(self) -> dict[str, Any]:
        return dict(offline=self.offline.state_dict(), online=self.online.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        self.offline.load_state_dict(state["offline"])
        return self.online.load_state_dict(state["online"])
