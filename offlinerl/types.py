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

if TYPE_CHECKING:  # it takes seconds to load, and much can be said to a user before
    import gymnasium
    from torch import Tensor

Metrics = dict[str, "Tensor"]
"""Named tensors of shape ``[S]``: one value a seed, left on the device until they are logged."""


class Batch(NamedTuple):
    """Transitions. Truncation keeps ``discount`` and sets ``last``: whether to bootstrap and whether the
    trajectory goes on are two independent columns, so that a timeout cannot be mistaken for a terminal state.

    Observations are trees: a vector ``[S, B, O]``, an image ``[S, B, H, W, C]``, or a dictionary of such.
    """

    obs: Tensor  # [S, B, O]
    action: Tensor  # [S, B, A]
    reward: Tensor  # [S, B]  n-step discounted sum
    discount: Tensor  # [S, B]  gamma^n * (1 - terminated)
    next_obs: Tensor  # [S, B, O]
    last: Tensor  # [S, B]  terminated or truncated
    weight: Tensor | None = None  # [S, B]  importance weight, at most 1; None where every row counts the same
    next_action: Tensor | None = None  # [S, B, A]  of next_obs, if asked for; where none is known, `last` is 1


class Window(NamedTuple):
    """Steps of episodes. Where an episode is over, its last step is repeated and the mask is 0."""

    obs: Tensor  # [S, B, T, O]
    action: Tensor  # [S, B, T, A]  in units of [-1, 1]; a discrete one is its number
    reward: Tensor  # [S, B, T]
    to_go: Tensor  # [S, B, T]  undiscounted sum of the rewards from here to the episode's end
    step: Tensor  # [S, B, T] int64, from 0 where the episode begins
    mask: Tensor  # [S, B, T]  1 or 0


class Transition(NamedTuple):
    """One step of every environment, in numpy. ``next_obs`` is the true successor, also where an episode ends."""

    obs: np.ndarray  # [S, E, O]
    action: np.ndarray  # [S, E, A]  in units of [-1, 1]; a discrete one is its number
    reward: np.ndarray  # [S, E]
    terminated: np.ndarray  # [S, E] bool
    next_obs: np.ndarray  # [S, E, O]
    last: np.ndarray  # [S, E] bool, terminated or truncated


class Leaf(NamedTuple):
    """A part of an observation, a vector or an image."""

    path: str  # outer/inner; "" if it is the whole observation
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Spec:
    """What an agent needs to know of a task to build its networks, as plain data, so that a checkpoint may hold it.

    Attributes:
        obs: the leaves of an observation; O, a number, for a float32 vector.
        action_dim: A, the number of action dimensions.
        action_low: lower bound of every action dimension, A numbers.
        action_high: upper bound of every action dimension, A numbers.
        num_actions: how many discrete actions there are, each given by its number from 0 on with A = 1; 0 if actions
            are vectors.
        first_action: what the environment calls the discrete action 0.
        latent: by what an agent sees images, if by an encoder that was learnt before: the name of its layers, its
            latents, and the channels of a frame.
        whole: whether the environment takes vectors of whole numbers, which actions are rounded to.
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
        """Of a checkpoint, which may be an older version's, with ``obs_dim`` alone."""
        obs = state.pop("obs", None) or state.pop("obs_dim")
        vars(self).update(vars(Spec(obs, **state)))

    @classmethod
    def of(cls, observation: gymnasium.Space, action: gymnasium.Space) -> Spec:
        """Of two spaces: a ``Box`` or a dictionary of them, and a ``Box`` with bounds or a ``Discrete``. Images keep
        their uint8, and all else is float32."""
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
        """Whether an observation is an image, or has one in it."""
        return any(len(leaf.shape) > 1 for leaf in self.obs)

    @property
    def obs_dim(self) -> int:
        """O, the numbers of an observation that is one vector.

        Raises:
            UserError: it is not.
        """
        if not self.is_vector:
            listed = ", ".join(f"{leaf.path or 'an image'} {list(leaf.shape)}" for leaf in self.obs)
            instead = "choose parts with --obs-keys" if self.obs[0].path else "take an agent that sees images"
            raise UserError(f"observations must be one vector here, not {listed}; {instead}")
        return self.obs[0].shape[0]

    @property
    def action_mid(self) -> np.ndarray:
        """Middle of the actions' bounds, ``[A]`` float32."""
        return (np.asarray(self.action_high, np.float32) + np.asarray(self.action_low, np.float32)) / 2

    @property
    def action_half(self) -> np.ndarray:
        """Half the width of the actions' bounds, ``[A]`` float32: the environment's units of one of ours."""
        return (np.asarray(self.action_high, np.float32) - np.asarray(self.action_low, np.float32)) / 2

    def in_unit(self, action: np.ndarray) -> np.ndarray:
        """The environment's actions ``[..., A]`` in units of [-1, 1], with zeros in dimensions whose bounds are equal;
        a discrete action is its number from 0 on."""
        if self.num_actions:
            return action - self.first_action
        half = self.action_half
        return (action - self.action_mid) / np.where(half > 0, half, np.float32(1))
