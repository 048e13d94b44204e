"""Episodes of policies: random actions, trained policies, and controllers that lead through mazes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from offlinerl.agents import checkpoint
from offlinerl.agents.base import Agent
from offlinerl.agents.sac import SAC
from offlinerl.data.episode import Episode, logged
from offlinerl.data.journal import Journal
from offlinerl.envs.make import native_action
from offlinerl.envs.pool import Pool
from offlinerl.envs.quick import quicken
from offlinerl.learning.rng import EnvStreams
from offlinerl.recipes import antmaze, manipulation
from offlinerl.recipes.pointmaze import Controller
from offlinerl.recipes.recipe import Recipe, environment, policy_file
from offlinerl.rollout.collector import reset_seed
from offlinerl.rollout.loop import EnvironmentLoop, Step
from offlinerl.rollout.policy import Noisy, Policy, Uniform
from offlinerl.util.trees import tree_leaves, tree_map

RELABELLED = dict(navigator=antmaze.relabelled, oracle=manipulation.relabelled)
"""By kind of recipe, what gives an episode the rewards for a goal that it was not played for."""

STEPS_KEPT = 1000
"""Number of steps, of all environments, from which on those that no unfinished episode needs are dropped."""


def play(recipe: Recipe, lanes: Sequence[int], steps: int, journal: Journal, going: Callable[[], bool]) -> None:
    """Adds to a journal the episodes it lacks of some environments, which are stepped side by side.

    An episode depends on the recipe, its environment and its number there, and on the number of environments, because
    other batch sizes round differently. It does not depend on what was in the journal.

    Args:
        recipe: of a dataset.
        lanes: E numbers, which of the recipe's environments they are.
        steps: of every environment, after which it begins no further episode.
        journal: of episodes of these environments.
        going: polled before every step; False stops.
    """
    E = len(lanes)
    pool = _pool(json.dumps(environment(recipe), sort_keys=True), E, *recipe.get("obs_keys", ()))
    policy = policy_of(recipe, pool, lanes)
    loop = EnvironmentLoop(pool, 1, lambda s, e, number: reset_seed(recipe["seed"], lanes[e], number))
    done = _by_seed(journal, lambda place, episode: len(episode.rewards))
    numbers, taken = np.zeros((1, E), int), np.zeros((1, E), int)
    for e in range(E):
        while lengths := done[loop.reset_seed(0, e, numbers[0, e])]:
            numbers[0, e] += 1
            taken[0, e] += lengths.pop(0)
    begun, past = np.zeros(E, int), Past()  # the index in past of an episode's first step
    while going():
        where = ~loop.playing & (taken < steps)
        if where.any():
            loop.begin(where, numbers, policy)
            begun[where[0]] = past.size
        if not loop.playing.any():
            return
        taken += loop.playing
        step = loop.step(policy, recipe.get("explore", False), log_prob=not _afterwards(policy))
        past.add(step)
        for i in np.flatnonzero(step.terminated[0] | step.truncated[0]).tolist():
            seed = loop.reset_seed(0, i, numbers[0, i])
            journal.append(_episode(recipe, past.of(i, begun[i]), seed, loop, policy))
            numbers[0, i] += 1
        if past.size >= STEPS_KEPT and (old := begun[loop.playing[0]].min(initial=past.size)) > past.size // 2:
            past.forget(old)  # at least half of them, because the others are moved
            begun -= old


class Past:
    """The latest steps of one policy in E environments, from which finished episodes are cut out.

    Attributes:
        size: number of steps.
        steps: these steps and room for others, ``[room, E, ...]`` in every column, without next observations.
        shown: ``[1, E, ...]`` the next observations of the latest step.
    """

    def __init__(self) -> None:
        self.size, self.shown = 0, None
        self.steps: Step | None = None

    def add(self, step: Step) -> None:
        """Appends a step ``[1, E]``."""
        self.shown = step.next_obs
        step = step._replace(action=None, next_obs=None, answers={})
        if self.steps is None:
            self.steps = tree_map(lambda row: np.empty((STEPS_KEPT, *row.shape[1:]), row.dtype), step)
        elif self.size == len(self.steps.reward):
            self.steps = tree_map(lambda column: np.concatenate([column, np.empty_like(column)]), self.steps)

        def write(column: np.ndarray, row: np.ndarray) -> None:
            column[self.size] = row[0]

        tree_map(write, self.steps, step)
        self.size += 1

    def of(self, i: int, begun: int) -> Step:
        """The steps of an environment from the step ``begun`` on: T steps, with T + 1 observations in ``obs``."""
        own = tree_map(lambda column: column[begun : self.size, i], self.steps)
        return own._replace(obs=tree_map(lambda rows, last: np.concatenate([rows, last[:, i]]), own.obs, self.shown))

    def forget(self, count: int) -> None:
        """Drops the first ``count`` steps."""
        self.size -= count
        for _, column in tree_leaves(self.steps):
            column[: self.size] = column[count : count + self.size]


def order(recipe: Recipe, lanes: Sequence[int], journal: Journal) -> list[int]:
    """The episodes of a journal, as indices into it, in the order of their environments and numbers."""
    places = _by_seed(journal, lambda place, episode: place)
    found = []
    for lane in lanes:
        number = 0
        while of_seed := places[reset_seed(recipe["seed"], lane, number)]:
            found.append(of_seed.pop(0))
            number += 1
    return found


def _by_seed(journal: Journal, fact: Callable[[int, Episode], int]) -> defaultdict[int | None, list[int]]:
    """A fact about every episode, grouped by reset seed, which two episodes may share."""
    found = defaultdict[int | None, list[int]](list)
    for place, episode in enumerate(journal):
        found[episode.seed].append(fact(place, episode))
    return found


def policy_of(recipe: Recipe, pool: Pool, lanes: Sequence[int]) -> Policy:
    """The policy that acts in a recipe's environments."""
    seeds, kind = (recipe["seed"],), recipe["kind"]
    if kind == "random":
        return Uniform(pool.spec, EnvStreams(seeds, lanes, "random").ahead())
    if kind == "oracle":
        return manipulation.Oracle(pool.envs, recipe["seed"], lanes, recipe["noise"])
    if kind == "controller":
        return Controller(pool.envs, EnvStreams(seeds, lanes, "noise").ahead(), recipe["noise"])
    agent = _agent(str(policy_file(recipe))).acting_in(lanes)
    agent.seeds = seeds  # not those it was trained with: the recipe decides its exploration
    agent.explore_in(lanes)
    if isinstance(agent, SAC):
        agent.explore_rng.ahead()  # it only draws one vector per step
    if kind == "navigator":
        return antmaze.Navigator(agent, pool.envs, recipe["noise"], recipe["explore"], lanes)
    if (noise := recipe.get("noise", 0.0)) or not recipe.get("explore"):  # then it samples no action
        return Noisy(agent, noise, pool.spec, EnvStreams(seeds, lanes, "noise").ahead())
    return agent


