"""One episode, as environments give it and files keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from offlinerl.data.columns import LOG_PROB_INFO

Arrays = np.ndarray | dict[str, Any]
"""An array, or a dictionary of them where the space is a ``Dict``."""


class Episode(NamedTuple):
    """One episode of T steps. There is one observation more than there are actions: the last one is the
    successor of the last action."""

    observations: Arrays  # [T + 1, ...]
    actions: np.ndarray  # [T, ...]
    rewards: np.ndarray  # [T]
    terminations: np.ndarray  # [T] bool
    truncations: np.ndarray  # [T] bool
    infos: Mapping[str, Any] = {}
    seed: int | None = None  # what the environment was reset with

    @property
    def columns(self) -> dict[str, Any]:
        """All arrays by name."""
        return {name: value for name, value in self._asdict().items() if name != "seed"}


def logged(log_probs: Sequence[float]) -> dict[str, np.ndarray]:
    """What the ``infos`` of an episode say of its actions' log-probabilities: nothing unless all are known, of which
    NaN is the opposite."""
    column = np.array(log_probs, np.float32)
    return {LOG_PROB_INFO: column} if len(column) and np.isfinite(column).all() else {}
