"""Episodes of policies: random actions, trained policies, and what leads through mazes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from offlinerl.agents import checkpoint
from offlinerl.agents.base import Agent
from offlinerl.data.episode import Episode
from offlinerl.data.journal import Journal
from offlinerl.envs.make import Pool
from offlinerl.learning.rng import EnvStreams
from offlinerl.recipes.antmaze import Navigator, relabelled
from offlinerl.recipes.pointmaze import Controller
from offlinerl.recipes.recipe import Recipe, environment, policy_file
from offlinerl.rollout.collector import Recording, reset_seed
from offlinerl.rollout.loop import EnvironmentLoop
from offlinerl.rollout.policy import Noisy, Policy, Uniform
from offlinerl.util.trees import tree_map


def play(recipe: Recipe, lanes: Sequence[int], steps: int, journal: Journal, going: Callable[[], bool]) -> None:
    """Add to a journal what it lacks of the episodes of some environments, which are stepped side by side.

    An episode depends on the recipe, its environment and its number there, and on how many environments there are:
    other sizes of a batch round otherwise. It does not depend on what was in the journal.

    Args:
        recipe: of a dataset.
        lanes: E numbers, which of the recipe's environments they are.
        steps: of every environment, after which it begins no further episode.
        journal: of episodes of these environments.
        going: asked before every step; False leaves off.
    """
    E = len(lanes)
    pool = _pool(json.dumps(environment(recipe), sort_keys=True), E, *recipe.get("obs_keys", ()))
    policy = policy_of(recipe, pool, lanes)
    loop = EnvironmentLoop(pool, 1, lambda s, e, number: reset_seed(recipe["seed"], lanes[e], number))
    done = {episode.seed: len(episode.rewards) for episode in journal}
    numbers, taken = np.zeros((1, E), int), np.zeros((1, E), int)
    for e in range(E):
        while (seed := loop.reset_seed(0, e, numbers[0, e])) in done:
            numbers[0, e] += 1
            taken[0, e] += done[seed]
    recordings: dict[int, Recording] = {}
    while going():
        where = ~loop.playing & (taken < steps)
        if where.any():
            for i, shown in loop.begin(where, numbers, policy).items():
                recordings[i] = Recording(shown)
        if not loop.playing.any():
            return
        step = loop.step(policy, recipe.get("explore", False))
        for i, (obs, reward, terminated, truncated, _) in step.answers.items():
            taken[0, i] += 1
            recordings[i].append(step.applied[0, i], obs, reward, terminated, truncated)
            if terminated or truncated:
                episode = recordings[i].episode(pool.action_space, loop.reset_seed(0, i, numbers[0, i]))
                journal.append(_finished(recipe, episode))
                numbers[0, i] += 1


def order(recipe: Recipe, lanes: Sequence[int], journal: Journal) -> list[int]:
    """The episodes of a journal, by their places in it: those of one environment after those of another."""
    places = {episode.seed: place for place, episode in enumerate(journal)}
    found = []
    for lane in lanes:
        number = 0
        while (seed := reset_seed(recipe["seed"], lane, number)) in places:
            found.append(places[seed])
            number += 1
    return found


def policy_of(recipe: Recipe, pool: Pool, lanes: Sequence[int]) -> Policy:
    """What acts in a recipe's environments."""
    seeds, kind = (recipe["seed"],), recipe["kind"]
    if kind == "random":
        return Uniform(pool.spec, EnvStreams(seeds, lanes, "random"))
    if kind == "controller":
        return Controller(pool.envs, EnvStreams(seeds, lanes, "noise"), recipe["noise"])
    agent = _agent(str(policy_file(recipe))).acting_in(lanes)
    agent.seeds = seeds  # whatever it was trained with: its exploration belongs to the recipe
    agent.explore_in(lanes)
    if kind == "navigator":
        return Navigator(agent, pool.envs, recipe["noise"], recipe["explore"], lanes)
    if noise := recipe.get("noise"):
        return Noisy(agent, noise, pool.spec, EnvStreams(seeds, lanes, "noise"))
    return agent


def _finished(recipe: Recipe, episode: Episode) -> Episode:
    """As it is stored: numbers in 32 bits, as all that learns sees them."""
    if "goal" in recipe:
        episode = relabelled(episode, np.array(recipe["goal"]))

    def single(leaf: np.ndarray) -> np.ndarray:
        return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf

    return episode._replace(observations=tree_map(single, episode.observations), rewards=single(episode.rewards))


@cache
def _pool(env: str, size: int, *obs_keys: str) -> Pool:
    return Pool(json.loads(env), size, obs_keys or None, threads=1)


@cache
def _agent(path: str) -> Agent:
    return checkpoint.load_agent(Path(path))
