"""What a run learns from that has other goals than its dataset's or its episodes'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import gymnasium as gym
import numpy as np

from offlinerl.data.dataset import Dataset
from offlinerl.data.registry import Entry
from offlinerl.envs import checks, spaces
from offlinerl.envs.goals import ACHIEVED, DESIRED, GoalSeen, goal_of
from offlinerl.envs.make import make
from offlinerl.envs.pool import require_sound
from offlinerl.evaluation.task import Task
from offlinerl.experience.hindsight import Goal
from offlinerl.util.errors import UserError


def with_goals(entry: Entry, task: Task, radius: float | None) -> tuple[Entry, Goal]:
    """Finds the goals in an environment's observations. An environment that keeps its goal to itself gets it added to
    them, see ``GoalSeen``. Unless the task has a score, that is whether a goal was reached, if the environment tells.

    Args:
        entry: the task, whose ``goal`` helps if the observations have no part that says what is reached.
        task: its environment.
        radius: distance at which a goal is reached; None: that of the entry, else that of the environment, else 0.

    Returns:
        The entry, with an environment that shows its goals, and where these are.

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
        goal, shown = None if DESIRED in parts else goal_of(env, info), shows_goal(env)
        own_radius = getattr(env.unwrapped, "distance_threshold", 0.0)
        env.action_space.seed(0)
        tells = {"success", "is_success"} & {*env.step(env.action_space.sample())[4]}
    if DESIRED not in parts and goal is None:
        raise UserError(
            f"{name} has no goals, neither as a part {DESIRED} of its observations nor as info['goal']: leave out"
            " --train.goals"
        )
    size = len(parts[DESIRED]) if goal is None else len(goal)
    known, length = entry.goal or {}, space.shape[0] - size * shown  # of an observation without the goal
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
        return entry, Goal(list(achieved), list(parts[DESIRED]), radius)
    if not shown:
        entry = replace(entry, env={**task.env, "goal": size})
    return entry, Goal(list(achieved), list(range(length, length + size)), radius)


def shows_goal(env: gym.Env) -> bool:
    """Whether a ``GoalSeen`` already adds the goal to the observations."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, GoalSeen):
            return True
        env = env.env
    return False


def places(leaves: Mapping[str, gym.Space]) -> dict[str, range]:
    """The entries of each part in the vector that agents see of these leaves."""
    ends = np.cumsum([spaces.size(leaf) for leaf in leaves.values()]).tolist()
    return {path: range(begin, end) for path, begin, end in zip(leaves, [0, *ends], ends, strict=False)}


def with_own_goals(data: Dataset, goal: Goal) -> Dataset:
    """The dataset with what is reached at once added to its observations as their goal, if they lack it."""
    if isinstance(data.observations, Mapping) or goal.desired[0] < data.observations.shape[1]:
        return data
    if data.on_disk:
        raise UserError(
            f"goals are added to the observations of {data.name} in memory: give --train.table memory, or fewer rows"
        )
    observations = np.concatenate([data.observations, data.observations[:, goal.achieved]], axis=1)
    return replace(data, observations=observations)


def in_words(goal: Goal) -> str:
    """A sentence for the beginning of a run."""
    return (
        "goals are what is reached later in an episode (--train.goals future); until a policy is within"
        f" {goal.radius:g} of its goal, each step is rewarded with -1"
    )
