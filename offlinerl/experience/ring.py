"""The replay buffer: a ring of transitions on the training device, one for every seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from offlinerl.agents.base import Agent
from offlinerl.learning.rng import Streams
from offlinerl.types import Batch, Spec, WeightedBatch


class Transition(NamedTuple):
    """One step of every environment, in numpy. ``next_obs`` is the true successor, also where an episode ends."""

    obs: np.ndarray  # [S, E, O]
    action: np.ndarray  # [S, E, A]  in units of [-1, 1]; a discrete one is its number
    reward: np.ndarray  # [S, E]
    terminated: np.ndarray  # [S, E] bool
    next_obs: np.ndarray  # [S, E, O]
    last: np.ndarray  # [S, E] bool, terminated or truncated


class Replay:
    """The newest ``capacity`` transitions of every seed (Lin, 1992), packed so that a minibatch is one gather.

    Row ``(t, e)`` holds the step that environment e took at place t of the ring, so an episode lies along t and an
    n-step sum walks along it, as far as the episode's end or the newest row.

    Args:
        spec: shapes of the task.
        seeds: S integers; each has its own ring and draws its own rows.
        capacity: transitions of a seed, rounded down to whole steps of its environments.
        envs: E, environments of a seed.
        gamma: discount of one step.
        n_step: rewards summed, at most.
        priorities: draw by priority: the exponents alpha of the priority and beta of the importance weights.
        device: where the ring lies.

    Attributes:
        added: steps put in so far, of every environment; the newest lies at place ``(added - 1) % places``.
        drawn: the rows of the latest minibatches drawn by priority, ``[K, S, B]``.
    """

    def __init__(
        self,
        spec: Spec,
        seeds: Sequence[int],
        capacity: int,
        envs: int = 1,
        gamma: float = 0.99,
        n_step: int = 1,
        priorities: tuple[float, float] | None = None,
        device: torch.device | str = "cpu",
    ):
        S, O, A = len(seeds), spec.obs_dim, spec.action_dim
        self.envs, self.places, self.gamma, self.n_step = envs, max(1, capacity // envs), gamma, n_step
        self.widths = [O, A, 1, 1, O, 1]  # the fields of Transition
        self.packed = torch.zeros(S, self.places, envs, sum(self.widths), device=device)
        self.staged = np.zeros((S, envs, sum(self.widths)), np.float32)
        self.columns = np.split(self.staged, np.cumsum(self.widths)[:-1], -1)  # views
        self.added = 0
        self.streams = Streams(seeds, "rows", device)
        self.offsets = torch.arange(S, device=device).view(1, S, 1) * (self.places * envs)
        self.priorities = Priorities(S, self.places * envs, *priorities, device) if priorities else None

    @classmethod
    def of(cls, agent: Agent, train: Mapping[str, Any], capacity: int) -> Replay:
        """The replay that an agent's training settings ask for, but for its size."""
        priorities = (train["priority_alpha"], train["priority_beta"]) if train.get("prioritized") else None
        spec, seeds, gamma, n_step = agent.spec, agent.seeds, agent.gamma, agent.n_step
        return cls(spec, seeds, capacity, train["envs"], gamma, n_step, priorities, agent.device)

    def __len__(self) -> int:
        """Transitions of a seed that can be drawn."""
        return min(self.added, self.places) * self.envs

    def add(self, step: Transition) -> None:
        """Put in one step of every environment, over the oldest one if the ring is full."""
        for column, field in zip(self.columns, step, strict=True):
            column[...] = field.reshape(column.shape)
        place = self.added % self.places
        self.packed[:, place].copy_(torch.from_numpy(self.staged))
        if self.priorities is not None:
            self.priorities.add(torch.arange(place * self.envs, (place + 1) * self.envs))
        self.added += 1

    def sample(self, updates: int, batch_size: int) -> Batch | WeightedBatch:
        """K minibatches, ``[K, S, B, ...]``: uniform, or by priority where the ring was made so."""
        shape = (updates, batch_size)
        if self.priorities is None:
            rows = self.streams.integers(len(self), shape).transpose(0, 1)  # [K, S, B]
            return self.transitions(rows)
        self.drawn, weight = self.priorities.sample(self.streams, len(self), shape)
        return WeightedBatch(*self.transitions(self.drawn), weight)

    def prioritize(self, priority: Tensor) -> None:
        """Give the rows drawn last their priorities, ``[K, S, B]``, such as absolute errors."""
        self.priorities.update(self.drawn, priority)

    def transitions(self, rows: Tensor) -> Batch:
        """What begins in some rows ``[K, S, B]``, counted along places and environments."""
        flat = self.packed.flatten(0, 2)  # [S * places * E, W]
        rows = rows + self.offsets
        obs, action, reward, terminated, next_obs, last = self._gather(flat, rows)
        total, discount = reward, self.gamma * (1 - terminated)
        if self.n_step > 1:
            newest = (self.added - 1) % self.places
            end, tail = last, rows
            for _ in range(self.n_step - 1):
                place = tail // self.envs % self.places
                going = (end == 0) & (place != newest)
                tail = torch.where(going, self._successor(tail, place), tail)
                _, _, reward, terminated, _, end = self._gather(flat, tail)
                total = torch.where(going, total + discount * reward, total)
                discount = torch.where(going, discount * self.gamma * (1 - terminated), discount)
            next_obs, last = flat[tail][..., -1 - next_obs.shape[-1] : -1], end
        return Batch(obs, action, total, discount, next_obs, last)

    def _successor(self, rows: Tensor, place: Tensor) -> Tensor:
        """The rows one step later in the same environment."""
        return torch.where(place == self.places - 1, rows - (self.places - 1) * self.envs, rows + self.envs)

    def _gather(self, flat: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        packed = flat.index_select(0, rows.reshape(-1)).view(*rows.shape, flat.shape[-1])
        obs, action, reward, terminated, next_obs, last = packed.split(self.widths, -1)
        return obs, action, reward.squeeze(-1), terminated.squeeze(-1), next_obs, last.squeeze(-1)

    def state_dict(self) -> dict[str, Any]:
        """The rows in use and what else it takes to go on."""
        return dict(
            packed=self.packed[:, : min(self.added, self.places)].clone(), added=self.added,
            streams=self.streams.state_dict(), priorities=self.priorities and self.priorities.state_dict(),
        )  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.packed[:, : state["packed"].shape[1]] = state["packed"].to(self.packed.device)
        self.added = state["added"]
        self.streams.load_state_dict(state["streams"])
        if self.priorities is not None:
            self.priorities.load_state_dict(state["priorities"])


class Priorities:
    """Proportional prioritised sampling, by a sum tree of every seed.

    Schaul et al., Prioritized Experience Replay, ICLR 2016, section 3.3 and algorithm 1: row i is drawn with
    probability ``p_i^alpha / sum p^alpha`` and weighs ``(N P(i))^-beta``, divided by the largest weight of the
    minibatch. A new row has the largest priority given so far.

    Args:
        seeds: S.
        rows: of each seed.
        alpha: 0 draws uniformly, 1 in proportion.
        beta: 1 makes up for it wholly.
        floor: added to a priority, so that no row is never drawn again.
    """

    def __init__(
        self, seeds: int, rows: int, alpha: float, beta: float, device: torch.device | str = "cpu", floor: float = 1e-6
    ):
        self.alpha, self.beta, self.floor = alpha, beta, floor
        self.depth = (rows - 1).bit_length()
        self.leaves = 1 << self.depth
        # Node i has the children 2i and 2i + 1; the root is 1. Float64, for the sums are updated in place.
        self.tree = torch.zeros(seeds, 2 * self.leaves, dtype=torch.float64, device=device)
        self.largest = torch.ones(seeds, 1, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Give new rows ``[n]`` of every seed the largest priority."""
        rows = rows.to(self.tree.device).expand(len(self.tree), -1)
        self._set(rows, self.largest.expand(rows.shape))

    def update(self, rows: Tensor, priority: Tensor) -> None:
        """Give rows ``[K, S, B]`` priorities ``[K, S, B]``; of a row that comes twice one of them counts. A priority
        that is not finite leaves its row as it was."""
        rows, priority = (x.transpose(0, 1).flatten(1) for x in (rows, priority))  # [S, K * B]
        old = self.tree.gather(1, self.leaves + rows)
        value = ((priority.double() + self.floor) ** self.alpha).nan_to_num(-1, -1, -1)
        value = torch.where(value >= 0, value, old)
        self.largest = torch.maximum(self.largest, value.amax(1, keepdim=True))
        self._set(rows, value)

    def _set(self, rows: Tensor, value: Tensor) -> None:
        node = self.leaves + rows
        self.tree.scatter_(1, node, value)
        for _ in range(self.depth):
            node = node // 2
            self.tree.scatter_(1, node, self.tree.gather(1, 2 * node) + self.tree.gather(1, 2 * node + 1))

    def sample(self, streams: Streams, size: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Rows ``[K, S, B]`` of the first ``size`` and their importance weights ``[K, S, B]``."""
        K, B = shape
        total = self.tree[:, 1:2]
        left = streams.uniform(0, 1, (K * B,)).double() * total  # [S, K * B]
        node = torch.ones_like(left, dtype=torch.int64)
        for _ in range(self.depth):
            node = 2 * node
            below = self.tree.gather(1, node)
            # Rounding may lead past the last row in use; its sum is zero, and the other child is taken.
            right = (left >= below) & (self.tree.gather(1, node + 1) > 0)
            left = torch.where(right, left - below, left)
            node = node + right
        probability = self.tree.gather(1, node) / total
        weight = (size * probability).clamp(min=1e-12) ** -self.beta
        rows, weight = (x.unflatten(1, (K, B)).transpose(0, 1) for x in (node - self.leaves, weight))
        return rows, (weight / weight.amax(-1, keepdim=True)).float()

    def state_dict(self) -> dict[str, Any]:
        return dict(values=self.tree[:, self.leaves :].clone(), largest=self.largest.clone())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue; the ring of a run that is to be longer than it was may have more rows than the saved one."""
        rows = torch.arange(min(self.leaves, state["values"].shape[1]), device=self.tree.device)
        self.tree.zero_()
        self._set(rows.expand(len(self.tree), -1), state["values"].to(self.tree)[:, : len(rows)])
        self.largest.copy_(state["largest"])
