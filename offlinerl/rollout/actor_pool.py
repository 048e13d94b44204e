"""Processes that act for an agent that learns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from offlinerl.agents.base import Agent
from offlinerl.data.episode import Episode
from offlinerl.envs.make import make, spec_of
from offlinerl.rollout.collector import RECENT, Interaction
from offlinerl.types import Transition
from offlinerl.util.errors import UserError

DEATHS = 3
"""Deaths of a worker over the same order after which it is not replaced any more."""


class Lost(Exception):
    """A worker will not answer, for it died."""


class Ended(NamedTuple):
    """An episode and where it ended."""

    t: int
    s: int
    e: int
    episode: Episode


class Delivery(NamedTuple):
    """What a worker answers to an order."""

    steps: Transition | None  # [T, S, E, ...] in its own lanes, None if it took none
    ended: list[Ended]
    state: dict[str, Any]  # the worker's own after the order, in numpy: another one can go on from it
    same: bool  # whether its environments had come back to where they stood when it was made


class Worker:
    """The environments of some lanes, and a copy of the agent that acts in them.

    Args:
        env: what to make; see ``offlinerl.envs.make``.
        seeds: S integers.
        lanes: E integers, which of a seed's environments are its own.
        obs_keys: parts of a ``Dict`` observation.
        agent: makes the agent.
        envs: environments of a seed in all workers together.
        first: see ``Interaction``.
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
        self.interaction = Interaction(env, seeds, lanes, obs_keys, first)
        self.interaction.on_episode = lambda s, e, episode: self.ended.append(Ended(self.t, s, e, episode))
        self.agent, self.envs, self.same = agent(), envs, True
        self.agent.explore_in(self.interaction.lanes)
        self.t, self.ended = 0, []
        if state is not None:
            state = in_tensors(state)
            self.agent.load_explore_state(state["explore"])
            self.same = self.interaction.load_state_dict(state["interaction"])

    def rollout(self, weights: Mapping[str, np.ndarray], steps: int, count: int, random: int = 0) -> Delivery:
        """Take ``count`` steps in every environment, the first ``random`` of them at random.

        Args:
            weights: of the agent, by name.
            steps: that each seed has taken so far, in all workers together.
        """
        self.agent.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        taken = []
        with one_thread():
            for self.t in range(count):
                self.agent.steps = steps + self.t * self.envs
                taken.append(self.interaction.step(self.agent, random=self.t < random))
        return self._deliver(Transition(*map(np.stack, zip(*taken, strict=True))))

    def cut(self) -> Delivery:
        """Truncate every episode under way."""
        self.t = 0
        self.interaction.cut()
        return self._deliver()

    def stand(self) -> Delivery:
        """Do nothing, and say so."""
        return self._deliver()

    def _deliver(self, steps: Transition | None = None) -> Delivery:
        ended, self.ended = self.ended, []
        state = dict(interaction=self.interaction.state_dict(), explore=self.agent.explore_state())
        return Delivery(steps, ended, in_numpy(state), self.same)

    def close(self) -> None:
        self.interaction.close()


