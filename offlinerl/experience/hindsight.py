"""Goals chosen in hindsight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from offlinerl.experience.table import Rows
from offlinerl.learning.rng import Streams
from offlinerl.types import Batch


class Goal(NamedTuple):
    """What a goal is, in vector observations ``[..., O]``.

    Attributes:
        achieved: G entries of an observation, which say what is reached.
        desired: G entries of an observation, which say what should be.
        radius: distance at which a goal counts as reached, in the observations' units.
    """

    achieved: Sequence[int]
    desired: Sequence[int]
    radius: float


class Hindsight:
    """Gives transitions other goals: what was reached later in the same episode.

    The reward is 0 where the next observation is at the goal, and no value follows it; elsewhere it is -1. Whether the
    stored transition is terminal does not count, since it depends on the episode's own goal.

    Args:
        goal: what a goal is.
        anywhere: share of the goals that are taken from other rows of the batch instead: most cannot be reached from
            here, and values must learn this too.
        own: share of the transitions that keep their goal.
        device: of the batches.

    Source: Andrychowicz et al., Hindsight Experience Replay, NeurIPS 2017, section 4.5, strategy "future", in which
    ``own`` is 0.2; goals from anywhere as in Park et al., OGBench, ICLR 2025.
    """

    def __init__(self, goal: Goal, anywhere: float = 0.0, own: float = 0.0, device: torch.device | str = "cpu"):
        self.achieved, self.desired = (torch.tensor(of, device=device) for of in (goal.achieved, goal.desired))
        self.radius, self.anywhere, self.own = goal.radius, anywhere, own

    def transitions(self, source: Rows, rows: Tensor, streams: Streams) -> Batch:
        """The transitions that begin in rows ``[K, S, B]`` of a source, with other goals.

        Args:
            source: where the rows are.
            rows: as its ``transitions`` takes them.
            streams: where the numbers are drawn from that choose the goals.
        """
        (K, _, B), batch, gamma = rows.shape, source.transitions(rows), source.gamma
        later, which = (streams.uniform(0, 1, (K, B)).transpose(0, 1) for _ in range(2))  # [K, S, B]
        which = which.unsqueeze(-1)
        achieved = batch.next_obs[..., self.achieved]
        goal = source.goals(rows, later)[..., self.achieved]
        if self.anywhere:
            goal = torch.where(which < self.anywhere, achieved.roll(1, -2), goal)
        if self.own:
            goal = torch.where(which >= 1 - self.own, batch.obs[..., self.desired], goal)
        for obs in (batch.obs, batch.next_obs):
            obs[..., self.desired] = goal
        onwards = (torch.linalg.vector_norm(achieved - goal, dim=-1) > self.radius).float()  # [K, S, B]
        gamma = gamma.view(-1, 1) if isinstance(gamma, Tensor) else gamma
        return batch._replace(reward=-onwards, discount=gamma * onwards)
