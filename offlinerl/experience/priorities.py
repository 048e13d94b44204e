"""Prioritised sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from offlinerl.learning.rng import Streams

WAITING = 1 << 10
"""How many calls of ``add`` may wait, so that they take little memory."""


class Priorities:
    """Proportional prioritised sampling, with one sum tree per seed.

    Schaul et al., Prioritized Experience Replay, ICLR 2016, section 3.3 and algorithm 1: row i is drawn with
    probability ``p_i^alpha / sum p^alpha`` and has the importance weight ``(N P(i))^-beta``, divided by the largest
    weight in the minibatch. A new row gets the largest priority so far.

    Args:
        seeds: S.
        rows: per seed.
        alpha: 0 draws uniformly, 1 in proportion to the priorities.
        beta: 1 corrects the sampling bias fully.
        floor: added to every priority, so that each row can be drawn again.
    """

    def __init__(
        self, seeds: int, rows: int, alpha: float, beta: float, device: torch.device | str = "cpu", floor: float = 1e-6
    ):
        self.alpha, self.beta, self.floor = alpha, beta, floor
        self.depth = (rows - 1).bit_length()
        self.leaves = 1 << self.depth
        # Node i has the children 2i and 2i + 1; the root is 1. Float64, because the sums are updated in place.
        self.sums = torch.zeros(seeds, 2 * self.leaves, dtype=torch.float64, device=device)
        self.largest = torch.ones(seeds, 1, dtype=torch.float64, device=device)
        self.waiting: list[Tensor] = []  # new rows that are not in the tree yet

    def add(self, rows: Tensor) -> None:
        """Gives new rows ``[n]`` of every seed the largest priority so far."""
        self.waiting.append(rows)
        if len(self.waiting) == WAITING:
            self._settle()

    @property
    def tree(self) -> Tensor:
        """The sums of all rows, ``[S, nodes]``."""
        self._settle()
        return self.sums

    def _settle(self) -> None:
        """Puts the rows that wait into the tree: a walk from the leaves to the root costs the same for many as for
        one."""
        if self.waiting:
            rows = torch.cat(self.waiting).to(self.sums.device).expand(len(self.sums), -1)
            self.waiting = []
            self._set(rows, self.largest.expand(rows.shape))

    def remove(self, seed: int, rows: Tensor) -> None:
        """Excludes rows ``[n]`` of one seed, counted from 0, from sampling."""
        rows = rows.to(self.tree.device).expand(len(self.tree), -1)
        kept = self.tree.gather(1, self.leaves + rows)
        kept[seed] = 0
        self._set(rows, kept)

    def update(self, rows: Tensor, priority: Tensor) -> None:
        """Gives rows ``[K, S, B]`` the priorities ``[K, S, B]``; if a row occurs twice, one of them counts. A priority
        that is not finite leaves that of its row unchanged."""
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

    def sample(self, streams: Streams, sizes: int | np.ndarray, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Draws rows ``[K, S, B]``; returns them and their importance weights ``[K, S, B]``.

        Args:
            streams: the random numbers.
            sizes: number of rows that have a priority, of all seeds or of each, ``[S]``.
            shape: K and B.
        """
        K, B = shape
        total = self.tree[:, 1:2]
        drawn, fine = (streams.uniform(0, 1, (K * B,)).double() for _ in range(2))  # float32 has 24 bits, too few
        left = (drawn + fine * 2**-24) * total  # [S, K * B]
        node = torch.ones_like(left, dtype=torch.int64)
        for _ in range(self.depth):
            node = 2 * node
            below = self.tree.gather(1, node)
            # Rounding may lead past the last row in use, where the sum is zero; the other child is taken then.
            right = (left >= below) & (self.tree.gather(1, node + 1) > 0)
            left = torch.where(right, left - below, left)
            node = node + right
        probability = self.tree.gather(1, node) / total
        sizes = torch.as_tensor(sizes, device=total.device).view(-1, 1)
        weight = (sizes * probability).clamp(min=1e-12) ** -self.beta
        rows, weight = (x.unflatten(1, (K, B)).transpose(0, 1) for x in (node - self.leaves, weight))
        return rows, (weight / weight.amax(-1, keepdim=True)).float()

    def state_dict(self) -> dict[str, Any]:
        return dict(values=self.tree[:, self.leaves :].clone(), largest=self.largest.clone())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved state; if the run was extended, the ring may have more rows than the saved one."""
        self.waiting = []
        rows = torch.arange(min(self.leaves, state["values"].shape[1]), device=self.tree.device)
        self.tree.zero_()
        self._set(rows.expand(len(self.tree), -1), state["values"].to(self.tree)[:, : len(rows)])
        self.largest.copy_(state["largest"])
