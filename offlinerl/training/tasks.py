"""The task of a run on a dataset, and whether environment and dataset agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np

from offlinerl.data import registry
from offlinerl.data.dataset import Dataset
from offlinerl.data.edit import made_of
from offlinerl.data.inferred import bounds_in_words
from offlinerl.data.registry import Entry
from offlinerl.envs import checks, spaces
from offlinerl.envs.make import make as make_env
from offlinerl.envs.make import unbounded_actions, with_limits
from offlinerl.evaluation.task import Task
from offlinerl.experience.table import entries_outside
from offlinerl.types import Spec
from offlinerl.util.display import Display
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_leaves


def task_of(entry: Entry, data: Dataset, limits: Mapping[str, Any]) -> Task:
    """The task of a dataset, for evaluation. The limits (see ``offlinerl.envs.make.with_limits``) apply to an
    environment that only the dataset itself names. ``env`` is None if no environment is known, or none is wanted."""
    env = entry.env
    if env is None and limits.get("env") != registry.NOWHERE and "env_spec" in data.provenance:
        env = with_limits({"spec": data.provenance["env_spec"]}, limits)
    stack = data.provenance.get("frame_stack")
    if env is not None and stack and "stack" not in env:
        env = {**env, "stack": stack}
    return replace(
        Task.of(entry), env=env, obs_keys=entry.obs_keys or data.provenance.get("obs_keys"),
        parts=made_of(data) or None, actions=data.provenance.get("actions"),
    )  # fmt: skip


def with_own_parts(task: Task, entry: Entry, data: Dataset) -> Task:
    """The task without ``obs_keys`` if these are only column names of a table that the environment does not have."""
    if entry.obs_keys or not task.obs_keys or "columns" not in data.provenance:
        return task
    with checks.closing(make_env(task.env, observed=False)) as env:
        known = spaces.parts(env.observation_space)
    return task if known.keys() >= set(task.obs_keys) else replace(task, obs_keys=None)


def within_data(task: Task, data: Dataset, display: Display) -> Task:
    """The task, with the range of the dataset's actions as bounds where the environment's actions are unbounded."""
    if "action_range" in task.env:
        return task
    open_ = unbounded_actions(task.env)
    if data.action.shape[1] != len(open_) or not open_.any():
        return task
    low, high = data.action_limits
    display.say(
        f"{task.env_id} has actions without bounds, so those of the data are used, {low.min():g} to {high.max():g};"
        " set others with --action-range LOW,HIGH"
    )
    return replace(task, env={**task.env, "action_range": [low.tolist(), high.tolist()]})


def require_own_units(entry: Entry, data: Dataset, spec: Spec, task: Task, display: Display, asked: bool) -> None:
    """Report how many entries of the actions will be clipped, and raise a UserError if most of them would be.

    Args:
        asked: whether the user gave the bounds.
    """
    if spec.num_actions or data.action.shape[1] != spec.action_dim:  # a wrong shape raises later
        return
    outside, entries = entries_outside(data.action, spec), int(np.prod(data.action.shape))
    if not outside:
        return
    count = f"{outside:,} of {entries:,} entries of the actions ({outside / entries:.1%})"
    owner, bounds = f" of {task.env_id}" if task.env else "", bounds_in_words(spec.action_low, spec.action_high)
    what = f"{entry.name}: {count} lie outside the bounds{owner}, {bounds}"
    if 2 * outside > entries:
        advice = "give a wider --action-range" if asked else "name the environment they were collected in with --env"
        raise UserError(f"{what}: they are in other units; rescale them, or {advice}")
    display.say(f"{what}, and are clipped to them" + "; a wider --action-range would keep them" * asked)


def require_parts(task: Task, env: gym.Env, obs_keys: Sequence[str] | None) -> None:
    """Raise a UserError if ``obs_keys`` are given and the environment's observations have no parts."""
    if obs_keys and not env.has_wrapper_attr("leaves"):
        raise UserError(f"{task.env_id} observes one vector without parts; leave out --obs-keys")


def with_leaves(task: Task, env: gym.Env, obs_keys: Sequence[str] | None) -> Task:
    """The task with the leaves of its environment's own observations, if agents see something else of them.

    Raises:
        UserError: see ``require_parts``.
    """
    require_parts(task, env, obs_keys)
    if not env.has_wrapper_attr("leaves") or task.stack > 1:
        return task
    leaves = {path: spaces.to_json(leaf) for path, leaf in env.get_wrapper_attr("leaves").items()}
    return replace(task, leaves=leaves)


def leaves_in(env: gym.Env) -> Mapping[str, gym.Space] | None:
    """The parts that an environment observes as one vector, in order; None if it does not."""
    joined = env.has_wrapper_attr("leaves") and not isinstance(env.observation_space, gym.spaces.Dict)
    return env.get_wrapper_attr("leaves") if joined else None


def in_one_vector(data: Dataset, leaves: Mapping[str, gym.Space] | None, env: str | None) -> Dataset:
    """A dataset with its parts in one vector, as the environment of this name has them, if it keeps them apart, as one
    that is made of arrays in Python does.

    Raises:
        UserError: the two have other parts, or the dataset is on disk.
    """
    parts = dict(tree_leaves(data.observations))
    if "" in parts or leaves is None:
        return data
    if parts.keys() != leaves.keys():
        raise UserError(
            f"{env} observes {', '.join(leaves)}, and {data.name} {', '.join(parts)}: choose those of both with"
            " --obs-keys"
        )
    if data.on_disk:
        raise UserError(
            f"the parts of {data.name} are in files of their own: read them into one vector with --obs-keys"
            f" {','.join(leaves)}"
        )
    try:
        observations = spaces.observe(leaves, [parts[path] for path in leaves])
    except UserError as error:
        raise UserError(f"the observations of {data.name} are not those of {env}: {error}") from error
    return replace(data, observations=observations, provenance={**data.provenance, "obs_keys": list(leaves)})


def require_stored_order(entry: Entry, data: Dataset, env: gym.Env, obs_keys: Sequence[str] | None) -> None:
    """Raise a UserError if a dataset stores its environment's parts as one vector, in another order than ``obs_keys``
    or with others. It states the parts, or has all of them in their own order."""
    stored = data.provenance.get("vector_of")
    if not obs_keys or stored is None:
        return
    own, asked = (list(spaces.parts(env.get_wrapper_attr("own_space"), keys)) for keys in (stored, obs_keys))
    if own != asked:
        raise UserError(
            f"{entry.name} stores its observations as one vector of {', '.join(own)}: leave out --obs-keys, or collect"
            " with other ones"
        )


def dataset_score(entry: Entry, raw: Dataset) -> float | None:
    """Mean score of the dataset's own episodes from stored rewards; None if there are none or no score is defined."""
    if entry.score is None or raw.provenance.get("reward", "none") != "none":
        return None
    highest = np.maximum.reduceat(raw.reward, raw.episode_starts)
    totals = dict(
        counts=highest,  # the reward of a row in D4RL's Kitchen files is the number of tasks completed so far
        success=highest > 0,
        terminals=np.maximum.reduceat(raw.terminated, raw.episode_starts),  # for goals that give no reward
    ).get(entry.score.get("data", entry.score["from"]), raw.episode_returns)
    return float(np.mean(entry.score_of(totals)))
