"""Losses on held-out episodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch

from offlinerl.agents.base import Agent
from offlinerl.data import edit
from offlinerl.data.dataset import Dataset
from offlinerl.experience.sources import OfflineData
from offlinerl.util.trees import tree_map

BATCHES = 20
"""Maximum number of batches of a measurement."""


def hold_out(data: Dataset, share: float) -> tuple[Dataset, Dataset | None]:
    """Split a dataset at random into training episodes and held-out episodes, in the same way for every run.

    Args:
        data: at least one of its episodes is kept for training.
        share: fraction of the episodes to hold out, at least one episode if there are two or more; 0 for none.
    """
    if not share or len(data.episode_starts) < 2:
        return data, None
    return edit.split(data, 1 - share)


class HeldOut:
    """Measures an agent's metrics on held-out rows.

    Every measurement uses the same batches; see ``Agent.measure``.

    Args:
        agent: to measure.
        source: creates a source of batches, each time starting from the same batch.
        rows: number of held-out rows.
    """

    def __init__(self, agent: Agent, source: Callable[[], OfflineData], rows: int):
        self.agent, self.source, self.rows = agent, source, rows

    def metrics(self) -> dict[str, list[float]]:
        """The mean of each metric over the batches, one per seed. Afterwards the agent is bitwise as before."""
        agent, source = self.agent, self.source()
        batches = min(BATCHES, -(-self.rows // source.batch_size))
        updates, rng, found = agent.updates, agent.rng.state_dict(), defaultdict(list)
        try:
            for _ in range(batches):
                batch = tree_map(lambda x: x[0], source.draw())
                for phase in range(agent.period):  # some metrics come only in some phases, as TD3's actor loss
                    agent.updates = updates + phase
                    for name, value in agent.measure(batch).items():
                        found[name].append(value)
        finally:
            agent.updates = updates
            agent.rng.load_state_dict(rng)
        return {name: torch.stack(values).mean(0).tolist() for name, values in found.items()}
