"""One episode, as environments produce it and files store it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from offlinerl.data.columns import LOG_PROB_INFO

Arrays = np.ndarray | dict[str, Any]
"""An array, or a dictionary of arrays if the space is a ``Dict``."""


class Episode(NamedTuple):
    """One episode of T steps, with T + 1 observations: the last one is the next observation of the last action."""

    observations: Arrays  # [T + 1, ...]
    actions: np.ndarray  # [T, ...]
    rewards: np.ndarray  # [T]
    terminations: np.ndarray  # [T] bool
    truncations: np.ndarray  # [T] bool
    infos: Mapping[str, Any] = {}
    seed: int | None = None  # seed of the environment's reset

    @property
    def columns(self) -> dict[str, Any]:
        """All arrays by name."""
        return {name: value for name, value in self._asdict().items() if name != "seed"}


def logged(log_probs: Sequence[float]) -> dict[str, np.ndarray]:
    """The ``infos`` entry for the log-probabilities of an episode's actions; empty unless all are known, that is, not
    NaN."""
    column = np.array(log_probs, np.float32)
    return {LOG_PROB_INFO: column} if len(column) and np.isfinite(column).all() else {}
