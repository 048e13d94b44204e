"""Acting in environments: S seeds in E environments each, in which an episode is its reset seed and its actions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from offlinerl.agents.base import Agent
from offlinerl.data.episode import Episode
from offlinerl.envs.make import Pool, native_action
from offlinerl.learning.rng import Lanes
from offlinerl.types import Transition
from offlinerl.util.errors import UserError

RECENT = 100
"""Finished episodes whose mean return is shown."""


class Interaction:
    """Environments that S policies act in, E for each.

    The reset seed of an episode follows from its seed, its lane and its number. With the actions taken since it
    is all that must be kept to come back to where an episode stood, whatever the simulator.

    Args:
        env: what to make; see ``offlinerl.envs.make``.
        seeds: S integers.
        lanes: E integers, which of a seed's environments to run here.
        obs_keys: parts of a ``Dict`` observation.
        first: number of every environment's first episode, where those before it were collected earlier.

    Attributes:
        on_episode: called with s, e and every finished episode, as the environment showed it.
        episodes: ``[S, E]`` the number of the episode under way in every environment.
        returns: of every seed's latest finished episodes.
        lengths: in steps, likewise.
    """

    def __init__(
        self,
        env: Mapping[str, Any],
        seeds: Sequence[int],
        lanes: Sequence[int] = (0,),
        obs_keys: Sequence[str] | None = None,
        first: int = 0,
    ):
        S, E = len(seeds), len(lanes)
        self.seeds, self.lanes = tuple(seeds), tuple(lanes)
        self.pool = Pool(env, S * E, obs_keys)
        self.spec = self.pool.spec
        self.on_episode: Callable[[int, int, Episode], None] | None = None
        self.warm_up = Lanes(seeds, lanes, "warm-up")
        self.episodes = np.full((S, E), first - 1)
        self.began = np.ones((S, E), bool)
        self.done: Set[int] = frozenset()
        self.obs = np.zeros((S, E, self.spec.obs_dim), np.float32)
        self.tracks = [_Track() for _ in range(S * E)]
        self.returns, self.lengths = ([deque(maxlen=RECENT) for _ in range(S)] for _ in range(2))
        self.action_mid, self.action_half = self.spec.action_mid, self.spec.action_half

    def rollout(self, agent: Agent, count: int, random: int = 0) -> Iterator[Transition]:
        """Take ``count`` steps in every environment, the first ``random`` of them at random."""
        for i in range(count):
            yield self.step(agent, random=i < random)

    def step(self, agent: Agent | None, random: bool = False) -> Transition:
        """Take a step in every environment, after resetting those whose episode has ended.

        Args:
            agent: acts with exploration; None acts uniformly at random.
            random: act at random instead of the agent, who is told of new episodes all the same.
        """
        S, E = self.began.shape
        self._begin(agent)
        obs = self.obs
        if random or agent is None:
            action = self._random()
        else:
            with torch.no_grad():
                action = agent.act(torch.from_numpy(obs).to(agent.device), explore=True).cpu().numpy()  # [S, E, A]
            require_finite(agent, action, range(S))
        # What is out of bounds is learnt from as it was chosen, but the environment and the data get what is in them.
        applied = self.pool.applied(action)
        stepped = self.pool.step({i: applied[i // E, i % E] for i in range(S * E)})
        self.obs = np.empty_like(obs)
        reward, terminated, last = np.empty((S, E), np.float32), np.empty((S, E), bool), np.empty((S, E), bool)
        for i, (seen, paid, over, cut, _) in stepped.items():
            s, e = i // E, i % E
            self.obs[s, e], reward[s, e], terminated[s, e], last[s, e] = seen, paid, over, over or cut
            self.tracks[i].append(applied[s, e], seen, paid, over, cut)
            if last[s, e]:
                self._finish(s, e)
        self.began = last
        unit = action if self.spec.num_actions else self.spec.in_unit(action)
        return Transition(obs, unit, reward, terminated, self.obs, last)

    def _begin(self, agent: Agent | None) -> None:
        if not self.began.any():
            return
        S, E = self.began.shape
        for s, e in zip(*self.began.nonzero(), strict=True):
            self.episodes[s, e] += 1
            while self.done and self.reset_seed(s, e) in self.done:
                self.episodes[s, e] += 1
        self.warm_up.begin(self.began, self.episodes)
        if agent is not None:
            agent.begin(self.began, self.episodes)
        self.obs = self.obs.copy()  # the replay may still hold the last transition
        for i, seen in self._reset(np.flatnonzero(self.began)).items():
            self.obs[i // E, i % E] = seen
            self.tracks[i] = _Track(seen)

    def skip(self, reset_seeds: Set[int]) -> None:
        """Leave out the episodes with these reset seeds, which are there already."""
        self.done = reset_seeds

    def _reset(self, numbers: Sequence[int]) -> dict[int, np.ndarray]:
        E = len(self.lanes)
        return self.pool.reset({int(i): self.reset_seed(i // E, i % E) for i in numbers})

    def reset_seed(self, s: int, e: int) -> int:
        """What the episode under way in an environment was reset with."""
        sequence = np.random.SeedSequence([self.seeds[s], self.lanes[e], int(self.episodes[s, e])])
        return int(sequence.generate_state(1)[0])

    def _random(self) -> np.ndarray:
        uniform = self.warm_up.uniform(0, 1, (self.spec.action_dim,)).numpy()
        if self.spec.num_actions:
            return np.minimum(np.floor(uniform * self.spec.num_actions), self.spec.num_actions - 1)
        return self.action_mid + self.action_half * (2 * uniform - 1)

    def _finish(self, s: int, e: int) -> None:
        track = self.tracks[s * len(self.lanes) + e]
        self.returns[s].append(track.paid)
        self.lengths[s].append(len(track.rewards))
        if self.on_episode is not None:
            self.on_episode(s, e, track.episode(self.pool.action_space, self.reset_seed(s, e)))

    def paid(self) -> np.ndarray:
        """``[S, E]`` rewards of every episode up to the latest step, which may have ended it."""
        return np.float32([track.paid for track in self.tracks]).reshape(self.began.shape)

    def cut(self) -> None:
        """Truncate every episode under way, for nothing follows."""
        E = len(self.lanes)
        for i in np.flatnonzero(~self.began):
            self.tracks[i].truncations[-1] = True
            self._finish(i // E, i % E)
        self.began[:] = True

    def state_dict(self) -> dict[str, Any]:
        """Where every environment stands, as the number of its episode and the actions taken in it."""
        return dict(
            episodes=torch.from_numpy(self.episodes.copy()),
            began=torch.from_numpy(self.began.copy()),
            obs=torch.from_numpy(self.obs.copy()),
            actions=[torch.from_numpy(np.array(track.actions, np.float32)) for track in self.tracks],
            warm_up=self.warm_up.state_dict(),
            returns=[list(recent) for recent in self.returns],
            lengths=[list(recent) for recent in self.lengths],
        )

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Come back to a saved state by playing the actions again.

        Returns:
            Whether every environment showed the same observations as before. One that did not begins its next
            episode, so that nothing false is learnt from.
        """
        self.episodes, self.began = state["episodes"].numpy().copy(), state["began"].numpy().copy()
        self.warm_up.load_state_dict(state["warm_up"])
        for name in ("returns", "lengths"):
            setattr(self, name, [deque(recent, maxlen=RECENT) for recent in state[name]])
        self.obs, E = np.zeros_like(self.obs), len(self.lanes)
        under_way = np.flatnonzero(~self.began)
        for i, seen in self._reset(under_way).items():
            self.tracks[i] = _Track(seen)
            for action in state["actions"][i].numpy():
                stepped = self.pool.step({i: action})[i]
                self.tracks[i].append(action, *stepped[:4])
                if stepped[2] or stepped[3]:
                    break
            self.obs[i // E, i % E] = self.tracks[i].observations[-1]
        same = (self.obs == state["obs"].numpy()).all(-1) | self.began  # [S, E]
        self.began |= ~same
        return bool(same.all())

    def close(self) -> None:
        self.pool.close()


def require_finite(agent: Agent, action: np.ndarray, which: Iterable[int]) -> None:
    """Raises a UserError if one of those policies takes actions, of ``[S, E, A]``, that are no numbers: an environment
    would be blamed for what it makes of them."""
    for s in which:
        if not np.isfinite(action[s]).all():
            raise UserError(
                f"the policy of seed {agent.seeds[s]} returns actions that are not finite: its training"
                " diverged; lower the learning rate or raise beta"
            )


def mean_of(recent: Iterable[Iterable[float]]) -> float | None:
    """Mean over seeds and their latest episodes; None before there are any."""
    values = [value for of_seed in recent for value in of_seed]
    return sum(values) / len(values) if values else None


class _Track:
    """An episode so far."""

    def __init__(self, first: np.ndarray | None = None):
        self.observations = [np.array(first)]
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.paid = 0.0
        self.terminations: list[bool] = []
        self.truncations: list[bool] = []

    def append(self, action: np.ndarray, seen: np.ndarray, paid: float, over: bool, cut: bool) -> None:
        self.actions.append(action)
        self.observations.append(np.array(seen))  # some environments show the same array again
        self.rewards.append(float(paid))
        self.paid += float(paid)
        self.terminations.append(bool(over))
        self.truncations.append(bool(cut))

    def episode(self, space: gym.Space, seed: int) -> Episode:
        actions = np.stack(self.actions)
        discrete = isinstance(space, gym.spaces.Discrete)
        return Episode(
            np.stack(self.observations),
            actions[:, 0].astype(space.dtype) if discrete else native_action(space, actions),
            np.array(self.rewards),
            np.array(self.terminations),
            np.array(self.truncations),
            seed=seed,
        )