def _episode(recipe: Recipe, steps: Step, seed: int, loop: EnvironmentLoop, policy: Policy) -> Episode:
    """What an environment returned, with float32 rewards, as agents see them; see ``Past.of``."""
    episode = Episode(
        steps.obs,
        native_action(loop.pool.action_space, steps.applied),
        steps.reward.astype(np.float32),
        steps.terminated.copy(),
        steps.truncated.copy(),
        seed=seed,
    )
    log_probs = steps.log_prob
    if _afterwards(policy):
        acted_on = tree_map(lambda leaf: torch.from_numpy(leaf[None, :-1]), steps.obs)  # [1, T, ...]
        known = loop.log_prob(policy, acted_on, steps.applied[None], recipe.get("explore", False))
        log_probs = None if known is None else known[0]
    episode = episode._replace(infos={} if log_probs is None else logged(log_probs))
    return RELABELLED[recipe["kind"]](episode, recipe["goal"]) if "goal" in recipe else episode


def _afterwards(policy: Policy) -> bool:
    """Whether a policy's log-probabilities depend on observations and actions alone, so that those of an episode can be
    computed at once, which is faster."""
    return isinstance(policy, Agent | Uniform)


@cache
def _pool(env: str, size: int, *obs_keys: str) -> Pool:
    pool = Pool(json.loads(env), size, obs_keys or None, threads=1)
    quicken(pool.envs)
    return pool


@cache
def _agent(path: str) -> Agent:
    return checkpoint.load_agent(Path(path))
