"""What a run with other goals than the dataset's learns from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import gymnasium as gym
import numpy as np

from offlinerl.data.dataset import Dataset
from offlinerl.data.registry import Entry
from offlinerl.envs import checks, spaces
from offlinerl.envs.goals import ACHIEVED, DESIRED, goal_of
from offlinerl.envs.make import make
from offlinerl.envs.pool import require_sound
from offlinerl.evaluation.task import Task
from offlinerl.experience.sources import Goal
from offlinerl.util.errors import UserError


def with_goals(entry: Entry, data: Dataset, task: Task, radius: float | None) -> tuple[Entry, Dataset, Goal]:
    """Finds the goals in a dataset's observations. Where they do not have the goal, because the environment keeps it to
    itself, it is added to the observations of both; in the dataset it then is what is reached at once. Unless the task
    has a score, that is whether a goal was reached, if the environment tells.

    Args:
        entry: the dataset, whose ``goal`` helps if the observations have no part that says what is reached.
        data: its rows.
        task: its environment.
        radius: distance at which a goal is reached; None: that of the entry, else that of the environment, else 0.

    Returns:
        The entry and the dataset with goals, and where these are.

    Raises:
        UserError: there is no environment, or it has no goals, or it is unknown what is reached.
    """
    if task.env is None:
        raise UserError(f"goals are given by an environment, and {entry.name} names none: give --env ID")
    require_sound(task.env, task.obs_keys)
    with checks.closing(make(task.env, task.obs_keys)) as env:
        name, space = task.env_id, env.observation_space
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or task.stack > 1:
            raise UserError(f"goals are found in vectors, and {name} has images or frames: leave out --train.goals")
        parts = places(env.get_wrapper_attr("leaves")) if env.has_wrapper_attr("leaves") else {}
        _, info = env.reset(seed=0)
        goal = None if DESIRED in parts else goal_of(env, info)
        own_radius = getattr(env.unwrapped, "distance_threshold", 0.0)
        env.action_space.seed(0)
        tells = {"success", "is_success"} & {*env.step(env.action_space.sample())[4]}
    if DESIRED not in parts and goal is None:
        raise UserError(
            f"{name} has no goals, neither as a part {DESIRED} of its observations nor as info['goal']: leave out"
            " --train.goals"
        )
    known, length = entry.goal or {}, space.shape[0]
    size = len(parts[DESIRED]) if goal is None else len(goal)
    achieved = parts.get(ACHIEVED) or known.get("achieved") or (range(length) if size == length else ())
    if len(achieved) != size:
        raise UserError(
            f"a goal of {name} has {size} numbers, but it is unknown which of an observation say what is reached: its"
            f" part {ACHIEVED} is missing or has others"
        )
    radius = known.get("radius", own_radius) if radius is None else radius
    if entry.score is None and tells:
        entry = replace(entry, score={"min": 0, "max": 1, "from": "success", "kind": "success"})
    if goal is None:
        return entry, data, Goal(list(achieved), list(parts[DESIRED]), radius)
    entry = replace(entry, env={**task.env, "goal": size})
    return entry, with_own_goals(data, achieved), Goal(list(achieved), list(range(length, length + size)), radius)


def places(leaves: Mapping[str, gym.Space]) -> dict[str, range]:
    """The entries of each part in the vector that agents see of these leaves."""
    ends = np.cumsum([spaces.size(leaf) for leaf in leaves.values()]).tolist()
    return {path: range(begin, end) for path, begin, end in zip(leaves, [0, *ends], ends, strict=False)}


def with_own_goals(data: Dataset, achieved: range | list[int]) -> Dataset:
    """The dataset with what is reached added to its observations, as their goal."""
    if data.on_disk:
        raise UserError(
            f"goals are added to the observations of {data.name} in memory: give --train.table memory, or fewer rows"
        )
    observations = np.concatenate([data.observations, data.observations[:, list(achieved)]], axis=1)
    return replace(data, observations=observations)
