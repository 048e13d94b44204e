"""A finished run, as ``offlinerl.fit`` returns it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from offlinerl.agents.base import Agent
from offlinerl.evaluation.plots import read_columns
from offlinerl.rollout.deployed import DeployedPolicy, load_policy


@dataclass(frozen=True)
class FitResult:
    """A finished run.

    Attributes:
        folder: of the run's files.
        summary: the content of ``summary.json``.
        agent: the trained agent, with all seeds.
    """

    folder: Path
    summary: dict[str, Any] = field(repr=False)
    agent: Agent = field(repr=False)

    def __fspath__(self) -> str:
        """Its folder, so that functions that take a run's folder take the run itself too."""
        return str(self.folder)

    @property
    def scores(self) -> dict[str, Any] | None:
        """Scores of the last policies: the ``mean`` over seeds and episodes, its 95% interval ``ci95`` and the means
        ``per_seed``; None for a run without an environment."""
        return self.summary["last"]

    @property
    def table(self) -> dict[str, np.ndarray]:
        """The evaluations by column, one row per episode: ``update``, ``seed``, ``return``, ``score``, ``length``, ...;
        empty for a run without an environment."""
        return self._columns("evaluations.csv")

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """The logged training metrics by column, one row per seed and time; empty if ``metrics.csv`` was not
        written."""
        return self._columns("metrics.csv")

    @property
    def held_out(self) -> dict[str, np.ndarray]:
        """The metrics on held-out episodes at every evaluation; empty if none were held out."""
        return self._columns("held_out.csv")

    def _columns(self, file: str) -> dict[str, np.ndarray]:
        path = self.folder / file
        return read_columns(path) if path.is_file() else {}

    @cached_property
    def policy(self) -> DeployedPolicy:
        """The last policy of the first seed, to be called with numpy observations."""
        return self.load_policy()

    def load_policy(self, seed: int | None = None, **values: float) -> DeployedPolicy:
        """The last policy of a seed, and of the given values of settings that had several, from ``last.ckpt``; by
        default the first seed and values."""
        return load_policy(self.folder, seed, agent_class=type(self.agent), **values)
