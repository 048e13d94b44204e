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
from offlinerl.learning.rng import Streams
from offlinerl.rollout.collector import Collector
from offlinerl.types import Batch, Spec, WeightedBatch
from offlinerl.util.errors import UserError

ACTION_MARGIN = 1e-5
"""Actions are clipped this far inside their bounds, as in the reference IQL and XQL."""

STRETCH = 16
"""Updates from a replay to a batch of Lightning's, whose hooks cost as much as a small update."""


class OfflineData:
    """Uniform minibatches of a fixed table that lies on the training device, packed so that a block is one
    gather.

    Args:
        table: transitions ``[rows, ...]`` in numpy, actions in the environment's units.
        spec: shapes and bounds they must have.
        seeds: S integers; each draws its own rows.
        batch_size: B.
        updates: K, updates a block.
        device: where the table lies.

    Attributes:
        updates_ahead: updates an epoch; its last block may be shorter than the others.

    Raises:
        UserError: the table's shapes are not those of ``spec``.
    """

    def __init__(
        self,
        table: Batch,
        spec: Spec,
        seeds: Sequence[int],
        batch_size: int,
        updates: int = 50,
        device: torch.device | str = "cpu",
    ):
        check_shapes(table, spec)
        self.batch_size, self.updates, self.updates_ahead = batch_size, updates, updates
        self.streams = Streams(seeds, "rows", device)
        action = table.action if spec.num_actions else in_unit(table.action, spec)
        columns = [table.obs, action, table.reward, table.discount, table.next_obs, table.last]
        widths = [1 if column.ndim == 1 else column.shape[1] for column in columns]
        packed = torch.empty(len(table.reward), sum(widths))  # [rows, O + A + 1 + 1 + O + 1]
        for part, column in zip(packed.split(widths, -1), columns, strict=True):
            part.copy_(torch.from_numpy(np.ascontiguousarray(column)).reshape(len(packed), -1))
        self.widths, self.packed = widths, packed.to(device)

    def draw(self, updates: int | None = None) -> Batch:
        """The next block, ``[K, S, B, ...]``."""
        K, B = updates or self.updates, self.batch_size
        rows = self.streams.integers(len(self.packed), (K, B)).transpose(0, 1)  # [K, S, B]
        return self.transitions(rows)

    def transitions(self, rows: Tensor) -> Batch:
        """The rows of those numbers, ``[K, S, B]`` or ``[K, S, B, T]``."""
        packed = self.packed.index_select(0, rows.reshape(-1)).view(*rows.shape, self.packed.shape[-1])
        obs, action, reward, discount, next_obs, last = packed.split(self.widths, -1)
        return Batch(obs, action, reward.squeeze(-1), discount.squeeze(-1), next_obs, last.squeeze(-1))

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

    def __init__(self, table: Batch, *args: Any, **kwargs: Any):
        super().__init__(table, *args, **kwargs)
        ends = np.flatnonzero(table.last)
        starts = np.r_[0, ends[:-1] + 1]
        rows = starts[:, None] + np.arange((ends - starts).max() + 1)
        self.rows = torch.from_numpy(np.minimum(rows, ends[:, None])).to(self.packed.device)  # [episodes, T]

    def draw(self, updates: int | None = None) -> Batch:
        episodes = self.streams.integers(len(self.rows), (updates or self.updates, self.batch_size))
        return self.transitions(self.rows[episodes].transpose(0, 1))


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

    def draw(self, steps: int | None = None) -> Batch | WeightedBatch:
        """The next block, of so many steps."""
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """Environment steps of every seed so far."""
        return self.agent.steps

    def __len__(self) -> int:
        return -(-self.steps_ahead // self.stretch_steps)

    def __iter__(self) -> Iterator[Iterator[Batch | WeightedBatch]]:
        """Stretches of blocks."""
        for first in range(0, self.steps_ahead, self.stretch_steps):
            yield self.stretch(min(self.stretch_steps, self.steps_ahead - first))

    def stretch(self, steps: int) -> Iterator[Batch | WeightedBatch]:
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
        table: OfflineData | None = None,
        reward: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ):
        self.stride = math.lcm(len(collector.lanes), steps_per_update)
        block_steps = -(-updates * steps_per_update // self.stride) * self.stride
        super().__init__(agent, collector, block_steps, least=STRETCH * steps_per_update)
        self.replay, self.table, self.reward = replay, table, reward
        self.batch_size, self.steps_per_update, self.warm_up = batch_size, steps_per_update, warm_up

    def draw(self, steps: int | None = None) -> Batch | WeightedBatch:
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

    def sample(self, updates: int) -> Batch | WeightedBatch:
        """K minibatches of the replay, and of the table if there is one."""
        if self.table is None:
            return self.replay.sample(updates, self.batch_size)
        old = len(self.table.packed)
        rows = self.replay.streams.integers(old + len(self.replay), (updates, self.batch_size)).transpose(0, 1)
        lived = self.replay.transitions((rows - old).clamp(min=0))
        given = self.table.transitions(rows.clamp(max=old - 1))
        is_old = rows < old  # [K, S, B]
        return Batch(
            *(torch.where(is_old if x.ndim == 3 else is_old.unsqueeze(-1), x, y)
              for x, y in zip(given, lived, strict=True))
        )  # fmt: skip


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
        obs, action, reward, terminated, next_obs, last = (
            torch.from_numpy(np.stack(column, 2, dtype=np.float32)).unsqueeze(0).to(self.agent.device)
            for column in zip(*rollout, strict=True)
        )
        return Batch(obs, action, reward, self.agent.gamma * (1 - terminated), next_obs, last)


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


def in_unit(action: np.ndarray, spec: Spec) -> np.ndarray:
    """Actions of the environment in units of [-1, 1], clipped a little inside."""
    return np.clip(spec.in_unit(action), -1 + ACTION_MARGIN, 1 - ACTION_MARGIN)


def entries_outside(action: np.ndarray, spec: Spec) -> int:
    """How many entries of continuous actions ``[rows, A]`` lie outside the bounds, beyond what rounding does."""
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    slack = ACTION_MARGIN * np.maximum(high - low, np.maximum(abs(low), abs(high)))
    return int(((action < low - slack) | (action > high + slack)).sum())


def check_shapes(table: Batch, spec: Spec) -> None:
    """Raises a UserError if rows do not have the task's shapes, or hold a discrete action that it does not have."""
    for name, have, want in (
        ("observations", table.obs.shape[1:], (spec.obs_dim,)),
        ("actions", table.action.shape[1:], (spec.action_dim,)),
    ):
        if tuple(have) != want:
            raise UserError(
                f"the dataset's {name} have shape {tuple(have)} and the environment's {want}; name the"
                " environment the data was collected in with --env"
            )
    if spec.num_actions:
        wrong = np.flatnonzero((table.action != np.floor(table.action)) | (table.action < 0)
                               | (table.action >= spec.num_actions))  # fmt: skip
        if len(wrong):
            raise UserError(
                f"the action in row {wrong[0]} of the dataset is {table.action[wrong[0], 0]:g}, and the environment"
                f" has those from 0 to {spec.num_actions - 1}; repair or remove it"
            )
