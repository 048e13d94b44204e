"""Steps several environments side by side without false transitions."""

from __future__ import annotations

import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import gymnasium as gym
import numpy as np

from offlinerl.envs import checks, spaces
from offlinerl.envs.make import limit_of, make, native, native_action, plain, spec_of
from offlinerl.util.cores import cores
from offlinerl.util.errors import ActingFailed, UserError
from offlinerl.util.trees import Tree

WORTHWHILE = 1e-3
"""Seconds of work below which threads are not tried, because torch's own threads may still be spinning on their
cores."""

AGAIN = 1000
"""Rounds after which the slower way, with or without threads, is tried for three more; it may have been slow only
because the machine was busy."""


class Pool:
    """Several environments of ``make``, stepped side by side, by threads where that proves faster, as it does if a
    simulator releases Python's lock.

    Environments are reset only on request, so a next observation is always the true one.

    Args:
        env: what to make; for this, ``obs_keys`` and ``render_mode`` see ``make``.
        size: number of environments.
        threads: maximum number; by default the number of cores.
    """

    def __init__(
        self,
        env: Mapping[str, Any],
        size: int,
        obs_keys: Sequence[str] | None = None,
        render_mode: str | None = None,
        threads: int | None = None,
    ):
        require_sound(env, obs_keys)
        self.envs = [make(env, obs_keys, render_mode) for _ in range(size)]
        self.spec, self.action_space = spec_of(self.envs[0]), self.envs[0].action_space
        self.stack = env.get("stack", 1)
        self.name, self._shape = spaces.name_of(self.envs[0]), spaces.shapes(self.envs[0].observation_space)
        self._low, self._high = np.float32(self.spec.action_low), np.float32(self.spec.action_high)
        self._seeds: dict[int, int] = {}
        self._taken = [0] * size
        self._workers = min(size, threads or cores())
        self._threads = ThreadPoolExecutor(self._workers)
        self._seconds = {threads: deque([0.0], maxlen=5) for threads in (False, True)}  # per job in the latest rounds
        self._rounds = 0

    def reset(self, seeds: Mapping[int, int]) -> dict[int, Tree]:
        """Resets the environments numbered by the keys, with the values as seeds. Returns their observations.

        Raises:
            ActingFailed: an environment fails, or an observation is not finite.
        """
        return self._each(self._reset, seeds)

    def step(self, actions: Mapping[int, np.ndarray]) -> dict[int, tuple]:
        """Steps the environments numbered by the keys. Returns what each ``step`` returned, with plain Python numbers.

        Raises:
            ActingFailed: an environment fails, or an observation or a reward is not finite.
        """
        space, given = self.action_space, list(actions.values())
        if isinstance(space, gym.spaces.Discrete):
            taken = [native_action(space, action) for action in given]
        else:  # all at once, which is much faster
            taken = native_action(space, np.array(given)) if given else given
        return self._each(self._step, dict(zip(actions, taken, strict=True)))

    def _reset(self, i: int, seed: int) -> Tree:
        self._seeds[i], self._taken[i] = seed, 0
        return checks.observation(self.envs[i].reset(seed=seed)[0], self._shape)

    def _step(self, i: int, action: np.ndarray | int) -> checks.Step:
        self._taken[i] += 1
        return checks.plain(self.envs[i].step(action), self._shape)

    def _try(self, method: Callable[[int, Any], Any], i: int, given: Any) -> Any:
        try:
            return method(i, given)
        except UserError:
            raise
        except Exception as error:  # user code may raise anything
            raise self.blamed(i, error) from error

    def blamed(self, i: int, error: Exception) -> ActingFailed:
        """The error to raise for an error of environment i in its latest step or reset."""
        step = self._taken[i]
        when = f"in step {step} of the episode that was" if step else "when it is"
        when = f"{when} reset with seed {self._seeds[i]}"
        if isinstance(error, checks.Unsound):
            return ActingFailed(f"{self.name} {error} {when}; fix the environment")
        return ActingFailed(f"{self.name} fails {when} ({checks.described(error)}); --debug shows where")

    @property
    def endless(self) -> bool:
        """Whether its episodes have no time limit."""
        return limit_of(self.envs[0]) is None

    def applied(self, action: np.ndarray) -> np.ndarray:
        """An agent's actions ``[..., A]`` as they are applied: within their bounds, and rounded if the environment
        takes integers."""
        if self.spec.num_actions:
            return action
        inside = np.minimum(np.maximum(action, self._low), self._high)
        return np.rint(inside) if self.spec.whole else inside

    def _each(self, method: Callable[[int, Any], Any], given: Mapping[int, Any]) -> dict[int, Any]:
        threads = self._with_threads(len(given))
        began = time.perf_counter()
        if threads:
            items = list(given.items())
            shares = [items[w :: self._workers] for w in range(self._workers)]
            done = self._threads.map(lambda share: [(i, self._try(method, i, value)) for i, value in share], shares)
            pairs = dict(pair for share in done for pair in share)
            found = {i: pairs[i] for i in given}  # in the same order with and without threads
        else:
            found = {i: self._try(method, i, value) for i, value in given.items()}
        self._seconds[threads].append((time.perf_counter() - began) / max(len(given), 1))
        return found

    def _with_threads(self, jobs: int) -> bool:
        """Whether to use threads for this number of jobs."""
        if self._workers == 1 or jobs < 2:
            return False
        alone = statistics.median(self._seconds[False])
        if jobs * alone < WORTHWHILE:
            return False
        self._rounds += 1
        return (statistics.median(self._seconds[True]) < alone) != (self._rounds % AGAIN < 3)

    def close(self) -> None:
        """Close every environment, also if one of them fails to.

        Raises:
            UserError: one fails.
        """
        self._threads.shutdown(cancel_futures=True)
        with ExitStack() as each:
            for env in self.envs:
                each.callback(checks.close, env)


_TRIED: dict[str, gym.envs.registration.EnvSpec | None] = {}
"""What was registered for an environment when it was found to be sound."""


def require_sound(env: Mapping[str, Any], obs_keys: Sequence[str] | None) -> None:
    """Tries an environment, once per process, in an instance of its own, so that nothing is left of the trial."""
    key, registered = json.dumps([plain(env), obs_keys]), gym.registry.get(env.get("id"))
    if "factory" not in env and key in _TRIED and _TRIED[key] is registered:
        return
    with checks.closing(make(env, obs_keys)) as made:
        spec = spec_of(made)
        middle = native_action(made.action_space, np.zeros(1) if spec.num_actions else spec.action_mid)
        checks.require_sound(native(made), middle, obs_keys)
    _TRIED[key] = registered
