"""Collects experience: policies act in environments, and every step and every episode is passed on."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from offlinerl.agents.base import Agent
from offlinerl.data.episode import Episode, logged
from offlinerl.envs.make import native_action
from offlinerl.envs.pixels import newest
from offlinerl.envs.pool import Pool
from offlinerl.learning.rng import EnvStreams
from offlinerl.rollout.loop import EnvironmentLoop, put, zeros
from offlinerl.rollout.policy import Policy, Uniform
from offlinerl.types import Transition
from offlinerl.util.trees import Tree, tree_leaves, tree_map

RECENT = 100
"""Latest finished episodes over which the displayed mean return is taken."""


class Collector:
    """Environments in which S policies act, E for each, one episode after another.

    The reset seed of an episode is determined by its seed, its lane and its number. Together with the actions taken
    since, it is all that must be saved to restore an unfinished episode, whatever the simulator.

    Args:
        env: what to make; see ``offlinerl.envs.make``.
        seeds: S integers.
        lanes: E integers, which of a seed's environments run here.
        obs_keys: parts of a ``Dict`` observation.
        first: number of every environment's first episode, if earlier ones were collected before.

    Attributes:
        on_episode: called with s, e and every finished episode, as the environment returned it, frame by frame.
        kept: whether episodes are for a dataset, which needs log-probabilities and no episodes of a diverged policy.
        done: reset seeds of episodes to skip, because they are finished already, and how many have each.
        uniform: the uniformly random policy.
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
        self.loop = EnvironmentLoop(self.pool, S, self.reset_seed)
        self.loop.episodes[:] = first - 1
        self.on_episode: Callable[[int, int, Episode], None] | None = None
        self.kept = True
        self.uniform = Uniform(self.spec, EnvStreams(seeds, lanes, "warm-up"))
        self.done = Counter[int]()
        self.recordings: dict[int, Recording] = {}  # of unfinished episodes, by number in the pool
        self.returns, self.lengths = ([deque(maxlen=RECENT) for _ in range(S)] for _ in range(2))

    @property
    def episodes(self) -> np.ndarray:
        """``[S, E]`` the number of the latest episode in every environment."""
        return self.loop.episodes

    @property
    def began(self) -> np.ndarray:
        """``[S, E]`` whether the next step begins an episode."""
        return ~self.loop.playing

    def rollout(self, agent: Agent, count: int, random: int = 0) -> Iterator[Transition]:
        """Takes ``count`` steps in every environment, the first ``random`` of them at random."""
        for i in range(count):
            yield self.step(agent, random=i < random)

    def step(self, policy: Policy, random: bool = False) -> Transition:
        """Takes a step in every environment, after resetting those whose episode has ended.

        Args:
            policy: acts, and explores.
            random: act at random instead; the policy's ``begin`` is still called.
        """
        self._begin(policy)
        kept = self.kept and self.on_episode is not None
        self.loop.diverging = "raise" if kept else "idle"
        step = self.loop.step(self.uniform if random else policy, explore=True, log_prob=kept)
        for i, (obs, reward, terminated, truncated, _) in step.answers.items():
            s, e = self.loop.lane(i)
            self.recordings[i].append(step.applied[s, e], newest(obs, self.pool.stack), reward, terminated, truncated)
            self.recordings[i].log_probs.append(np.nan if step.log_prob is None else float(step.log_prob[s, e]))
            if terminated or truncated:
                self._finish(i)
        action = step.action if self.spec.num_actions else self.spec.in_unit(step.action)
        last = step.terminated | step.truncated
        return Transition(step.obs, action, step.reward.astype(np.float32), step.terminated, step.next_obs, last)

    def _begin(self, policy: Policy) -> None:
        if len(self.loop.lanes) == self.loop.playing.size:
            return
        where = self.began
        episodes = self.episodes + where
        for s, e in zip(*where.nonzero(), strict=True) if self.done else ():
            while self.done[seed := self.reset_seed(s, e, episodes[s, e])]:
                self.done[seed] -= 1  # each only once: another episode may have the same seed
                episodes[s, e] += 1
        for i, obs in self.loop.begin(where, episodes, self.uniform, policy).items():
            self.recordings[i] = self._recording(obs)

    def _recording(self, obs: Tree) -> Recording:
        return Recording(newest(obs, self.pool.stack), self.kept and self.on_episode is not None)

    def reset_seed(self, s: int, e: int, episode: int) -> int:
        """The reset seed of the episode with this number."""
        return reset_seed(self.seeds[s], self.lanes[e], int(episode))

    def _finish(self, i: int) -> None:
        recording, (s, e) = self.recordings[i], self.loop.lane(i)
        self.returns[s].append(recording.total)
        self.lengths[s].append(len(recording.rewards))
        if self.on_episode is not None:
            reset_seed = self.reset_seed(s, e, self.episodes[s, e])
            self.on_episode(s, e, recording.episode(self.pool.action_space, reset_seed))

    def totals(self) -> np.ndarray:
        """``[S, E]`` sum of the rewards of every episode up to the latest step, which may have ended it."""
        totals = [self.recordings[i].total for i in range(self.began.size)]
        return np.float32(totals).reshape(self.began.shape)

    def truncate(self) -> None:
        """Truncates every unfinished episode, because no steps follow."""
        for i in map(int, np.flatnonzero(self.loop.playing)):
            self.recordings[i].truncations[-1] = True
            self._finish(i)
        self.loop.play(np.zeros_like(self.loop.playing))

    def state_dict(self) -> dict[str, Any]:
        """The state of every environment, as the number of its episode and the actions taken in it."""
        actions = [self.recordings[i].actions if i in self.recordings else [] for i in range(self.began.size)]
        log_probs = [self.recordings[i].log_probs if i in self.recordings else [] for i in range(self.began.size)]
        return dict(
            episodes=torch.from_numpy(self.episodes.copy()),
            began=torch.from_numpy(self.began),
            obs=tree_map(lambda x: torch.from_numpy(x.copy()), self.loop.obs),
            actions=[torch.from_numpy(np.array(of_episode, np.float32)) for of_episode in actions],
            log_probs=[torch.tensor(of_episode, dtype=torch.float64) for of_episode in log_probs],
            warm_up=self.uniform.streams.state_dict(),
            returns=[list(recent) for recent in self.returns],
            lengths=[list(recent) for recent in self.lengths],
        )

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restores a saved state by replaying the actions.

        Returns:
            Whether every environment gave the same observations as before. One that did not begins its next episode, so
                that the agent learns from no false transition.
        """
        loop, began = self.loop, state["began"].cpu().numpy()  # a GPU run's tensors are on the GPU
        loop.episodes, loop.obs = state["episodes"].cpu().numpy().copy(), zeros(self.spec, loop.shape)
        self.uniform.streams.load_state_dict(state["warm_up"])
        for name in ("returns", "lengths"):
            setattr(self, name, [deque(recent, maxlen=RECENT) for recent in state[name]])
        for i, obs in loop.reset(~began).items():
            self.recordings[i] = recording = self._recording(obs)
            for action in state["actions"][i].cpu().numpy():
                obs, *outcome, _ = self.pool.step({i: action})[i]
                recording.append(action, newest(obs, self.pool.stack), *outcome)
                if recording.terminations[-1] or recording.truncations[-1]:
                    break
            unknown = [np.nan] * len(recording.actions)  # in checkpoints of older versions
            known = state["log_probs"][i].tolist() if "log_probs" in state else unknown
            recording.log_probs = known[: len(recording.actions)]
            put(loop.obs, loop.lane(i), obs)
        pairs = zip(tree_leaves(loop.obs), tree_leaves(state["obs"]), strict=True)
        differ = [(x != y.cpu().numpy()).reshape(*loop.shape, -1).any(-1) for (_, x), (_, y) in pairs]
        same = ~np.any(differ, 0) | began  # [S, E]
        loop.play(same & ~began)
        return bool(same.all())

    def close(self) -> None:
        self.pool.close()


def reset_seed(seed: int, lane: int, episode: int) -> int:
    """The reset seed of an episode, by its number in an environment of a seed."""
    return int(np.random.SeedSequence([seed, lane, episode]).generate_state(1)[0])


def shares(count: int, environments: tuple[int, int]) -> np.ndarray:
    """How many of ``count`` episodes each environment plays, ``[S, E]``. Each has a fixed number, because the first
    episodes to end anywhere would contain too many short ones."""
    whole, rest = divmod(count, int(np.prod(environments)))
    return whole + (np.arange(np.prod(environments)) < rest).reshape(environments)


def mean_of(recent: Iterable[Iterable[float]]) -> float | None:
    """Mean over seeds and their latest episodes; None if there are none yet."""
    values = [value for of_seed in recent for value in of_seed]
    return sum(values) / len(values) if values else None


class Recording:
    """An unfinished episode, as the environment returned it.

    Args:
        first: its first observation.
        whole: whether the complete episode will be needed, so that its observations are stored.
    """

    def __init__(self, first: Tree, whole: bool = True):
        self.whole = whole
        self.observations = [tree_map(np.array, first)]
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.log_probs: list[float] = []  # NaN if unknown
        self.total = 0.0
        self.terminations: list[bool] = []
        self.truncations: list[bool] = []

    def append(self, action: np.ndarray, obs: Tree, reward: float, terminated: bool, truncated: bool) -> None:
        self.actions.append(action)
        if self.whole:
            self.observations.append(tree_map(np.array, obs))  # copied, because some environments reuse the array
        self.rewards.append(float(reward))
        self.total += float(reward)
        self.terminations.append(bool(terminated))
        self.truncations.append(bool(truncated))

    def episode(self, space: gym.Space, seed: int) -> Episode:
        """The episode, with its actions in the environment's action space."""
        actions = np.stack(self.actions)
        discrete = isinstance(space, gym.spaces.Discrete)
        return Episode(
            tree_map(lambda *leaves: np.stack(leaves), *self.observations),
            actions[:, 0].astype(space.dtype) + space.start if discrete else native_action(space, actions),
            np.array(self.rewards),
            np.array(self.terminations),
            np.array(self.truncations),
            logged(self.log_probs),
            seed,
        )
