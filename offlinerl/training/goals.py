"""What a run learns from that has other goals than its dataset's or its episodes'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np

from offlinerl.data import registry
from offlinerl.data.dataset import Dataset
from offlinerl.data.scales import Moments
from offlinerl.envs import checks, spaces
from offlinerl.envs.goals import ACHIEVED, DESIRED, goal_of, shows_goal, tells_success
from offlinerl.envs.make import make, native
from offlinerl.envs.pool import require_sound
from offlinerl.evaluation.task import Task
from offlinerl.experience.hindsight import Goal
from offlinerl.util.errors import UserError


def are_chosen(train: Mapping[str, Any]) -> bool:
    """Whether the training settings of a run ask for other goals."""
    return train.get("goals", "data") != "data"


def with_goals(task: Task, known: Mapping[str, Any] | None, radius: float | None) -> tuple[Task, Goal]:
    """Finds the goals in an environment's observations. An environment that keeps its goal to itself gets it added to
    them, see ``GoalSeen``. Unless the task has a score, that is whether a goal was reached, if the environment tells.

    Args:
        task: with an environment.
        known: the ``goal`` of its entry in the registry, for observations without a part that says what is reached.
        radius: distance at which a goal is reached; None: the known one, else that of the environment, else 0.

    Returns:
        The task, whose environment shows its goals, and where these are.

    Raises:
        UserError: the environment has no goals, or it is unknown what is reached.
    """
    require_sound(task.env, task.obs_keys)
    with checks.closing(make(task.env, task.obs_keys)) as env:
        name, space, shown = task.env_id, env.observation_space, shows_goal(env)
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or task.stack > 1:
            raise UserError(f"goals are found in vectors, and {name} has images or frames: leave out --train.goals")
        parts = places(env.get_wrapper_attr("leaves")) if env.has_wrapper_attr("leaves") else {}
        missing = {ACHIEVED, DESIRED} & spaces.parts(native(env).observation_space).keys() - parts.keys()
        if DESIRED in missing or (missing and not (known or {}).get("achieved")):
            raise UserError(f"{name} is observed without its {' and '.join(sorted(missing))}: add it to --obs-keys")
        goal = None if DESIRED in parts else goal_of(env, env.reset(seed=0)[1])
        own_radius, tells = getattr(env.unwrapped, "distance_threshold", 0.0), tells_success(env)
    if DESIRED not in parts and goal is None:
        raise UserError(
            f"{name} has no goals, neither as a part {DESIRED} of its observations nor as info['goal']: leave out"
            " --train.goals"
        )
    size = len(parts[DESIRED]) if goal is None else len(goal)
    length = space.shape[0] - size * shown  # of an observation without the goal
    known = known or registry.goal_in(name) or {}
    where = list(parts.get("observation", ()) if parts else range(length))  # is what the registry counts from
    achieved = list(parts.get(ACHIEVED, ())) or [where[i] for i in known.get("achieved", ()) if where]
    if not achieved and size == length:  # whole observations are goals
        achieved = list(range(length))
    if len(achieved) != size:
        raise UserError(
            f"a goal of {name} has {size} numbers, but it is unknown which of an observation say what is reached: it"
            f" has no part {ACHIEVED} of this size"
        )
    radius = known.get("radius", own_radius) if radius is None else radius
    if task.score is None and tells:
        score = {"min": 0, "max": 1, "from": "success", "kind": "success"}
        task = replace(task, score=score, score_kind=score["kind"])
    if goal is None:
        return task, Goal(achieved, list(parts[DESIRED]), radius)
    task = replace(task, env={**task.env, "goal": size})
    return task, Goal(achieved, list(range(length, length + size)), radius)


def places(leaves: Mapping[str, gym.Space]) -> dict[str, range]:
    """The entries of each part in the vector that agents see of these leaves."""
    ends = np.cumsum([spaces.size(leaf) for leaf in leaves.values()]).tolist()
    return {path: range(begin, end) for path, begin, end in zip(leaves, [0, *ends], ends, strict=False)}


def with_own_goals(data: Dataset, goal: Goal, own: float) -> Dataset:
    """The dataset with what is reached at once added to its observations as their goal, if they lack it; ``own`` is the
    share of the rows that should keep their goal."""
    if isinstance(data.observations, Mapping) or data.observations.shape[1] != goal.desired[0]:
        return data
    if own:
        raise UserError(f"{data.name} has no goals that its rows could keep: leave out --train.goals_own")
    if data.on_disk:
        raise UserError(
            f"goals are added to the observations of {data.name} in memory: give --train.table memory, or fewer rows"
        )
    observations = np.concatenate([data.observations, data.observations[:, goal.achieved]], axis=1)
    return replace(data, observations=observations)


def moments_of(data: Dataset, goal: Goal) -> Moments:
    """The moments of observations whose goals are what is reached."""
    mean, std = (column.copy() for column in data.moments[""])
    if len(mean) <= max(goal.desired):  # a wrong shape raises later
        return data.moments
    mean[goal.desired], std[goal.desired] = mean[goal.achieved], std[goal.achieved]
    return {"": (mean, std)}


def in_words(goal: Goal) -> str:
    """A sentence for the beginning of a run."""
    return (
        "goals are what is reached later in an episode (--train.goals future); until a policy is within"
        f" {goal.radius:g} of its goal, each step is rewarded with -1"
    )
