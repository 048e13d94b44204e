"""Losses on episodes that are not learnt from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch

from offlinerl.agents.base import Agent
from offlinerl.data import edit
from offlinerl.data.dataset import Dataset
from offlinerl.experience.sources import OfflineData
from offlinerl.learning.compile import put_back

BATCHES = 20
"""How many batches a measurement has."""


def apart(data: Dataset, share: float) -> tuple[Dataset, Dataset | None]:
    """The episodes to learn from and those to measure on, drawn at random, the same ones for every run.

    Args:
        data: of which at least one episode is kept to learn from.
        share: of the episodes, to measure on; of two or more episodes at least one. None are if it is 0.
    """
    if not share or len(data.episode_starts) < 2:
        return data, None
    return edit.split(data, 1 - share)


class HeldOut:
    """Measures what an agent's metrics are on rows that it does not learn from.

    An algorithm has no function of its loss alone: so an update is taken on every batch, which says what the loss was
    before it, and is taken back with all that it changed. Every measurement has the same batches.

    Args:
        agent: what is measured.
        source: makes what draws the batches, always from the same one on.
        rows: how many it draws from.
    """

    def __init__(self, agent: Agent, source: Callable[[], OfflineData], rows: int):
        self.agent, self.source, self.rows = agent, source, rows

    def metrics(self) -> dict[str, list[float]]:
        """The mean of each metric over the batches, a number a seed; the agent is as it was before, to the bit."""
        agent, source = self.agent, self.source()
        batches = min(BATCHES, -(-self.rows // source.batch_size))
        updates, compiled, rng = agent.updates, agent.compile, agent.rng.state_dict()
        state, found = agent.trained_tensors(), defaultdict(list)
        agent.compile = False
        try:
            for _ in range(batches):
                batch = source.draw()
                for phase in range(agent.period):  # an actor may learn in every second update alone
                    agent.updates = updates + phase
                    with put_back(state):
                        for name, value in agent.learn(batch)[0].items():
                            found[name].append(value.clone())
        finally:
            agent.updates, agent.compile = updates, compiled
            agent.rng.load_state_dict(rng)
        return {name: torch.stack(values).mean(0).tolist() for name, values in found.items()}