class Place(Protocol):
    """Where workers live: how they are made, given orders and heard."""

    def hire(self, *about: Any) -> Any:
        """A new worker; for the arguments see ``Worker``."""

    def share(self, weights: Mapping[str, np.ndarray]) -> Any:
        """Weights in the form in which orders pass them on."""

    def order(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Have a worker call one of its methods; what to ``receive`` the answer by."""

    def receive(self, answer: Any) -> Delivery:
        """Wait for an answer. Raises ``Lost`` if the worker died."""

    def dismiss(self, worker: Any) -> None:
        """Be done with a worker, dead or alive."""

    def close(self) -> None:
        """Leave nothing behind."""


class InProcess:
    """Workers that take turns in this process: what they deliver is what those in any other place must."""

    def hire(self, *about: Any) -> Worker:
        return Worker(*about)

    def share(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return weights

    def order(self, worker: Worker, method: str, *arguments: Any) -> Delivery:
        return getattr(worker, method)(*arguments)

    def receive(self, answer: Delivery) -> Delivery:
        return answer

    def dismiss(self, worker: Worker) -> None:
        worker.close()

    def close(self) -> None:
        pass


class Crew:
    """N workers that share the environments of an ``Interaction``, in whose place it stands.

    What a worker has delivered is here, and its state with it. One that dies is replaced by another in that state,
    which gets the same order again and delivers the same, for an episode is its reset seed and its actions.

    The lanes are divided evenly and in order. A worker acts in its own ones together, and how many rows a matrix
    product has may change its last bit: so N belongs to what decides a run, and the place does not, as long as the
    processors are of one kind.

    Args:
        env: what to make; see ``offlinerl.envs.make``.
        seeds: S integers.
        lanes: E integers, which of a seed's environments to run.
        obs_keys: parts of a ``Dict`` observation.
        agent: makes an agent like the one that ``rollout`` is given; other processes call it too.
        workers: N.
        place: where they live.
        say: told of deaths.
        first: see ``Interaction``.

    Attributes:
        on_episode: called with s, e and every finished episode, by time, then by s and e.
        returns: of every seed's latest finished episodes.
        lengths: in steps, likewise.

    Raises:
        UserError: E is not a multiple of N; later, that a worker died again and again.
    """

    def __init__(
        self,
        env: Mapping[str, Any],
        seeds: Sequence[int],
        lanes: Sequence[int],
        obs_keys: Sequence[str] | None,
        agent: Callable[[], Agent],
        workers: int,
        place: Place,
        say: Callable[[str], None] = print,
        first: int = 0,
    ):
        self.seeds, self.lanes = tuple(seeds), tuple(lanes)
        if len(self.lanes) % workers:
            raise UserError(f"envs must be a multiple of {workers}, the number of workers, not {len(self.lanes)}")
        one = make(env, obs_keys)
        self.spec = spec_of(one)
        one.close()
        self.share = len(self.lanes) // workers  # environments of a seed for each
        self.about = [
            (env, self.seeds, self.lanes[e : e + self.share], obs_keys, agent, len(self.lanes), first)
            for e in range(0, len(self.lanes), self.share)
        ]
        self.place, self.say, self.first = place, say, first
        self.workers: list[Any] = []  # none until there is something to do
        self.states: list[dict[str, Any] | None] = [None] * workers  # as delivered last
        self.on_episode: Callable[[int, int, Episode], None] | None = None
        self.returns, self.lengths = ([deque(maxlen=RECENT) for _ in self.seeds] for _ in range(2))

    def rollout(self, agent: Agent, count: int, random: int = 0) -> Iterator[Transition]:
        """Take ``count`` steps in every environment, the first ``random`` of them at random. The agent's weights go
        out once."""
        weights = self.place.share({name: value.cpu().numpy() for name, value in agent.state_dict().items()})
        deliveries = self._all("rollout", weights, agent.steps, count, random)
        fields = zip(*(delivery.steps for delivery in deliveries), strict=True)
        steps = Transition(*(np.concatenate(field, 2) for field in fields))  # [T, S, E, ...]
        ended = self._ended(deliveries)
        for t in range(count):
            while ended and ended[0].t == t:
                self._finish(ended.popleft())
            yield Transition(*(field[t] for field in steps))

    def cut(self) -> None:
        """Truncate every episode under way, for nothing follows."""
        for ended in self._ended(self._all("cut")):
            self._finish(ended)

    def _all(self, method: str, *arguments: Any) -> list[Delivery]:
        """Order the same of every worker, and wait for all of them."""
        try:
            if not self.workers:
                self.workers = [self._hire(w) for w in range(len(self.states))]
            answers = [self.place.order(worker, method, *arguments) for worker in self.workers]
            deliveries = [self._receive(w, answer, method, *arguments) for w, answer in enumerate(answers)]
        except BaseException:
            self._dismiss()  # some are ahead of their states
            raise
        self.states = [delivery.state for delivery in deliveries]
        return deliveries

    def _hire(self, w: int) -> Any:
        return self.place.hire(*self.about[w], self.states[w])

    def _receive(self, w: int, answer: Any, method: str, *arguments: Any) -> Delivery:
        deaths = 0
        while True:
            try:
                delivery = self.place.receive(answer)
            except Lost as error:
                deaths += 1
                if deaths == DEATHS:
                    raise UserError(f"worker {w} died {deaths} times in a row: {error}") from error
                self.say(f"worker {w} died; another goes on from what it delivered last")
                self.place.dismiss(self.workers[w])
                self.workers[w] = self._hire(w)
                answer = self.place.order(self.workers[w], method, *arguments)
                continue
            if deaths and not delivery.same:
                self.say("the simulator does not repeat itself here: the episodes under way begin again")
            return delivery

    def _ended(self, deliveries: Sequence[Delivery]) -> deque[Ended]:
        """The episodes that ended, in order, by lane instead of a worker's own."""
        ended = [one._replace(e=w * self.share + one.e) for w, from_ in enumerate(deliveries) for one in from_.ended]
        return deque(sorted(ended, key=lambda one: one[:3]))

    def _finish(self, ended: Ended) -> None:
        _, s, e, episode = ended
        self.returns[s].append(float(np.cumsum(episode.rewards)[-1]))  # in the order in which they were paid
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
        unknown = np.full((len(self.seeds), self.share), before)
        return np.concatenate([state["interaction"][name] if state else unknown for state in self.states], 1)

    def state_dict(self) -> dict[str, Any]:
        """Where every environment stands; see ``Interaction.state_dict``."""
        recent = dict(returns=[list(of) for of in self.returns], lengths=[list(of) for of in self.lengths])
        return dict(workers=in_tensors(self.states), **recent)

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Come back to a saved state, of as many workers, by playing the actions again.

        Returns:
            Whether every environment showed the same observations as before; see ``Interaction.load_state_dict``.
        """
        self._dismiss()
        self.states = in_numpy(state["workers"])
        for name in ("returns", "lengths"):
            setattr(self, name, [deque(recent, maxlen=RECENT) for recent in state[name]])
        return all(delivery.same for delivery in self._all("stand"))

    def _dismiss(self) -> None:
        for worker in self.workers:
            self.place.dismiss(worker)
        self.workers = []

    def close(self) -> None:
        """Let the workers go. Any later order makes new ones."""
        self._dismiss()
        self.place.close()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, as a worker does that has one core: sums are the same wherever it is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_numpy(tree: Any) -> Any:
    """A copy with arrays in place of tensors, which travel faster."""
    return tree_map(lambda x: x.cpu().numpy().copy() if isinstance(x, Tensor) else x, tree)


def in_tensors(tree: Any) -> Any:
    """A copy with tensors in place of arrays."""
    return tree_map(lambda x: torch.tensor(x) if isinstance(x, np.ndarray) else x, tree)
