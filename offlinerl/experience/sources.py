"""What yields blocks of K updates to an agent."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offlinerl.agents.base import Agent
from offlinerl.experience.ring import Replay
from offlinerl.learning.rng import Streams
from offlinerl.rollout.collector import Interaction
from offlinerl.types import Batch, Spec, Transition, WeightedBatch
from offlinerl.util.errors import UserError

ACTION_MARGIN = 1e-5
"""Actions are clipped this far inside their bounds, as in the reference IQL and XQL."""

PIECE = 16
"""Updates from a replay to a piece."""


class Source(ABC):
    """Blocks of K updates for an agent.

    Attributes:
        piece: updates or steps to one of Lightning's batches, whose hooks cost as much as a small update.
    """

    piece: int

    @abstractmethod
    def blocks(self, count: int) -> Iterator[Batch | WeightedBatch]:
        """The next blocks, of so many updates or steps together, each made when it is asked for."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Go on from a saved state; whether everything came back to where it stood."""

    def learned(self, priority: Tensor | None) -> None:  # noqa: B027  most sources draw uniformly
        """Told of the priorities ``[K, S, B]`` that the learner gives the rows of the latest block, if it does."""

    def epoch(self, count: int) -> Epoch:
        """The next updates or steps, so many, for Lightning to train on."""
        return Epoch(self, count)


