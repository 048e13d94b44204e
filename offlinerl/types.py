"""Types shared by the whole toolkit, and the letters that name tensor axes.

Shape letters, with the same meaning everywhere:

====  ==========================
K     updates in a block
S     seeds
N     critics
B     batch
E     environments
T     time
O     observation dimensions
F     features
A     action dimensions
====  ==========================

The batch axis is the last one of a scalar: a reward is ``[S, B]``, an observation ``[S, B, O]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from offlinerl.util.errors import UserError

if TYPE_CHECKING:  # importing it takes seconds, and many messages do not need it
    import gymnasium
    from torch import Tensor

Metrics = dict[str, "Tensor"]
"""Named tensors of shape ``[S]``: one value per seed, kept on the device until they are logged."""

ACTION_MARGIN = 1e-5
"""Actions in batches are clipped this far inside [-1, 1], as in the reference implementations of IQL and XQL."""


class Batch(NamedTuple):
    """A batch of transitions. A truncation keeps ``discount`` and sets ``last``: whether to bootstrap and whether the
    episode continues are two independent columns, so that a time limit cannot be mistaken for a terminal state.

    Observations are trees: a vector ``[S, B, O]``, an image ``[S, B, H, W, C]``, or a dictionary of these.
    """

    obs: Tensor  # [S, B, O]
    action: Tensor  # [S, B, A]
    reward: Tensor  # [S, B]  n-step discounted sum
    discount: Tensor  # [S, B]  gamma^n * (1 - terminated)
    next_obs: Tensor  # [S, B, O]
    last: Tensor  # [S, B]  terminated or truncated
    weight: Tensor | None = None  # [S, B]  importance weight, at most 1; None if all rows have equal weight
    next_action: Tensor | None = None  # [S, B, A]  taken in next_obs, if requested; where it is unknown, `last` is 1
    to_go: Tensor | None = None  # [S, B]  discounted return to go, if requested; -inf where the episode goes on


class Window(NamedTuple):
    """Windows of consecutive steps. Past the end of an episode, its last step is repeated and the mask is 0."""

    obs: Tensor  # [S, B, T, O]
    action: Tensor  # [S, B, T, A]  scaled to [-1, 1]; a discrete action is its index
    reward: Tensor  # [S, B, T]
    to_go: Tensor  # [S, B, T]  return to go: undiscounted sum of rewards to the end of the episode
    step: Tensor  # [S, B, T] int64, number of the step in its episode, from 0
    mask: Tensor  # [S, B, T]  1 or 0
    best: Tensor  # [S, B]  the highest return of an episode in the data
    largest: Tensor  # [S, B]  the largest absolute return to go in the data


class Transition(NamedTuple):
    """One step of every environment, in numpy. ``next_obs`` is the true next observation, even where an episode
    ends."""

    obs: np.ndarray  # [S, E, O]
    action: np.ndarray  # [S, E, A]  scaled to [-1, 1]; a discrete action is its index
    reward: np.ndarray  # [S, E]
    terminated: np.ndarray  # [S, E] bool
    next_obs: np.ndarray  # [S, E, O]
    last: np.ndarray  # [S, E] bool, terminated or truncated


class Leaf(NamedTuple):
    """One part of an observation: a vector or an image."""

    path: str  # outer/inner; "" if it is the whole observation
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Spec:
    """What an agent must know about a task to build its networks, as plain data that a checkpoint can hold.

    Attributes:
        obs: the leaves of an observation; may be given as the number O for one float32 vector.
        action_dim: A, the number of action dimensions.
        action_low: lower bound of every action dimension, A numbers.
        action_high: upper bound of every action dimension, A numbers.
        num_actions: the number of discrete actions, each given by its index from 0 with A = 1; 0 if actions are
            vectors.
        first_action: the environment's own number for the discrete action 0.
        latent: if the agent sees images through a pretrained encoder: the name of its layers, the number of its
            latents, and the channels of a frame.
        whole: whether the environment takes vectors of integers, to which actions are rounded.
    """

    obs: tuple[Leaf, ...]
    action_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    num_actions: int = 0
    first_action: int = 0
    latent: tuple[str, int, int] | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        leaves = [("", (self.obs,), "float32")] if isinstance(self.obs, int) else self.obs
        object.__setattr__(self, "obs", tuple(Leaf(path, tuple(shape), dtype) for path, shape, dtype in leaves))

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self), obs=tuple(map(tuple, self.obs)))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the state from a checkpoint; an older version's has only ``obs_dim``."""
        obs = state.pop("obs", None) or state.pop("obs_dim")
        vars(self).update(vars(Spec(obs, **state)))

    @classmethod
    def of(cls, observation: gymnasium.Space, action: gymnasium.Space) -> Spec:
        """The spec of an observation space, a ``Box`` or a dictionary of them, and an action space, a bounded ``Box``
        or a ``Discrete``. Images stay uint8; everything else is float32."""
        spaces = getattr(observation, "spaces", None) or {"": observation}
        obs = tuple(
            Leaf(path, tuple(space.shape), "uint8" if space.dtype == np.uint8 and len(space.shape) > 1 else "float32")
            for path, space in spaces.items()
        )
        if (count := getattr(action, "n", None)) is not None:
            return cls(obs, 1, (0.0,), (float(count - 1),), int(count), int(getattr(action, "start", 0)))
        low, high = (tuple(map(float, getattr(action, side))) for side in ("low", "high"))
        return cls(obs, len(low), low, high, whole=np.issubdtype(action.dtype, np.integer))

    @property
    def is_vector(self) -> bool:
        """Whether an observation is one vector."""
        return self.obs[0].path == "" and len(self.obs[0].shape) == 1

    @property
    def has_images(self) -> bool:
        """Whether an observation is an image or contains one."""
        return any(len(leaf.shape) > 1 for leaf in self.obs)

    @property
    def obs_dim(self) -> int:
        """O, the length of an observation that is one vector.

        Raises:
            UserError: the observation is not one vector.
        """
        if not self.is_vector:
            listed = ", ".join(f"{leaf.path or 'an image'} {list(leaf.shape)}" for leaf in self.obs)
            instead = "choose parts with --obs-keys" if self.obs[0].path else "use an agent that sees images"
            raise UserError(f"observations must be one vector here, not {listed}; {instead}")
        return self.obs[0].shape[0]

    @property
    def action_mid(self) -> np.ndarray:
        """Midpoint of the action bounds, ``[A]`` float32."""
        return (np.asarray(self.action_high, np.float32) + np.asarray(self.action_low, np.float32)) / 2

    @property
    def action_half(self) -> np.ndarray:
        """Half the width of the action bounds, ``[A]`` float32: what 1 in our scaled actions is in the environment's
        units."""
        return (np.asarray(self.action_high, np.float32) - np.asarray(self.action_low, np.float32)) / 2

    def in_unit(self, action: np.ndarray) -> np.ndarray:
        """The environment's actions ``[..., A]`` scaled to [-1, 1]. In a dimension whose bounds are equal, an action at
        these bounds becomes 0. A discrete action becomes its index from 0."""
        if self.num_actions:
            return action - self.first_action
        half = self.action_half
        return (action - self.action_mid) / np.where(half > 0, half, np.float32(1))
