"""Prioritised sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from offlinerl.learning.rng import Streams


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

    def remove(self, rows: Tensor) -> None:
        """Never draw rows ``[n]`` of any seed again."""
        rows = rows.to(self.tree.device).expand(len(self.tree), -1)
        self._set(rows, torch.zeros_like(rows, dtype=torch.float64))

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
