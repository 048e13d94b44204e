"""The replay buffer: ring buffers of transitions on the training device, one per seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offlinerl.agents.base import Agent
from offlinerl.envs.pixels import newest
from offlinerl.experience.mapped import MappedFiles
from offlinerl.experience.priorities import Priorities
from offlinerl.experience.table import Rows, frame_of, returns_to_go
from offlinerl.learning.rng import Streams
from offlinerl.types import Batch, Spec, Transition
from offlinerl.util.errors import UserError
from offlinerl.util.trees import Tree, tree_leaves, tree_map

ALL = slice(None)

ROOM = 9 / 8
"""Images stored per transition: every episode has one more observation than steps."""

COPIED = 1 << 10
"""Observations copied at a time."""


class Replay(Rows):
    """A replay buffer of the newest ``capacity`` transitions of every seed (Lin, 1992).

    Row ``(t, e)`` holds the step that environment e took at position t of the ring, so that an episode lies along t.
    The observations of every environment are in a ring of their own, which stores each once. For vectors it has room
    for two per transition. For images it has room for ``ROOM``; if episodes are too short for that, the oldest
    transitions of that seed are dropped earlier.

    Args:
        spec: shapes of the task.
        seeds: S integers; each has its own ring and draws its own rows.
        capacity: transitions per seed, rounded down to whole steps of its environments.
        envs: E, environments per seed.
        gamma: see ``Rows``.
        n_step: see ``Rows``.
        priorities: exponents alpha of the priorities and beta of the importance weights, to sample by priority; None
            samples uniformly.
        device: where the ring is stored.
        stack: see ``Rows``.
        folder: store the observations in files there, on the CPU, instead of in memory.
        goals: whether ``goals`` will be asked for.
        returns: the horizon of the returns to go that batches hold, see ``returns_to_go``; None: they hold none.

    Attributes:
        added: steps added so far, per environment; the newest is at position ``(added - 1) % steps``.
        oldest: ``[S]`` number of the first step that can still be drawn.
        slots: ``[S, steps, E]`` number of each row's observation, counted from the first one of its environment, in
            numpy; the next observation has the next number.
        newest: ``[S, E]`` number of each environment's latest observation.
        written: ``[S, E]`` number of the latest observation in the files; it is ahead if a run resumes from an earlier
            state.
        lost: saved steps that are gone, because the files were overwritten after the save: the most of any seed.
        drawn: the rows of the latest minibatches drawn by priority, ``[K, S, B]``.
        until: ``[S, steps, E]`` number of the last step of each row's episode, -1 until that has ended; None if neither
            goals nor returns are asked for.
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
        stack: int = 1,
        folder: Path | None = None,
        goals: bool = False,
        returns: str | None = None,
    ):
        S, self.envs, self.steps = len(seeds), envs, max(1, capacity // envs)
        self.gamma, self.n_step, self.stack = gamma, n_step, stack
        leaves = {leaf.path: frame_of(leaf, stack) for leaf in spec.obs}
        images = any(len(leaf.shape) > 1 for leaf in leaves.values())
        self.size = (int(ROOM * self.steps) if images else 2 * self.steps) + stack
        self.leaves = {path: ((S * envs * self.size, *leaf.shape), leaf.dtype) for path, leaf in leaves.items()}
        self.written = np.full((S, envs), -1)
        if folder is not None:
            self.files = MappedFiles(folder)
            kept = {path: self.files.tensor(self._file(path), *of) for path, of in self.leaves.items()}
            self.log = self.files.array("newest", (S, envs), "int64")
        else:
            kept = {
                path: torch.zeros(shape, dtype=getattr(torch, dtype), device=device)
                for path, (shape, dtype) in self.leaves.items()
            }
        self.observations = kept.get("", kept)
        self.ages = torch.zeros(S * envs * self.size, dtype=torch.int64, device=device) if stack > 1 else None
        self.numbers = torch.zeros(S * self.steps * envs, spec.action_dim + 3, device=device)
        self.places = torch.zeros(2, S * self.steps * envs, dtype=torch.int64, device=device)
        self.slots = np.zeros((S, self.steps, envs), np.int64)
        self.lanes = np.arange(S * envs).reshape(S, envs) * self.size
        self.newest = np.full((S, envs), -1)
        self.age = np.zeros((S, envs), np.int64)
        self.shown: Tree = None
        self.ended = np.ones((S, envs), bool)
        self.added = self.lost = 0
        self.oldest = np.zeros(S, np.int64)
        self.streams = Streams(seeds, "rows", device)
        self.drawn = torch.zeros(0, len(seeds), 0, dtype=torch.int64, device=device)
        self.offsets = torch.arange(S, device=device).view(1, S, 1) * (self.steps * envs)
        self.priorities = Priorities(S, self.steps * envs, *priorities, device) if priorities else None
        shape, size = self.slots.shape, self.slots.size
        self.until = torch.full(shape, -1, dtype=torch.int64, device=device) if goals or returns else None
        self.returns = torch.full((size,), -math.inf, device=device) if returns else None
        self.horizon = returns
        self.began = np.zeros((S, envs), np.int64)  # the number of the first step of each environment's episode

    @classmethod
    def of(cls, agent: Agent, capacity: int, envs: int = 1, **more: Any) -> Replay:
        """The replay buffer that an agent learns from; ``more`` are further arguments of the class."""
        more |= dict(n_step=agent.n_step, device=agent.device, returns=agent.returns_to_go)
        ring = cls(agent.kept_spec, agent.seeds, capacity, envs, agent.gamma, **more)
        ring.next_actions = agent.next_actions
        return ring

    def __len__(self) -> int:
        """Number of transitions that can be drawn from every seed."""
        return int(self.counts.min())

    @property
    def counts(self) -> np.ndarray:
        """``[S]`` number of each seed's transitions that can be drawn."""
        return (self.added - self.oldest) * self.envs

    def following(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        place = self._place(rows)
        following = torch.where(place == self.steps - 1, rows - (self.steps - 1) * self.envs, rows + self.envs)
        return following, place != (self.added - 1) % self.steps

    def add(self, step: Transition) -> None:
        """Adds one step of every environment; if the ring is full, it overwrites the oldest one."""
        place, E = self.added % self.steps, self.envs
        obs, next_obs = (newest(shown, self.stack) for shown in (step.obs, step.next_obs))
        new = self.ended
        if self.shown is not None and obs is not self.shown:
            new = new | ~_same(obs, self.shown)
        if new.any():
            if (unmarked := new & ~self.ended).any():  # a new episode began, but the last one was not marked as ended
                self._steps()[:, place - 1, :, -1] += torch.from_numpy(unmarked).to(self.numbers)
            self._show(obs, new)
        self.slots[:, place], at = self.newest, self._places_of(self.newest)
        self._show(next_obs, ALL)
        both = torch.from_numpy(np.stack([at, self._places_of(self.newest)]))
        self.places.view(2, *self.slots.shape)[:, :, place].copy_(both)
        columns = (step.reward, step.terminated, step.last)
        row = np.concatenate([step.action, *(column[..., None] for column in columns)], -1, dtype=np.float32)
        self._steps()[:, place].copy_(torch.from_numpy(row))
        if self.priorities is not None:
            self.priorities.add(torch.arange(place * E, (place + 1) * E))
        if self.until is not None:
            self._mark_ends(new & ~self.ended, self.added - 1)
            self.until[:, place] = -1
            if self.returns is not None:
                self.returns.view(self.until.shape)[:, place] = -math.inf
            self._mark_ends(step.last, self.added)
        self.added += 1
        self.shown, self.ended = next_obs, step.last
        self._forget()

    def _mark_ends(self, where: np.ndarray, number: int) -> None:
        """Notes that the episodes of the environments ``where`` ``[S, E]`` ended with the step of this number."""
        for s, e in zip(*where.nonzero(), strict=True):
            first = max(self.began[s, e], number - self.steps + 1)
            steps = torch.arange(first, number + 1, device=self.until.device)
            self.until[s, steps % self.steps, e] = number
            self._sum_rewards(s, e, steps)
            self.began[s, e] = number + 1

    def _sum_rewards(self, s: int, e: int, steps: Tensor) -> None:
        """Notes the returns to go of some of an environment's steps, in sequence, whose episodes have ended."""
        if self.returns is None or not len(steps):
            return
        places = steps % self.steps
        reward, terminated, last = self._steps()[s, places, e, -3:].unbind(-1)
        found = returns_to_go(reward, terminated > 0, last > 0, self.gamma, self.horizon)
        self.returns.view(self.until.shape)[s, places, e] = found

    def _find_ends(self) -> None:
        """Finds the ends of all episodes in the ring, and the returns up to them."""
        numbers = torch.arange(max(0, self.added - self.steps), self.added, device=self.until.device)
        places, unknown = numbers % self.steps, self.added
        last = self._steps()[:, places, :, -1] > 0  # [S, n, E], in the order of the steps
        ends = torch.where(last, numbers.view(-1, 1), unknown).flip(1).cummin(1).values.flip(1)
        self.until[:, places] = torch.where(ends == unknown, -1, ends)
        self.began = torch.where(last, numbers.view(-1, 1) + 1, 0).amax(1).cpu().numpy()
        for s, e in np.ndindex(self.began.shape):
            self._sum_rewards(s, e, numbers[numbers < self.began[s, e]])

    def _show(self, obs: Tree, where: np.ndarray | Any) -> None:
        """Stores the observations of the environments ``where``: all, or a mask ``[S, E]`` of those in a new
        episode."""
        new = where is not ALL
        self.newest[where] += 1
        self.age[where] = 0 if new else self.age + 1
        if self.files is not None:  # first, because the process may be killed in between
            self.log[:] = np.maximum(self.newest, self.written)
        places = torch.from_numpy(self._places_of(self.newest)[where].reshape(-1)).to(self.places.device)

        def keep(ring: Tensor, leaf: np.ndarray) -> None:
            ring.index_copy_(
                0, places.to(ring.device), torch.from_numpy(leaf[where].reshape(-1, *leaf.shape[2:])).to(ring)
            )

        tree_map(keep, self.observations, obs)
        if self.files is not None:
            self.files.touched(len(places), sum(leaf.nbytes for _, leaf in tree_leaves(obs)))
        if self.ages is not None:
            self.ages.index_copy_(0, places, torch.from_numpy(self.age[where].reshape(-1)).to(places))

    def _places_of(self, slots: np.ndarray) -> np.ndarray:
        """The indices of the observations with these numbers, ``[S, E]`` or ``[S, steps, E]``."""
        lanes = self.lanes if slots.ndim == 2 else self.lanes[:, None]
        return lanes + slots % self.size

    def _forget(self) -> None:
        """Drops the steps that newer ones have overwritten, wholly or in one of their observations."""
        self.oldest = np.maximum(self.oldest, self.added - self.steps)
        seeds, gone = np.arange(len(self.oldest)), np.maximum(self.newest, self.written) - self.size
        while True:
            place = self.oldest % self.steps
            lost = (self.oldest < self.added) & (self.slots[seeds, place] - self.stack < gone).any(1)
            if not lost.any():
                return
            if self.priorities is not None:
                for seed in lost.nonzero()[0]:
                    self.priorities.remove(seed, torch.arange(place[seed] * self.envs, (place[seed] + 1) * self.envs))
            self.oldest += lost

    def sample(self, updates: int, batch_size: int) -> Batch:
        """K minibatches, ``[K, S, B, ...]``: uniform, or by priority if the buffer has priorities."""
        shape = (updates, batch_size)
        if self.priorities is None:
            return self.transitions(self.streams.integers(self.counts, shape).transpose(0, 1))  # [K, S, B]
        self.drawn, weight = self.priorities.sample(self.streams, self.counts, shape)
        return super().transitions(self.drawn + self.offsets)._replace(weight=weight)

    def prioritize(self, priority: Tensor) -> None:
        """Sets the priorities ``[K, S, B]`` of the rows drawn last, such as absolute TD errors."""
        self.priorities.update(self.drawn, priority)

    def transitions(self, rows: Tensor) -> Batch:
        """The transitions that begin in rows ``[K, S, B]``, numbered along positions and environments: from the ring's
        first position, or from a seed's oldest step if not all of its full ring can be drawn."""
        return super().transitions(self._in_ring(rows))

    def _in_ring(self, rows: Tensor) -> Tensor:
        """The indices of rows ``[K, S, B]`` in the rings of all seeds."""
        if (fewer := self.oldest > max(0, self.added - self.steps)).any():
            first = torch.from_numpy(self.oldest * fewer * self.envs).to(rows.device)
            rows = (rows + first.unsqueeze(-1)) % (self.steps * self.envs)
        return rows + self.offsets

    def goals(self, rows: Tensor, uniform: Tensor) -> Tree:
        """As in ``Rows``, for rows numbered as in ``transitions``."""
        return super().goals(self._in_ring(rows), uniform)

    def remaining(self, rows: Tensor) -> Tensor:
        newest, until = self.added - 1, self.until.view(-1)[rows]
        number = newest - (newest - self._place(rows)) % self.steps
        return torch.where(until < 0, newest, until) - number + 1

    def later(self, rows: Tensor, steps: Tensor) -> Tensor:
        place = self._place(rows)
        return rows + ((place + steps) % self.steps - place) * self.envs

    def _place(self, rows: Tensor) -> Tensor:
        """The positions of rows in their rings."""
        return rows // self.envs % self.steps

    def state_dict(self, copy: bool = True) -> dict[str, Any]:
        """The rows in use, and everything else needed to resume.

        Args:
            copy: False saves memory for a state that is written at once: it changes with the ring's next step.
        """
        used, kept = min(self.added, self.steps), min(int(self.newest.max()) + 1, self.size)
        if self.files is not None:
            self.files.flush()
        return dict(
            added=self.added, oldest=torch.from_numpy(self.oldest.copy()), size=self.size,
            newest=torch.from_numpy(self.newest.copy()), slots=torch.from_numpy(self.slots[:, :used].copy()),
            numbers=_compact(self._steps()[:, :used], copy),
            lanes=[_compact(lane[:, :kept], copy) for lane in self._lanes(self.files is None)],
            streams=self.streams.state_dict(), priorities=self.priorities and self.priorities.state_dict(),
        )  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved ring, also one of another size unless it had wrapped."""
        if "packed" in state:  # of version 0.1
            self._add_packed(state["packed"].cpu(), state["added"])
        self.streams.load_state_dict(state["streams"])
        if self.priorities is not None:
            self.priorities.load_state_dict(state["priorities"])
        if "packed" not in state:
            self._load_rows(state)  # removes the priorities of rows whose observations are gone

    def _load_rows(self, state: dict[str, Any]) -> None:
        if not state["added"]:  # nothing added yet, only trained on a dataset
            return
        used, self.added, self.newest = state["slots"].shape[1], state["added"], state["newest"].cpu().numpy().copy()
        # also what is gone: a larger ring would seem to hold it; former versions saved one number for all seeds
        self.oldest[:] = torch.as_tensor(state["oldest"]).cpu()
        self._steps()[:, :used].copy_(state["numbers"])
        self.slots[:, :used] = state["slots"].cpu()
        for which, places in enumerate(self.places.view(2, *self.slots.shape)):
            places.copy_(torch.from_numpy(self._places_of(self.slots + which)))
        self._copy(self._lanes(self.files is None), state["lanes"], state["size"])
        if self.files is not None:
            self._require_files(state["size"])
            self._take_files(state["size"])
            self.written = np.minimum(self.written, self.newest + self.size)  # one round later all is gone
        places = torch.from_numpy(self._places_of(self.newest)).to(self.places.device)
        self.shown = tree_map(lambda ring: ring[places].cpu().numpy(), self.observations)
        if self.ages is not None:
            self.age = self.ages[places].cpu().numpy()
        self.ended = self._steps()[:, (self.added - 1) % self.steps, :, -1].bool().cpu().numpy()
        if self.until is not None:
            self._find_ends()
        had = self.counts
        self._forget()
        self.lost = int((had - self.counts).max()) if self.files is not None else 0

    def _require_files(self, size: int) -> None:
        """Raise a UserError if the files of saved rings of that size are not there as they were saved."""
        names = {self._file(path): self._file(path, size) for path in self.leaves} | {"newest": "newest"}
        made = self.files.made
        if any(own in made and (own == saved or not self.files.has(saved)) for own, saved in names.items()):
            for name in made:  # else the next try would take them for the saved ones
                self.files.delete(name)
            raise UserError(
                f"the replay buffer in {self.files.folder} is missing or damaged, so this run cannot be resumed"
            )

    def _take_files(self, size: int) -> None:
        """Continues with the files of rings of that size, unless a run that was killed before it saved has done so
        already. What was written to them after the save has replaced the oldest observations."""
        self.written = self.log.copy()
        old = {path: name for path in self.leaves if self.files.has(name := self._file(path, size))}
        if size == self.size or not old:
            return
        lanes, rings = self.lanes.size, dict(tree_leaves(self.observations))
        for path, name in old.items():
            shape, dtype = self.leaves[path]
            saved = self.files.tensor(name, (lanes * size, *shape[1:]), dtype)
            self._copy(*([x.unflatten(0, (lanes, -1))] for x in (rings[path], saved)), size)
        self.written += self.size - size  # so that the same observations are gone in rings of this size
        self.log[:] = np.maximum(self.log, self.written)
        for name in old.values():
            self.files.delete(name)

    def _copy(self, rings: Sequence[Tensor], saved: Sequence[Tensor], size: int) -> None:
        """Fills rings ``[S E, size, ...]`` with the newest observations of saved rings, whose size is ``size``."""
        for lane, final in enumerate(self.newest.flat):
            slots = torch.arange(max(0, final + 1 - min(self.size, size)), final + 1)
            for some in slots.split(COPIED):
                for ring, old in zip(rings, saved, strict=True):
                    ring[lane, some % self.size] = old[lane, some % size].to(ring)

    def _file(self, path: str, size: int | None = None) -> str:
        return f"{path or 'observations'}-{size or self.size}"

    def _add_packed(self, packed: Tensor, added: int) -> None:
        """Adds rows ``[S, steps, E, W]`` of vectors, each with its next observation."""
        O, A, used = self.observations.shape[1], self.numbers.shape[1] - 3, packed.shape[1]
        ends = np.cumsum([O, A, 1, 1, O])
        self.added = added - used
        for t in range(added - used, added):
            obs, action, reward, terminated, next_obs, last = np.split(packed[:, t % used].numpy(), ends, -1)
            self.add(Transition(obs, action, reward[..., 0], terminated[..., 0] > 0, next_obs, last[..., 0] > 0))

    def _steps(self) -> Tensor:
        """The numbers, ``[S, steps, E, A + 3]``."""
        return self.numbers.view(*self.slots.shape, -1)

    def _lanes(self, observations: bool = True) -> list[Tensor]:
        """The observations, if wanted, and their ages, ``[S E, size, ...]``."""
        kept = (self.observations if observations else None, self.ages)
        return [leaf.unflatten(0, (-1, self.size)) for _, leaf in tree_leaves(kept)]


def _compact(x: Tensor, copy: bool) -> Tensor:
    """The same in memory of its own; in any case if it is a part, because saving it would save the whole."""
    return x.clone() if copy or x.untyped_storage().nbytes() != x.nbytes else x


def _same(one: Tree, other: Tree) -> np.ndarray:
    """``[S, E]`` bool, where two observations are equal."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    same = [(a == b).all(tuple(range(2, a.ndim))) for (_, a), (_, b) in pairs]
    return np.logical_and.reduce(same)