class Epoch:
    """So many updates or steps of a source, in pieces; the last one may be shorter than the others."""

    def __init__(self, source: Source, count: int):
        self.source, self.count = source, count

    def __len__(self) -> int:
        return -(-self.count // self.source.piece)

    def __iter__(self) -> Iterator[Piece]:
        for first in range(0, self.count, self.source.piece):
            yield Piece(self.source, min(self.source.piece, self.count - first))


class Piece:
    """Blocks that come one after another, each when the one before it has been learnt from.

    Attributes:
        learned: to be told what the learner makes of each; see ``Source.learned``.
    """

    def __init__(self, source: Source, count: int):
        self.blocks, self.learned = source.blocks(count), source.learned

    def __iter__(self) -> Iterator[Batch | WeightedBatch]:
        return self.blocks


class OfflineData(Source):
    """Uniform minibatches of a fixed table that lies on the training device, packed so that a block is one
    gather.

    Args:
        table: transitions ``[rows, ...]`` in numpy, actions in the environment's units.
        spec: shapes and bounds they must have.
        seeds: S integers; each draws its own rows.
        batch_size: B.
        updates: K, updates a block.
        device: where the table lies.

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
        self.batch_size, self.piece = batch_size, updates
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
        K, B = updates or self.piece, self.batch_size
        rows = self.streams.integers(len(self.packed), (K, B)).transpose(0, 1)  # [K, S, B]
        return self.transitions(rows)

    def transitions(self, rows: Tensor) -> Batch:
        """The rows of those numbers, ``[K, S, B]`` or ``[K, S, B, T]``."""
        packed = self.packed.index_select(0, rows.reshape(-1)).view(*rows.shape, self.packed.shape[-1])
        obs, action, reward, discount, next_obs, last = packed.split(self.widths, -1)
        return Batch(obs, action, reward.squeeze(-1), discount.squeeze(-1), next_obs, last.squeeze(-1))

    def blocks(self, count: int) -> Iterator[Batch]:
        for first in range(0, count, self.piece):
            yield self.draw(min(self.piece, count - first))

    def state_dict(self) -> dict[str, Any]:
        return self.streams.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        self.streams.load_state_dict(state)
        return True


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
        episodes = self.streams.integers(len(self.rows), (updates or self.piece, self.batch_size))
        return self.transitions(self.rows[episodes].transpose(0, 1))


class ActingData(Source):
    """What the sources share whose agent acts: between two blocks it takes steps, which are counted here, on the agent.

    Args:
        agent: acts, and learns from the blocks.
        interaction: its environments.
        block_steps: steps of a seed to a block.
        least: to a piece, rounded up to whole blocks.

    Attributes:
        stride: the fewest steps that a piece may have; it has a whole multiple of them.
        replay: what keeps the steps, if they are kept.
    """

    stride: int
    replay: Replay | None = None

    def __init__(self, agent: Agent, interaction: Interaction, block_steps: int, least: int):
        self.agent, self.interaction, self.envs = agent, interaction, len(interaction.lanes)
        self.block_steps = block_steps
        self.piece = block_steps * -(-least // block_steps)
        agent.explore_in(interaction.lanes)

    @abstractmethod
    def draw(self, steps: int | None = None) -> Batch | WeightedBatch:
        """The next block, of so many steps."""

    def collect(self, count: int, random: int = 0) -> Iterator[Transition]:
        """Take ``count`` steps in every environment, the first ``random`` of them at random."""
        for transition in self.interaction.rollout(self.agent, count, random):
            self.agent.steps += self.envs
            yield transition

    @property
    def steps(self) -> int:
        """Environment steps of every seed so far."""
        return self.agent.steps

    def blocks(self, count: int) -> Iterator[Batch | WeightedBatch]:
        for first in range(0, count, self.block_steps):
            yield self.draw(min(self.block_steps, count - first))

    def state_dict(self) -> dict[str, Any]:
        """Where the environments stand; what a replay holds is kept apart, for it is large."""
        return dict(interaction=self.interaction.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        return self.interaction.load_state_dict(state["interaction"])


class ReplayData(ActingData):
    """Minibatches of the agent's own experience: every block steps the environments, adds to the replay and draws from
    it.

    Args:
        agent: acts, and learns from the blocks.
        interaction: its environments.
        replay: the ring they fill.
        batch_size: B.
        updates: K, updates a block; rounded up to whole steps of all environments.
        steps_per_update: environment steps of a seed for every update. One is what TD3 and SAC do, four DQN.
        warm_up: steps of a seed, taken at random, before the first update.
        table: a dataset to draw from too: fine-tuning.
        old_share: how much of a batch is the dataset's, from 0 to 1, given the steps so far; by default every row of
            both is equally likely.
        reward: what to learn from, given what was paid ``[S, E]`` and the sum paid in the episode so far; the
            rewards themselves by default.

    Attributes:
        stride: the fewest steps of a seed that make whole updates of whole steps of its environments.
    """

    replay: Replay

    def __init__(
        self,
        agent: Agent,
        interaction: Interaction,
        replay: Replay,
        batch_size: int,
        updates: int = 1,
        steps_per_update: int = 1,
        warm_up: int = 1000,
        table: OfflineData | None = None,
        old_share: Callable[[int], float] | None = None,
        reward: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ):
        self.stride = math.lcm(len(interaction.lanes), steps_per_update)
        block_steps = -(-updates * steps_per_update // self.stride) * self.stride
        super().__init__(agent, interaction, block_steps, least=PIECE * steps_per_update)
        self.replay, self.table, self.old_share, self.reward = replay, table, old_share, reward
        self.batch_size, self.steps_per_update, self.warm_up = batch_size, steps_per_update, warm_up

    def draw(self, steps: int | None = None) -> Batch | WeightedBatch:
        """The next block, ``[K, S, B, ...]``; while warming up, one of no updates at all."""
        steps = steps or self.block_steps
        for transition in self.collect(steps // self.envs, -(-(self.warm_up - self.steps) // self.envs)):
            if self.reward is not None:
                transition = transition._replace(reward=self.reward(transition.reward, self.interaction.paid()))
            self.replay.add(transition)
        return self.sample(steps // self.steps_per_update * (self.steps > self.warm_up))

    def sample(self, updates: int) -> Batch | WeightedBatch:
        """K minibatches of the replay, and of the table if there is one."""
        if self.table is None:
            return self.replay.sample(updates, self.batch_size)
        streams, old, B = self.replay.streams, len(self.table.packed), self.batch_size
        if self.old_share is None:
            rows = streams.integers(old + len(self.replay), (updates, B)).transpose(0, 1)
            is_old = rows < old  # [K, S, B]
            given = self.table.transitions(rows.clamp(max=old - 1))
            own = self.replay.transitions((rows - old).clamp(min=0))
            pairs = zip(given, own, strict=True)
            return Batch(*(torch.where(is_old if x.ndim == 3 else is_old.unsqueeze(-1), x, y) for x, y in pairs))
        count = round(B * self.old_share(self.steps))
        given = self.table.transitions(streams.integers(old, (updates, count)).transpose(0, 1))
        own = self.replay.transitions(streams.integers(len(self.replay), (updates, B - count)).transpose(0, 1))
        return Batch(*(torch.cat(pair, 2) for pair in zip(given, own, strict=True)))

    def learned(self, priority: Tensor | None) -> None:
        if priority is not None:
            self.replay.prioritize(priority)


class RolloutData(ActingData):
    """Rollouts of the policy as it is, each learnt from once and forgotten.

    Args:
        agent: acts, and learns from the rollouts.
        interaction: its environments.
        batch_size: steps of a seed in a rollout, those of all its environments together.

    Raises:
        UserError: the environments cannot share the steps evenly.
    """

    PIECE = 256
    """Steps of a seed, at least, to a piece."""

    def __init__(self, agent: Agent, interaction: Interaction, batch_size: int):
        super().__init__(agent, interaction, batch_size, least=self.PIECE)
        self.stride = batch_size
        if batch_size % self.envs:
            raise UserError(f"batch must be a multiple of envs, which is {self.envs}, and not {batch_size}")

    def draw(self, steps: int | None = None) -> Batch:
        """The next rollout, ``[1, S, E, T, ...]``."""
        rollout = list(self.collect((steps or self.stride) // self.envs))
        obs, action, reward, terminated, next_obs, last = (
            torch.from_numpy(np.stack(column, 2, dtype=np.float32)).unsqueeze(0).to(self.agent.device)
            for column in zip(*rollout, strict=True)
        )
        return Batch(obs, action, reward, self.agent.gamma * (1 - terminated), next_obs, last)


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
