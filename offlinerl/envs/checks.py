"""What an environment must keep to, checked when one is made and at every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from offlinerl import spaces
from offlinerl.types import UserError

Step = tuple[np.ndarray, float, bool, bool, Mapping[str, Any]]


def name_of(env: gym.Env) -> str:
    """What an environment is called."""
    return env.spec.id if env.spec else type(env.unwrapped).__name__


def unbounded(space: gym.Space) -> np.ndarray:
    """``[A]`` bool, where the bounds of a vector's space are infinite, or the largest numbers that its dtype has."""
    if not isinstance(space, gym.spaces.Box):
        return np.zeros(0, bool)
    if space.dtype.kind == "f":
        largest = np.finfo(space.dtype).max / 2
    else:
        largest = np.iinfo(space.dtype).max if space.dtype.itemsize >= 4 else np.inf
    low, high = (np.abs(side.astype(np.float64)) for side in (space.low, space.high))
    return ~((low < largest) & (high < largest))


def require_sound(env: gym.Env, action: Any) -> None:
    """Reset an environment, as it is before its observations are made into vectors, and step it once.

    Args:
        env: to be closed afterwards.
        action: as it takes it.

    Raises:
        UserError: it does not answer as Gymnasium's environments do.
    """
    name, space = name_of(env), env.observation_space
    answer = _call(name, "reset", lambda: env.reset(seed=0))
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping)):
        raise UserError(
            f"{name}: reset must return the observation and a dictionary, not {_described(answer)}; it has the"
            " interface of the old gym: update it, or wrap it in shimmy's GymV21CompatibilityV0"
        )
    _require_observation(name, "reset", space, answer[0])
    answer = _call(name, "step", lambda: env.step(action))
    if not (isinstance(answer, tuple) and len(answer) == 5 and isinstance(answer[4], Mapping)):
        raise UserError(
            f"{name}: step must return the observation, the reward, terminated, truncated and a dictionary, not"
            f" {_described(answer)}; update it to Gymnasium's interface"
        )
    _require_observation(name, "step", space, answer[0])
    for what, value in zip(("reward", "terminated", "truncated"), answer[1:4], strict=True):
        one(name, what, value)


def _call(name: str, method: str, call: Any) -> Any:
    try:
        return call()
    except UserError:
        raise
    except Exception as error:  # it is a user's own code
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise UserError(f"{name}: its {method} fails when it is tried ({type(error).__name__}: {reason})") from error


def _described(answer: Any) -> str:
    return f"{len(answer)} values" if isinstance(answer, tuple) else f"one {type(answer).__name__}"


def _require_observation(name: str, method: str, space: gym.Space, observation: Any) -> None:
    for path, leaf in spaces.parts(space).items():
        where = f"{name}: the observation of {method}" + (f", in its part {path!r}," if path else "")
        try:
            value = np.asarray(spaces.child(observation, path))
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"{where} is missing; its observation_space promises it") from error
        if value.dtype.kind not in "biuf":
            raise UserError(f"{where} is no array of numbers but {_described(observation)}")
        if leaf.shape is not None and value.shape != leaf.shape:
            raise UserError(f"{where} has the shape {value.shape}, and its observation_space {leaf.shape}; mend either")
        if not np.isfinite(value).all():
            raise UserError(f"{where} is not finite; mend the environment")


def one(name: str, what: str, value: Any) -> float:
    """A number, which may come as an array of one.

    Raises:
        UserError: it is none.
    """
    try:
        return float(np.asarray(value).item())
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: its {what} is {value!r}, where one number is due; mend the environment") from error


def plain(name: str, answer: Step, steps: int, seed: int | None) -> Step:
    """What a step returned, its numbers as plain ones.

    Args:
        name: of the environment.
        answer: of its ``step``.
        steps: of the episode, with this one.
        seed: that the episode was reset with.

    Raises:
        UserError: the observation or the reward is not finite.
    """
    obs, reward, terminated, truncated, info = answer
    if type(reward) is not float:
        reward = one(name, "reward", reward)
    if not (np.isfinite(reward) and np.isfinite(obs).all()):
        what = "observation" if np.isfinite(reward) else "reward"
        raise UserError(
            f"{name} gives a {what} that is not finite in step {steps} of the episode that was reset with seed {seed};"
            " mend the environment"
        )
    if type(terminated) is not bool:
        terminated = bool(one(name, "terminated", terminated))
    if type(truncated) is not bool:
        truncated = bool(one(name, "truncated", truncated))
    return obs, reward, terminated, truncated, info
