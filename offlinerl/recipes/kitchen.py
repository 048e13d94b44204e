"""Demonstrations of Franka Kitchen: a script carries out plans that a recipe draws at random."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offlinerl.data.episode import Episode
from offlinerl.envs import kitchen
from offlinerl.envs.pool import Pool
from offlinerl.recipes.demonstrator import KITCHEN, KitchenDemonstrator
from offlinerl.recipes.recipe import Recipe, environment
from offlinerl.rollout.collector import Recording
from offlinerl.rollout.loop import EnvironmentLoop
from offlinerl.rollout.policy import Policy
from offlinerl.util.errors import UserError
from offlinerl.util.trees import Tree


def demonstration(env: Mapping[str, Any], seed: int, number: int, noise: float) -> Episode:
    """The ``number``-th episode of a script that does the environment's tasks.

    Args:
        env: what to make; see ``offlinerl.envs.make``.
        seed: determines the episode, together with the number.
        noise: standard deviation of Gaussian noise on the actions.

    Raises:
        UserError: there is no script for the environment or for one of its tasks.
    """
    pool = _pool(json.dumps(env, sort_keys=True))
    made = pool.envs[0]
    tasks = getattr(made.unwrapped, "tasks", ()) if isinstance(made.unwrapped, kitchen.Kitchen) else ()
    if not tasks or not set(tasks) <= set(KITCHEN):
        unknown = f"task {min(set(tasks) - set(KITCHEN))!r}" if tasks else f"environment {made.spec.id}"
        raise UserError(f"there is no script for the {unknown}; scripted knows {kitchen.ENV_ID}: {', '.join(KITCHEN)}")
    rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
    reset_seed = int(rng.integers(2**31))
    return _play(pool, reset_seed, partial(KitchenDemonstrator, made, tasks, noise, rng))


@cache
def _pool(env: str) -> Pool:
    return Pool(json.loads(env), 1)


def episode(recipe: Recipe, number: int) -> Episode:
    """One attempt of a demonstrator drawn from a recipe, until it is done, gives up or reaches the time limit.

    It depends only on the recipe and its own number, so that it can be reproduced alone. With one platform and one
    version of the simulator it is the same, bit by bit.
    """
    rng = np.random.default_rng(np.random.SeedSequence([recipe["seed"], number]))
    pool, reset_seed = _pool(json.dumps(environment(recipe), sort_keys=True)), int(rng.integers(2**31))
    skill = _draw(recipe["demonstrators"], rng)
    plan = _kitchen_plan(recipe, rng, skill["digress"], skill["give_up"])
    return _play(pool, reset_seed, lambda: KitchenDemonstrator(pool.envs[0], plan, skill["noise"], rng))._replace(
        seed=None
    )


class Scripted(Policy):
    """A script that acts in one environment.

    Args:
        script: creates it for the state in which an episode begins.
    """

    def __init__(self, script: Callable[[], KitchenDemonstrator]):
        self.script = script

    def begin(self, where: np.ndarray, episodes: np.ndarray) -> None:
        self.under_way = self.script()

    def act(self, obs: Tree, explore: bool = False) -> Tensor:
        return torch.from_numpy(self.under_way.act()).view(1, 1, -1)


def _play(pool: Pool, reset_seed: int, script: Callable[[], KitchenDemonstrator]) -> Episode:
    """An episode of a script, until it is done, gives up or reaches the time limit."""
    loop, policy = EnvironmentLoop(pool, 1, lambda s, e, episode: reset_seed), Scripted(script)
    recording = Recording(loop.begin(np.ones((1, 1), bool), np.zeros((1, 1), int), policy)[0])
    while loop.playing.any() and not policy.under_way.finished:
        step = loop.step(policy)
        obs, reward, terminated, truncated, _ = step.answers[0]
        recording.append(step.applied[0, 0], obs, reward, terminated, truncated)
    recording.truncations[-1] |= not recording.terminations[-1]
    return recording.episode(pool.action_space, reset_seed)


def _kitchen_plan(recipe: Recipe, rng: np.random.Generator, digress: float, give_up: float) -> list[Any]:
    """An order of tasks; before any but the first the demonstrator may digress, and may give up for good."""
    plan: list[Any] = []
    for task in _draw(recipe["orders"], rng):
        if plan and rng.random() < digress:
            plan += _draw(recipe["digressions"], rng)
        if plan and rng.random() < give_up:
            break
        plan.append(task)
    return plan


def _draw(choices: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> Any:
    weights = np.array([choice["weight"] for choice in choices], float)
    return choices[rng.choice(len(choices), p=weights / weights.sum())]["value"]
