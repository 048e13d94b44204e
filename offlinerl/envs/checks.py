"""What an environment must comply with, checked when it is made and at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np

from offlinerl.envs import spaces
from offlinerl.util.errors import UserError, first_line
from offlinerl.util.trees import Tree

Step = tuple[Tree, float, bool, bool, Mapping[str, Any]]

RESET = "reset must return the observation and a dictionary"
STEP = "step must return the observation, the reward, terminated, truncated and a dictionary"

NO_BOUND = 2**31 - 1
"""The absolute value of an action bound must be below this; the largest 32-bit numbers stand for no bound."""

LARGEST = np.finfo(np.float32).max


class Unsound(Exception):
    """An environment returned something invalid; the message continues after its name."""


def unbounded(space: gym.Space) -> np.ndarray:
    """``[A]`` bool, where the bounds of a vector space are infinite, NaN, or so large that they stand for none."""
    if not isinstance(space, gym.spaces.Box):
        return np.zeros(0, bool)
    largest = min(NO_BOUND, float(np.finfo(space.dtype).max) / 2) if space.dtype.kind == "f" else NO_BOUND
    low, high = (np.abs(side.astype(np.float64)) for side in (space.low, space.high))
    return ~((low < largest) & (high < largest))


def require_sound(env: gym.Env, action: Any, obs_keys: Sequence[str] | None = None) -> None:
    """Resets an environment, before its observations are made into vectors, and steps it once with one of its own
    actions.

    Raises:
        UserError: it does not follow Gymnasium's interface.
    """
    name, space = spaces.name_of(env), env.observation_space
    answer = _call(name, "reset", RESET, lambda: env.reset(seed=0))
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping)):
        raise UserError(
            f"{name}: {RESET}, not {_described(answer)}; it has the interface of the old gym: update it, or wrap it in"
            " shimmy's GymV21CompatibilityV0"
        )
    _require_observation(name, "reset", space, answer[0], obs_keys)
    answer = _call(name, "step", STEP, lambda: env.step(action))
    if not _is_step(answer):
        raise UserError(f"{name}: {STEP}, not {_described(answer)}; update it to Gymnasium's interface")
    _require_observation(name, "step", space, answer[0], obs_keys)
    try:
        one("reward", answer[1])
        flag("terminated", answer[2])
        flag("truncated", answer[3])
    except Unsound as error:
        raise UserError(f"{name} {error}; fix the environment") from error


def _call(name: str, method: str, duty: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except UserError:
        raise
    except Exception as error:  # user code may raise anything
        raise UserError(f"{name}: its {method} fails ({described(error)}); {duty}") from error


def close(env: gym.Env) -> None:
    """Closes an environment.

    Raises:
        UserError: that fails.
    """
    try:
        env.close()
    except Exception as error:  # user code may raise anything
        raise UserError(f"{spaces.name_of(env)}: its close fails ({described(error)}); fix the environment") from error


@contextmanager
def closing(env: gym.Env) -> Iterator[gym.Env]:
    """Closes an environment at the end of the ``with``; see ``close``."""
    try:
        yield env
    finally:
        close(env)


def described(error: Exception) -> str:
    """An error in user code, in one line."""
    return f"{type(error).__name__}: {first_line(error)}"


def _is_step(answer: Any) -> bool:
    if not (isinstance(answer, tuple) and len(answer) == 5):
        return False
    return type(answer[4]) is dict or isinstance(answer[4], Mapping)  # the first is faster, and this runs at every step


def _described(answer: Any) -> str:
    return f"{len(answer)} values" if isinstance(answer, tuple) else f"one {type(answer).__name__}"


def _require_observation(
    name: str, method: str, space: gym.Space, observation: Any, keys: Sequence[str] | None
) -> None:
    for path, leaf in spaces.parts(space, keys).items():
        where = f"{name}: the observation of {method}" + (f", in its part {path!r}," if path else "")
        try:
            value = np.asarray(spaces.child(observation, path))
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"{where} is missing, although its observation_space has it") from error
        if value.dtype.kind not in "biuf":
            raise UserError(f"{where} is not an array of numbers but has the dtype {value.dtype}; fix the environment")
        if leaf.shape is not None and value.shape != leaf.shape:
            raise UserError(f"{where} has the shape {value.shape}, but its observation_space {leaf.shape}; fix either")
        if not np.isfinite(value).all():
            raise UserError(f"{where} is not finite; fix the environment")


def one(what: str, value: Any) -> float:
    """A number, possibly given as an array of one element.

    Raises:
        Unsound: it is not a number.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biufO":
            raise TypeError
        return float(array.item())
    except (TypeError, ValueError, OverflowError) as error:
        raise Unsound(f"does not give a single number: its {what} is {value!r}") from error


def flag(what: str, value: Any) -> bool:
    """A truth value, possibly given as an array of one element.

    Raises:
        Unsound: it is neither true nor false.
    """
    if value is True or value is False or isinstance(value, np.bool_):
        return bool(value)
    number = one(what, value)
    if number not in (0, 1):
        raise Unsound(f"gives neither true nor false: its {what} is {value!r}")
    return bool(number)


def observation(value: Tree, shape: Tree) -> Tree:
    """An observation, checked to have leaves of the given shapes.

    Raises:
        Unsound: a shape differs, or a number is not finite or too large for float32.
    """
    if type(value) is np.ndarray and value.shape == shape and _is_small(value):
        return value  # the usual case, tested first because this runs at every step
    if isinstance(shape, Mapping):
        return {path: observation(value[path], inner) for path, inner in shape.items()}
    if np.shape(value) != shape:
        raise Unsound(f"gives an observation of shape {np.shape(value)} instead of {shape}")
    if getattr(value, "dtype", None) == np.uint8:
        return value
    if not (np.abs(value) <= LARGEST).all():  # also catches NaN
        raise Unsound(f"gives an observation that is {_fault(value)}")
    return value


def _is_small(value: np.ndarray) -> bool:
    """Whether a vector certainly has only finite numbers that fit, by its squared length: the fastest test."""
    return value.ndim == 1 and value.dtype.kind == "f" and value.dot(value) < 1e30


def plain(answer: Any, shape: Tree) -> Step:
    """What a step returned, with plain Python numbers; ``shape`` is that of an observation, or of its leaves.

    Raises:
        Unsound: something is missing, has another shape, or is not finite.
    """
    if not _is_step(answer):
        raise Unsound(f"gives {_described(answer)} where {STEP}")
    obs, reward, terminated, truncated, info = answer
    reward = float(reward) if isinstance(reward, float) else one("reward", reward)  # np.float64 is one too
    if not abs(reward) <= float(LARGEST):
        raise Unsound(f"gives a reward that is {_fault(reward)}")
    return observation(obs, shape), reward, flag("terminated", terminated), flag("truncated", truncated), info


def _fault(value: Any) -> str:
    return "too large for 32 bits" if np.isfinite(value).all() else "not finite"
