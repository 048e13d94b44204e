"""The replay buffer: a ring of transitions on the training device, one for every seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offlinerl.agents.base import Agent
from offlinerl.experience.priorities import Priorities
from offlinerl.learning.rng import Streams
from offlinerl.types import Batch, Leaf, Spec, Transition
from offlinerl.util.trees import Tree, tree_leaves

NUMBER = Leaf("", (1,), "float32")


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
        S = len(seeds)
        self.envs, self.places, self.gamma, self.n_step = envs, max(1, capacity // envs), gamma, n_step
        self.paths = [leaf.path for leaf in spec.obs]
        self.widths, self.images = self._columns(spec, S, device)
        self.packed = torch.zeros(S, self.places, envs, sum(self.widths.values()), device=device)
        self.staged = np.zeros((S, envs, sum(self.widths.values())), np.float32)
        views = np.split(self.staged, np.cumsum([*self.widths.values()])[:-1], -1)
        self.columns = dict(zip(self.widths, views, strict=True))
        self.added = 0
        self.streams = Streams(seeds, "rows", device)
        self.offsets = torch.arange(S, device=device).view(1, S, 1) * (self.places * envs)
        self.priorities = Priorities(S, self.places * envs, *priorities, device) if priorities else None

    def _columns(self, spec: Spec, S: int, device: torch.device | str) -> tuple[dict[str, int], dict[str, Tensor]]:
        """The widths of the columns that are packed, and the images, each a ring of its own in its own dtype; the
        names are those of the leaves of a ``Transition``."""
        leaves = dict(action=Leaf("", (spec.action_dim,), ""), reward=NUMBER, terminated=NUMBER, last=NUMBER)
        for field in ("obs", "next_obs"):
            leaves |= {f"{field}/{leaf.path}".rstrip("/"): leaf for leaf in spec.obs}
        fields = [name for field in Transition._fields for name in leaves if name.split("/")[0] == field]
        images = {
            name: torch.zeros(S, self.places, self.envs, *leaves[name].shape, dtype=getattr(torch, leaves[name].dtype))
            for name in fields
            if len(leaves[name].shape) > 1
        }
        widths = {name: leaves[name].shape[0] for name in fields if name not in images}
        return widths, {name: ring.to(device) for name, ring in images.items()}

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
        place = self.added % self.places
        for name, leaf in tree_leaves(step._asdict()):
            if name in self.images:
                self.images[name][:, place].copy_(torch.from_numpy(leaf))
            else:
                self.columns[name][...] = leaf.reshape(self.columns[name].shape)
        self.packed[:, place].copy_(torch.from_numpy(self.staged))
        if self.priorities is not None:
            self.priorities.add(torch.arange(place * self.envs, (place + 1) * self.envs))
        self.added += 1

    def sample(self, updates: int, batch_size: int) -> Batch:
        """K minibatches, ``[K, S, B, ...]``: uniform, or by priority where the ring was made so."""
        shape = (updates, batch_size)
        if self.priorities is None:
            rows = self.streams.integers(len(self), shape).transpose(0, 1)  # [K, S, B]
            return self.transitions(rows)
        self.drawn, weight = self.priorities.sample(self.streams, len(self), shape)
        return self.transitions(self.drawn)._replace(weight=weight)

    def prioritize(self, priority: Tensor) -> None:
        """Give the rows drawn last their priorities, ``[K, S, B]``, such as absolute errors."""
        self.priorities.update(self.drawn, priority)

    def transitions(self, rows: Tensor) -> Batch:
        """What begins in some rows ``[K, S, B]``, counted along places and environments."""
        flat = self.packed.flatten(0, 2)  # [S * places * E, W]
        rows = rows + self.offsets
        found = self._gather(flat, rows)
        reward, terminated, last = (found[name].squeeze(-1) for name in ("reward", "terminated", "last"))
        total, discount, tail = reward, self.gamma * (1 - terminated), rows
        ending = found
        if self.n_step > 1:
            newest = (self.added - 1) % self.places
            for _ in range(self.n_step - 1):
                place = tail // self.envs % self.places
                going = (last == 0) & (place != newest)
                tail = torch.where(going, self._successor(tail, place), tail)
                ending = self._gather(flat, tail)
                reward, terminated, last = (ending[name].squeeze(-1) for name in ("reward", "terminated", "last"))
                total = torch.where(going, total + discount * reward, total)
                discount = torch.where(going, discount * self.gamma * (1 - terminated), discount)
        obs, next_obs = self._observed("obs", found, rows), self._observed("next_obs", ending, tail)
        return Batch(obs, found["action"], total, discount, next_obs, last)

    def _observed(self, field: str, found: Mapping[str, Tensor], rows: Tensor) -> Tree:
        """Observations of rows whose packed columns were gathered."""

        def leaf(path: str) -> Tensor:
            name = f"{field}/{path}".rstrip("/")
            if name in found:
                return found[name]
            ring = self.images[name].flatten(0, 2)
            return ring.index_select(0, rows.reshape(-1)).view(*rows.shape, *ring.shape[1:])

        return leaf("") if self.paths == [""] else {path: leaf(path) for path in self.paths}

    def _successor(self, rows: Tensor, place: Tensor) -> Tensor:
        """The rows one step later in the same environment."""
        return torch.where(place == self.places - 1, rows - (self.places - 1) * self.envs, rows + self.envs)

    def _gather(self, flat: Tensor, rows: Tensor) -> dict[str, Tensor]:
        packed = flat.index_select(0, rows.reshape(-1)).view(*rows.shape, flat.shape[-1])
        return dict(zip(self.widths, packed.split([*self.widths.values()], -1), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The rows in use and what else it takes to go on."""
        used = min(self.added, self.places)
        return dict(
            packed=self.packed[:, :used].clone(), added=self.added,
            images={name: ring[:, :used].clone() for name, ring in self.images.items()},
            streams=self.streams.state_dict(), priorities=self.priorities and self.priorities.state_dict(),
        )  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.packed[:, : state["packed"].shape[1]] = state["packed"].to(self.packed.device)
        for name, ring in self.images.items():
            ring[:, : state["images"][name].shape[1]] = state["images"][name].to(ring.device)
        self.added = state["added"]
        self.streams.load_state_dict(state["streams"])
        if self.priorities is not None:
            self.priorities.load_state_dict(state["priorities"])
