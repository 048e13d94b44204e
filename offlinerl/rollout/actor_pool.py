"""Worker processes that act for a learning agent."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map as pytree_map

from offlinerl.agents.base import Agent
from offlinerl.data.episode import Episode
from offlinerl.envs.make import make, spec_of
from offlinerl.rollout.collector import RECENT, Collector
from offlinerl.types import Transition
from offlinerl.util.errors import ActingFailed, UserError
from offlinerl.util.threads import one_thread
from offlinerl.util.trees import tree_map

DEATHS = 3
"""Deaths of a worker in the same call after which it is no longer replaced."""


class Lost(Exception):
    """A worker has died and will not answer."""


class Ended(NamedTuple):
    """A finished episode, and the step, seed and environment where it ended."""

    t: int
    s: int
    e: int
    episode: Episode


class Delivery(NamedTuple):
    """A worker's answer to a call."""

    steps: Transition | None  # [T, S, E, ...] of its own lanes, None if it took none
    ended: list[Ended]
    state: dict[str, Any]  # of the worker afterwards, in numpy; another worker can continue from it
    same: bool  # whether its environments were restored exactly when it was created


class Worker:
    """The environments of some lanes, and a copy of the agent that acts in them.

    Args:
        env, seeds, obs_keys, first: see ``Collector``.
        lanes: E integers, which of a seed's environments it runs.
        agent: creates the agent.
        envs: environments per seed, in all workers together.
        state: of the worker that this one replaces.
    """

    def __init__(
        self,
        env: Mapping[str, Any],
        seeds: Sequence[int],
        lanes: Sequence[int],
        obs_keys: Sequence[str] | None,
        agent: Callable[[], Agent],
        envs: int,
        first: int = 0,
        state: Mapping[str, Any] | None = None,
    ):
        self.collector = Collector(env, seeds, lanes, obs_keys, first)
        self.collector.on_episode = lambda s, e, episode: self.ended.append(Ended(self.t, s, e, episode))
        self.agent, self.envs, self.same = agent(), envs, True
        self.agent.explore_in(self.collector.lanes)
        self.t, self.ended = 0, []
        if state is not None:
            state = in_tensors(state)
            self.agent.load_explore_state(state["explore"])
            self.same = self.collector.load_state_dict(state["interaction"])

    def rollout(
        self, weights: Mapping[str, np.ndarray], offline_updates: int, steps: int, count: int, random: int = 0,
        kept: bool = True,
    ) -> Delivery:  # fmt: skip
        """Takes ``count`` steps in every environment, the first ``random`` of them at random.

        Args:
            weights: of the agent, by name.
            offline_updates: of the agent.
            steps: taken by each seed so far, in all workers together.
            kept: see ``Collector``.
        """
        self.collector.kept = kept
        self.agent.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        self.agent.offline_updates = offline_updates
        taken = []
        with one_thread():
            for self.t in range(count):
                self.agent.steps = steps + self.t * self.envs
                taken.append(self.collector.step(self.agent, random=self.t < random))
        return self.report(tree_map(lambda *steps: np.stack(steps), *taken))

    def truncate(self) -> Delivery:
        """Truncates every unfinished episode."""
        self.t = 0
        self.collector.truncate()
        return self.report()

    def report(self, steps: Transition | None = None) -> Delivery:
        """Returns these steps, the finished episodes, and the state after them."""
        ended, self.ended = self.ended, []
        state = dict(interaction=self.collector.state_dict(), explore=self.agent.explore_state())
        return Delivery(steps, ended, in_numpy(state), self.same)

    def close(self) -> None:
        self.collector.close()


class Backend(Protocol):
    """Where workers run."""

    def start(self, *args: Any) -> Any: ...  # a new worker; for its arguments see ``Worker``
    def share(self, weights: Mapping[str, np.ndarray]) -> Any: ...  # weights in the form that ``submit`` takes
    def submit(self, worker: Any, method: str, *arguments: Any) -> Any: ...  # call a method; for ``receive``
    def receive(self, answer: Any) -> Delivery: ...  # wait for an answer; raises ``Lost`` if the worker died
    def stop(self, worker: Any) -> None: ...  # end a worker, dead or alive
    def close(self) -> None: ...  # free what the backend itself holds


