"""Random numbers with one generator per seed: a seed draws the same numbers alone or stacked with others."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor


def generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> Generator:
    """A generator for one purpose of one seed, independent of those of other purposes and seeds."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())])
    return Generator(device).manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))


class Streams:
    """One generator per seed, all for one purpose. Every draw has a leading axis S.

    Args:
        seeds: S integers.
        purpose: what the numbers are for, such as ``"dropout"``; names the stream.
        device: where the numbers are drawn.
        rank: of the process in data-parallel training; every rank draws different numbers.
    """

    def __init__(self, seeds: Sequence[int], purpose: str, device: torch.device | str = "cpu", rank: int = 0):
        self.seeds, self.purpose = tuple(seeds), f"{purpose} in process {rank}" if rank else purpose
        self.to(device)

    def to(self, device: torch.device | str) -> Streams:
        """Draw on ``device`` from now on; if the device changes, the streams restart."""
        if getattr(self, "device", None) != torch.device(device):
            self.device = torch.device(device)
            self.generators = [generator(seed, self.purpose, device) for seed in self.seeds]
            self.ahead(1)
        return self

    def ahead(self, count: int) -> None:
        """Draw for the next ``count`` updates at once; on a GPU, kernel launches cost more than the numbers. Unused
        numbers of the previous call are discarded, so that a state saved just before a call is complete."""
        self._count = count
        self._drawn: dict[tuple, list[Tensor]] = {}

    def _fill(self, method: str, args: tuple, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Numbers by a method of the generators' tensors, with the arguments of each seed."""
        if self._count == 1:
            return self._draw(method, args, shape, dtype)
        kept = self._drawn.setdefault((method, args, tuple(shape), dtype), [])
        if not kept:
            many = self._draw(method, args, (self._count, *shape), dtype).transpose(0, 1).contiguous()
            kept.extend(reversed(many.unbind()))
        return kept.pop()

    def _draw(self, method: str, args: tuple, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        out = torch.empty(len(self.seeds), *shape, dtype=dtype, device=self.device)
        for row, of_seed, rng in zip(out, args, self.generators, strict=True):
            getattr(row, method)(*of_seed, generator=rng)
        return out

    def _same(self, *args: Any) -> tuple:
        return (args,) * len(self.seeds)

    def integers(self, high: int | np.ndarray, shape: Sequence[int]) -> Tensor:
        """Uniform int64 in [0, high), ``[S, *shape]``; ``high`` is a number or ``[S]``, and may be 0 if the shape is
        empty."""
        highs = np.broadcast_to(high if math.prod(shape) else 1, len(self.seeds)).tolist()
        return self._fill("random_", tuple((0, of_seed) for of_seed in highs), shape, torch.int64)

    def permutation(self, count: int) -> Tensor:
        """Random permutations of the numbers from 0 to ``count - 1``, ``[S, count]``."""
        return torch.stack([torch.randperm(count, generator=rng, device=self.device) for rng in self.generators])

    def uniform(self, low: float, high: float, shape: Sequence[int]) -> Tensor:
        """Uniform float32 in [low, high), ``[S, *shape]``."""
        return self._fill("uniform_", self._same(low, high), shape, torch.float32)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal float32, ``[S, *shape]``."""
        return self._fill("normal_", self._same(), shape, torch.float32)

    def bits(self, shape: Sequence[int]) -> Tensor:
        """Uniform int16 over its whole range, ``[S, *shape]``, four from each 64-bit draw."""
        *rows, columns = shape
        words = self._fill("random_", self._same(-(2**63), None), (*rows, -(-columns // 4)), torch.int64)
        return words.view(torch.int16)[..., :columns]

    def state_dict(self) -> dict:
        return dict(seeds=list(self.seeds), device=self.device.type, states=[g.get_state() for g in self.generators])

    def load_state_dict(self, state: dict) -> None:
        """Continue the saved streams; if they were saved on another type of device, leave the streams as they are."""
        if state["device"] == self.device.type:
            for rng, saved in zip(self.generators, state["states"], strict=True):
                rng.set_state(saved.cpu())


class EnvStreams:
    """One generator per environment, reseeded at the start of every episode, so that the numbers of an episode depend
    only on its seed, its lane and its episode number. Every draw has leading axes S and E.

    Args:
        seeds: S integers.
        lanes: E integers, the indices of these environments among a seed's.
        purpose: what the numbers are for; names the streams.
    """

    def __init__(self, seeds: Sequence[int], lanes: Sequence[int], purpose: str):
        self.seeds, self.lanes, self.purpose = tuple(seeds), tuple(lanes), purpose
        self.generators = [[generator(seed, f"{purpose} {lane}") for lane in self.lanes] for seed in self.seeds]
        self._drawn: _Drawn | None = None

    def ahead(self) -> EnvStreams:
        """Draw for several steps at once from now on, which is faster. The numbers are the same as without it. All
        draws must be of one kind and shape, and the state can no longer be saved."""
        self._drawn = _Drawn(len(self.seeds) * len(self.lanes))
        return self

    def begin(self, where: np.ndarray, episodes: np.ndarray) -> None:
        """Start the streams of new episodes.

        Args:
            where: ``[S, E]`` bool, True where an episode begins.
            episodes: ``[S, E]``, the episodes' numbers.
        """
        for s, e in zip(*where.nonzero(), strict=True):
            self.generators[s][e] = generator(self.seeds[s], f"{self.purpose} {self.lanes[e]} {episodes[s, e]}")
        if self._drawn is not None:
            self._drawn.forget(where.reshape(-1))

    def _fill(self, method: str, args: tuple, shape: Sequence[int]) -> Tensor:
        if self._drawn is not None:
            out = self._drawn.next(self.generators, method, args, tuple(shape))
        else:
            out = torch.empty(len(self.seeds) * len(self.lanes), *shape)
            for row, rng in zip(out.unbind(), chain(*self.generators), strict=True):
                getattr(row, method)(*args, generator=rng)
        return out.view(len(self.seeds), len(self.lanes), *shape)

    def uniform(self, low: float, high: float, shape: Sequence[int]) -> Tensor:
        """Uniform float32 in [low, high), ``[S, E, *shape]``."""
        return self._fill("uniform_", (low, high), shape)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal float32, ``[S, E, *shape]``."""
        return self._fill("normal_", (), shape)

    def state_dict(self) -> dict:
        assert self._drawn is None, "numbers that were drawn ahead are in no generator"
        return dict(lanes=list(self.lanes), states=[[g.get_state() for g in rngs] for rngs in self.generators])

    def load_state_dict(self, state: dict) -> None:
        """Continue the saved streams, with the lanes they were saved with."""
        self.lanes = tuple(state["lanes"])
        self.generators = [[Generator().set_state(saved.cpu()) for saved in of_seed] for of_seed in state["states"]]


IN_TURN = 15
"""Draws of up to this many numbers are generated one by one on a CPU, so that one draw gives the same numbers as
several smaller ones."""


class _Drawn:
    """Numbers of L generators, drawn ahead for several steps."""

    def __init__(self, generators: int):
        self.every = np.arange(generators)
        self.used = np.full(generators, IN_TURN)  # steps used of those drawn ahead
        self.kind: tuple[str, tuple, tuple[int, ...]] | None = None
        self.numbers: Tensor | None = None

    def forget(self, where: np.ndarray) -> None:
        """Discard the numbers drawn from these generators, ``[L]`` bool."""
        self.used[where] = IN_TURN

    def next(self, generators: Sequence[Sequence[Generator]], *kind: Any) -> Tensor:
        """The numbers of one step, ``[L, *shape]``, by a method with its arguments of the ``[S, E]`` generators."""
        method, args, shape = self.kind = self.kind or kind
        assert self.kind == kind, f"what was drawn ahead is {self.kind}, not {kind}"
        if self.numbers is None:
            self.numbers = torch.empty(len(self.every), max(IN_TURN // math.prod(shape), 1), *shape)
        for i in np.flatnonzero(self.used >= self.numbers.shape[1]).tolist():
            s, e = divmod(i, len(generators[0]))
            getattr(self.numbers[i], method)(*args, generator=generators[s][e])
            self.used[i] = 0
        found = self.numbers.numpy()[self.every, self.used]
        self.used += 1
        return torch.from_numpy(found)
