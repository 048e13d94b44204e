"""The types every part of the toolkit speaks, and the letters used for their axes.

Shape glossary, the same everywhere:

====  ==========================
K     updates in a block
S     seeds
N     critics
B     batch
E     environments
T     time
O     observation dimensions
A     action dimensions
====  ==========================

The batch axis is the last one of a scalar: a reward is ``[S, B]``, an observation ``[S, B, O]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # it takes seconds to load, and much can be said to a user before
    from torch import Tensor

Metrics = dict[str, "Tensor"]
"""Named tensors of shape ``[S]``: one value a seed, left on the device until they are logged."""


class Batch(NamedTuple):
    """Transitions. Truncation keeps ``discount`` and sets ``last``: whether to bootstrap and whether the
    trajectory goes on are two independent columns, so that a timeout cannot be mistaken for a terminal state.
    """

    obs: Tensor  # [S, B, O]
    action: Tensor  # [S, B, A]
    reward: Tensor  # [S, B]  n-step discounted sum
    discount: Tensor  # [S, B]  gamma^n * (1 - terminated)
    next_obs: Tensor  # [S, B, O]
    last: Tensor  # [S, B]  terminated or truncated


class WeightedBatch(NamedTuple):
    """A ``Batch`` drawn by priority, with the weights that make up for it."""

    obs: Tensor  # [S, B, O]
    action: Tensor  # [S, B, A]
    reward: Tensor  # [S, B]
    discount: Tensor  # [S, B]
    next_obs: Tensor  # [S, B, O]
    last: Tensor  # [S, B]
    weight: Tensor  # [S, B]  importance weight, at most 1


class Transition(NamedTuple):
    """One step of every environment, in numpy. ``next_obs`` is the true successor, also where an episode ends."""

    obs: np.ndarray  # [S, E, O]
    action: np.ndarray  # [S, E, A]  in units of [-1, 1]; a discrete one is its number
    reward: np.ndarray  # [S, E]
    terminated: np.ndarray  # [S, E] bool
    next_obs: np.ndarray  # [S, E, O]
    last: np.ndarray  # [S, E] bool, terminated or truncated


@dataclass(frozen=True)
class Spec:
    """What an agent needs to know of a task to build its networks.

    Attributes:
        obs_dim: O, the number of observation dimensions.
        action_dim: A, the number of action dimensions.
        action_low: lower bound of every action dimension, A numbers.
        action_high: upper bound of every action dimension, A numbers.
        num_actions: how many discrete actions there are, each given by its number with A = 1; 0 if actions are
            vectors.
    """

    obs_dim: int
    action_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    num_actions: int = 0

    @property
    def action_mid(self) -> np.ndarray:
        """Middle of the actions' bounds, ``[A]`` float32."""
        return (np.asarray(self.action_high, np.float32) + np.asarray(self.action_low, np.float32)) / 2

    def in_unit(self, action: np.ndarray) -> np.ndarray:
        """Actions ``[..., A]`` of the environment in units of [-1, 1]; a dimension whose bounds are equal has zeros."""
        half = self.action_half
        return (action - self.action_mid) / np.where(half > 0, half, np.float32(1))

    @property
    def action_half(self) -> np.ndarray:
        """Half the width of the actions' bounds, ``[A]`` float32: the environment's units of one of ours."""
        return (np.asarray(self.action_high, np.float32) - np.asarray(self.action_low, np.float32)) / 2