class ActorPool:
    """N workers that share the environments of a ``Collector``, and replace it.

    The pool has what each worker has delivered, including its state. A worker that dies is replaced by one with that
    state, which repeats the call and delivers the same, because an episode is determined by its reset seed and its
    actions.

    The lanes are divided evenly and in order. A worker acts in all of its lanes at once, and the number of rows in a
    matrix product may change the last bit of a result: so N affects the results of a run, but the backend does not, as
    long as the processors are of one kind.

    Args:
        env, seeds, lanes, obs_keys, first: see ``Collector``.
        agent: creates an agent like the one passed to ``rollout``; also called in other processes.
        workers: N.
        backend: where they run.
        say: called with a message when a worker has died.

    Attributes:
        on_episode, returns, lengths: see ``Collector``; episodes are ordered by time, then by s and e.

    Raises:
        UserError: E is not a multiple of N; later, a worker died repeatedly.
    """

    def __init__(
        self,
        env: Mapping[str, Any],
        seeds: Sequence[int],
        lanes: Sequence[int],
        obs_keys: Sequence[str] | None,
        agent: Callable[[], Agent],
        workers: int,
        backend: Backend,
        say: Callable[[str], None] = print,
        first: int = 0,
    ):
        self.seeds, self.lanes = tuple(seeds), tuple(lanes)
        if len(self.lanes) % workers:
            raise UserError(f"envs must be a multiple of {workers}, the number of workers, not {len(self.lanes)}")
        one = make(env, obs_keys)
        self.spec = spec_of(one)
        one.close()
        self.envs_per_worker = len(self.lanes) // workers  # per seed
        self.worker_args = [
            (env, self.seeds, self.lanes[e : e + self.envs_per_worker], obs_keys, agent, len(self.lanes), first)
            for e in range(0, len(self.lanes), self.envs_per_worker)
        ]
        self.backend, self.say, self.first = backend, say, first
        self.workers: list[Any] = []  # none before the first call
        self.states: list[dict[str, Any] | None] = [None] * workers  # as delivered last
        self.on_episode: Callable[[int, int, Episode], None] | None = None
        self.returns, self.lengths = ([deque(maxlen=RECENT) for _ in self.seeds] for _ in range(2))

    def rollout(self, agent: Agent, count: int, random: int = 0) -> Iterator[Transition]:
        """Takes ``count`` steps in every environment, the first ``random`` of them at random. The agent's weights are
        sent once."""
        weights = self.backend.share({name: value.cpu().numpy() for name, value in agent.state_dict().items()})
        counts = agent.offline_updates, agent.steps, count, random
        deliveries = self._all("rollout", weights, *counts, self.on_episode is not None)
        of_workers = (delivery.steps for delivery in deliveries)
        steps = tree_map(lambda *lanes: np.concatenate(lanes, 2), *of_workers)  # [T, S, E, ...]
        ended = self._ended(deliveries)
        for t in range(count):
            while ended and ended[0].t == t:
                self._finish(ended.popleft())
            yield tree_map(lambda x, t=t: x[t], steps)

    def truncate(self) -> None:
        """Truncates every unfinished episode, because no steps follow."""
        for ended in self._ended(self._all("truncate")):
            self._finish(ended)

    def _all(self, method: str, *arguments: Any) -> list[Delivery]:
        """Makes the same call on every worker, and waits for all of them."""
        try:
            if not self.workers:
                self.workers = [self._start(w) for w in range(len(self.states))]
            answers = [self.backend.submit(worker, method, *arguments) for worker in self.workers]
            deliveries = [self._receive(w, answer, method, *arguments) for w, answer in enumerate(answers)]
        except BaseException:
            self._stop()  # some may be ahead of their saved states
            raise
        self.states = [delivery.state for delivery in deliveries]
        return deliveries

    def _start(self, w: int) -> Any:
        return self.backend.start(*self.worker_args[w], self.states[w])

    def _receive(self, w: int, answer: Any, method: str, *arguments: Any) -> Delivery:
        for deaths in itertools.count():
            try:
                delivery = self.backend.receive(answer)
            except Lost as error:
                if deaths + 1 == DEATHS:
                    raise ActingFailed(f"worker {w} died {DEATHS} times in a row: {error}") from error
                self.say(f"worker {w} died; another one continues from its last delivery")
                self.backend.stop(self.workers[w])
                self.workers[w] = self._start(w)
                answer = self.backend.submit(self.workers[w], method, *arguments)
            else:
                if deaths and not delivery.same:
                    self.say("the simulator is not reproducible here: the current episodes start again")
                return delivery

    def _ended(self, deliveries: Sequence[Delivery]) -> deque[Ended]:
        """The episodes that ended, in order, with lane numbers of the pool instead of each worker's own."""
        first = range(0, len(self.lanes), self.envs_per_worker)
        ended = [one._replace(e=e + one.e) for e, of in zip(first, deliveries, strict=True) for one in of.ended]
        return deque(sorted(ended, key=lambda one: one[:3]))

    def _finish(self, ended: Ended) -> None:
        _, s, e, episode = ended
        self.returns[s].append(float(np.cumsum(episode.rewards)[-1]))  # summed in the order of the steps
        self.lengths[s].append(len(episode.rewards))
        if self.on_episode is not None:
            self.on_episode(s, e, episode)

    @property
    def episodes(self) -> np.ndarray:
        """``[S, E]`` the number of the latest episode in every environment."""
        return self._known("episodes", self.first - 1)

    @property
    def began(self) -> np.ndarray:
        """``[S, E]`` whether the next step begins an episode."""
        return self._known("began", True)

    def _known(self, name: str, before: int | bool) -> np.ndarray:
        unknown = np.full((len(self.seeds), self.envs_per_worker), before)
        return np.concatenate([state["interaction"][name] if state else unknown for state in self.states], 1)

    def state_dict(self) -> dict[str, Any]:
        """The state of every environment; see ``Collector.state_dict``."""
        recent = dict(returns=[list(of) for of in self.returns], lengths=[list(of) for of in self.lengths])
        return dict(workers=in_tensors(self.states), **recent)

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restores a saved state, of as many workers, by replaying the actions.

        Returns:
            Whether every environment gave the same observations as before; see ``Collector.load_state_dict``.
        """
        self._stop()
        self.states = in_numpy(state["workers"])
        for name in ("returns", "lengths"):
            setattr(self, name, [deque(recent, maxlen=RECENT) for recent in state[name]])
        return all(delivery.same for delivery in self._all("report"))

    def _stop(self) -> None:
        for worker in self.workers:
            self.backend.stop(worker)
        self.workers = []

    def close(self) -> None:
        """Stops the workers. A later call starts new ones."""
        self._stop()
        self.backend.close()


def in_numpy(tree: Any) -> Any:
    """A copy with arrays instead of tensors, which are faster to send."""
    return pytree_map(lambda x: x.cpu().numpy().copy() if isinstance(x, Tensor) else x, tree)


def in_tensors(tree: Any) -> Any:
    """A copy with tensors instead of arrays."""
    return pytree_map(lambda x: torch.tensor(x) if isinstance(x, np.ndarray) else x, tree)
