"""Makes environments from plain descriptions, and steps several at once without false transitions."""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np

import offlinerl.envs  # noqa: F401  (registers our environments)
from offlinerl import spaces
from offlinerl.envs import robotics
from offlinerl.types import Spec, UserError


def make(
    env: Mapping[str, Any], obs_keys: Sequence[str] | None = None, render_mode: str | None = None, flat: bool = True
) -> gym.Env:
    """Make an environment whose observations are vectors; those of other spaces are encoded as
    ``gymnasium.spaces.flatten`` does.

    Args:
        env: ``{"id": ..., "kwargs": {...}}``, or ``{"spec": ...}`` with Gymnasium's JSON of a specification.
        obs_keys: the parts of a ``Dict`` observation, in order; all of them by default.
        render_mode: passed on if given.
        flat: False leaves its observations as they are, whatever they are.

    Raises:
        UserError: the environment is unknown, lacks a dependency, refuses its arguments, or shows images.
    """
    extra = {"render_mode": render_mode} if render_mode else {}
    try:
        if "spec" in env:
            made = gym.make(gym.envs.registration.EnvSpec.from_json(env["spec"]), **extra)
        else:
            if env["id"] not in gym.registry:
                gym.register_envs(robotics.load())
            made = gym.make(env["id"], **{**env.get("kwargs", {}), **extra}, disable_env_checker=True)
    except (gym.error.Error, ImportError, ValueError, TypeError) as error:
        name = env.get("id", "the dataset's environment")
        raise UserError(f"environment {name} cannot be made: {str(error).strip().splitlines()[0]}") from error
    return spaces.Flat(made, obs_keys) if flat and not spaces.is_vector(made.observation_space) else made


def specification(env: gym.Env) -> str:
    """What it takes to make an environment of ``make`` again, as Gymnasium's JSON; its observations are not made
    into vectors then, for only ``make`` knows how."""
    return unflattened(env).spec.to_json()


def unflattened(env: gym.Env) -> gym.Env:
    """An environment of ``make`` with its own observations."""
    while isinstance(env, spaces.Flat):
        env = env.env
    return env


def steps_allowed(env: Mapping[str, Any]) -> int | None:
    """The longest episode of an environment, which need not be made for that; None if nothing limits it.

    Args:
        env: see ``make``.
    """
    if "max_episode_steps" in env:
        return env["max_episode_steps"]
    if "spec" in env:
        return json.loads(env["spec"]).get("max_episode_steps")
    if "max_episode_steps" in env.get("kwargs", {}):
        return env["kwargs"]["max_episode_steps"]
    module, _, name = env["id"].rpartition(":")
    if module:
        with suppress(ImportError):  # ``make`` says so
            importlib.import_module(module)
    if name not in gym.registry:
        gym.register_envs(robotics.load())
    return gym.registry[name].max_episode_steps if name in gym.registry else None


def spec_of(env: gym.Env) -> Spec:
    """Shapes and bounds of a task.

    Raises:
        UserError: the observations are not vectors, or the actions neither bounded vectors nor numbers.
    """
    name = env.spec.id if env.spec else type(env.unwrapped).__name__
    obs, action = env.observation_space, env.action_space
    if not isinstance(obs, gym.spaces.Box) or len(obs.shape) != 1:
        raise UserError(f"{name} observes {obs}; agents here need vectors")
    if isinstance(action, gym.spaces.Discrete) and action.start == 0:
        return Spec(obs.shape[0], 1, (0.0,), (float(action.n - 1),), int(action.n))
    if not isinstance(action, gym.spaces.Box) or len(action.shape) != 1:
        raise UserError(f"{name} takes {action}; agents here need a vector or a number from 0 on")
    if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        raise UserError(f"{name} has unbounded actions; wrap it in RescaleAction")
    bounds = (tuple(map(float, side)) for side in (action.low, action.high))
    return Spec(obs.shape[0], action.shape[0], *bounds)


def native_action(spec: Spec, action: np.ndarray) -> np.ndarray | int:
    """An action ``[A]`` of an agent as the environment takes it."""
    return int(action[0]) if spec.num_actions else action


WORTHWHILE = 1e-3
"""Seconds of work from which handing it to threads pays; torch's own threads may still be spinning on their cores."""


class Pool:
    """Environments stepped side by side by threads, where that pays; simulators that release Python's lock use
    every core.

    Nothing is reset but on request, so a successor is always the true one.

    Args:
        env: what to make; see ``make``.
        size: how many.
        obs_keys: see ``make``.
    """

    def __init__(self, env: Mapping[str, Any], size: int, obs_keys: Sequence[str] | None = None):
        self.envs = [make(env, obs_keys) for _ in range(size)]
        self.spec = spec_of(self.envs[0])
        self._workers = min(size, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(self._workers)
        self._seconds = 0.0  # a job's, on average

    def reset(self, seeds: Mapping[int, int]) -> dict[int, np.ndarray]:
        """Reset the environments numbered by the keys with the seeds of the values; their observations."""
        return self._each({i: (lambda i=i, s=s: self.envs[i].reset(seed=s)[0]) for i, s in seeds.items()})

    def step(self, actions: Mapping[int, np.ndarray]) -> dict[int, tuple]:
        """Step the environments numbered by the keys; what each ``step`` returned."""
        spec = self.spec
        return self._each({i: (lambda i=i, a=a: self.envs[i].step(native_action(spec, a))) for i, a in actions.items()})

    def _each(self, jobs: Mapping[int, Any]) -> dict[int, Any]:
        if self._workers == 1 or len(jobs) * self._seconds < WORTHWHILE:
            began = time.perf_counter()
            done = {i: job() for i, job in jobs.items()}
            self._seconds += 0.1 * ((time.perf_counter() - began) / max(len(jobs), 1) - self._seconds)
            return done
        items = list(jobs.items())
        shares = [items[w :: self._workers] for w in range(self._workers)]
        done = self._threads.map(lambda share: [(i, job()) for i, job in share], shares)
        found = dict(pair for share in done for pair in share)
        return {i: found[i] for i in jobs}  # in one order, whether threads were at work or not

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for env in self.envs:
            env.close()
