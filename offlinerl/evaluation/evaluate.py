"""Evaluation by vectorised, seeded rollouts of every seed's policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from offlinerl.agents import checkpoint
from offlinerl.agents.base import Agent
from offlinerl.data import registry
from offlinerl.envs import checks
from offlinerl.envs.checks import Unsound, one
from offlinerl.envs.goals import tells_success
from offlinerl.envs.make import LIMITS, make, side_by_side, with_limits
from offlinerl.envs.pool import Pool, require_sound
from offlinerl.evaluation.statistics import Evaluation
from offlinerl.evaluation.task import Task
from offlinerl.evaluation.video import choose_renderer, record_videos
from offlinerl.rollout.loop import EnvironmentLoop, diverged_in_words
from offlinerl.rollout.policy import Policy, apart
from offlinerl.types import Spec
from offlinerl.util.atomic import require_place, write_json
from offlinerl.util.cores import cores
from offlinerl.util.device import pick_device
from offlinerl.util.display import Display
from offlinerl.util.errors import UserError, counted
from offlinerl.util.folder import find_checkpoint
from offlinerl.util.settings import require_known, values_of
from offlinerl.util.trees import observed_in_words


def evaluate(
    policy: Policy,
    task: Task,
    episodes: int,
    seed: int = 0,
    pool: Pool | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Roll out every seed's policy, without exploration.

    Episode i is reset with the seed ``seed + i`` for every policy, so that all policies get the same initial states.
    The result does not depend on the number of environments, except that products of other shapes may round
    differently, which a chaotic task can amplify. A policy whose actions are not finite stops, and all its returns and
    scores are NaN.

    Args:
        policy: S policies; the state of an agent's exploration is not changed.
        task: the environment and the score.
        episodes: episodes of each policy.
        seed: reset seed of the first episode.
        pool: environments to reuse, a multiple of S of them; by default created and closed here.
        progress: called after every step with the number of episodes that ended in it.

    Raises:
        UserError: the environment's shapes are not the policy's, or no policy has finite actions.
    """
    if pool is None:
        with closing(make_pool(task, len(policy.seeds), episodes)) as pool:
            return evaluate(policy, task, episodes, seed, pool, progress)
    check_spec(policy, pool)
    S = len(policy.seeds)
    loop = EnvironmentLoop(pool, S, lambda s, e, episode: seed + episode, "stop")
    policy = apart(policy, range(loop.shape[1]))
    returns, lengths, success = (np.zeros((S, episodes)) for _ in range(3))
    knows_success = False  # whether the environment reports success
    begun = np.zeros((S, 1), int)  # how many episodes of each seed have begun
    ended = loop.playing.size
    while True:
        if ended or not loop.playing.any():
            free = ~loop.playing & ~loop.diverged[:, None]
            numbers = begun + free.cumsum(1) - 1  # [S, E] number of the next episode in each free environment
            where = free & (numbers < episodes)
            begun += where.sum(1, keepdims=True)
            loop.begin(where, numbers, policy)
            if not loop.playing.any():
                break
        ended = 0
        for i, (_, reward, terminated, truncated, info) in loop.step(policy).answers.items():
            s, e = loop.lane(i)
            episode = s, loop.episodes[s, e]
            returns[episode] += reward
            lengths[episode] += 1
            reached = info.get("success", info.get("is_success"))
            if reached is not None:
                knows_success, success[episode] = True, max(success[episode], _success(pool, i, reached))
            ended += terminated or truncated
        if progress:
            progress(ended)
    returns[loop.diverged], lengths[loop.diverged], success[loop.diverged] = np.nan, 0, 0
    succeeded = success > 0
    known = succeeded if knows_success else None
    scores = np.where(loop.diverged[:, None], np.nan, task.scores(returns, succeeded))
    return Evaluation(returns, lengths.astype(int), known, scores)


def say_of_diverged(policy: Policy, result: Evaluation, display: Display) -> None:
    """Print once which of S policies have no scores, and why."""
    for s in np.flatnonzero(np.isnan(result.scores).any(1)).tolist():
        display.say_once(f"{diverged_in_words(policy, s)}; it has no score, and the others continue")


def make_pool(task: Task, seeds: int, episodes: int) -> Pool:
    """Environments for an evaluation: two per core or one per seed, whichever is more."""
    lanes = side_by_side(task.env, min(episodes, max(1, round(2 * cores() / seeds))))
    return Pool(task.env, seeds * lanes, task.obs_keys)


def check_spec(policy: Policy, pool: Pool) -> None:
    """Raise a UserError if the shapes of the environments and the policy differ, or the order of the parts that they
    observe."""
    have, want = pool.spec, policy.spec
    if want and (have.obs, have.action_dim, have.num_actions) != (want.obs, want.action_dim, want.num_actions):
        advice, parts = "evaluate it in the environment it was trained for", [leaf.path for leaf in want.obs]
        if len(parts) > 1 and all(len(leaf.shape) == 1 for leaf in (*want.obs, *have.obs)):
            advice = (
                f"train it with --obs-keys {','.join(parts)}, which makes one vector of its parts, as is observed here"
            )
        raise UserError(f"{pool.name} has {_in_words(have)}, the policy {_in_words(want)}; {advice}")
    env, own = pool.envs[0], list((getattr(policy, "task", None) or {}).get("leaves") or ())
    shown = list(env.get_wrapper_attr("leaves")) if env.has_wrapper_attr("leaves") else []
    if own != shown and sorted(own) == sorted(shown):
        raise UserError(
            f"{pool.name} is observed in the order {', '.join(shown)}, and the policy takes {', '.join(own)}: give"
            " --obs-keys in that order, or leave it out"
        )


def _in_words(spec: Spec) -> str:
    actions = f"{spec.num_actions} discrete actions" if spec.num_actions else counted(spec.action_dim, "action")
    return f"{observed_in_words({leaf.path: leaf.shape for leaf in spec.obs})} and {actions}"


def _success(pool: Pool, i: int, reached: Any) -> float:
    try:
        return one("success", reached)
    except Unsound as error:
        raise pool.blamed(i, error) from error


def task_for(
    policy: Policy, env: str | Mapping[str, Any] | None = None, limits: Mapping[str, Any] | None = None
) -> Task:
    """The task to evaluate a policy in: its own, or another environment's, which it observes as it observed its own.

    Args:
        policy: of an agent, or any other, which has no task of its own.
        env: see ``evaluate_checkpoint``.
        limits: see ``evaluate_checkpoint``.
    """
    own = Task(**getattr(policy, "task", None) or {})
    if env is None:
        return replace(own, env=with_limits(own.env or {}, limits or {}))
    task, own_env = Task.of(registry.task(env)), own.env or {}
    limits = {key: own_env[key] for key in ("pixels", "stack") if key in own_env} | dict(limits or {})
    goal = {"goal": own_env["goal"]} if "goal" in own_env else {}
    parts = [leaf.path for leaf in policy.spec.obs if leaf.path] if policy.spec else []  # in the data's order
    keys = task.obs_keys or own.obs_keys or parts or None
    task = replace(task, env=with_limits(task.env or {}, limits) | goal, obs_keys=keys)
    if task.score is None and own.score_kind == "given" and own.env_id in (None, task.env_id):
        task = replace(task, score=own.score, score_kind=own.score_kind)
    if task.score is None and own.score_kind == "success":  # by which it was judged in training
        require_sound(task.env, task.obs_keys)
        with checks.closing(make(task.env, task.obs_keys)) as made:
            if tells_success(made):
                task = replace(task, score=own.score, score_kind=own.score_kind)
    return task


def evaluate_checkpoint(
    path: Path,
    *,
    env: str | Mapping[str, Any] | None = None,
    episodes: int = 50,
    seed: int = 0,
    video: Path | None = None,
    json_file: Path | None = None,
    device: str = "auto",
    limits: Mapping[str, Any] | None = None,
    agent_class: type[Agent] | str | None = None,
    score_range: Sequence[float] | None = None,
) -> dict[str, Any]:
    """``offlinerl evaluate``: evaluate the policies in a checkpoint, without other files of the run.

    Args:
        path: a checkpoint, or a run's folder, whose last checkpoint is read.
        env: a task to use instead of the checkpoint's own: a name in the registry; or a Gymnasium id or what
            ``offlinerl.envs.make.make`` takes, with the return as the score.
        episodes: episodes of each seed's policy.
        seed: reset seed of the first episode.
        video: a folder for a video of one episode per seed; see ``record_videos``.
        json_file: where to write the returned dictionary.
        device: "auto", "cpu" or "cuda".
        limits: some of ``offlinerl.envs.make.LIMITS``, such as ``pixels=True``; see ``offlinerl.envs.make.make``.
        agent_class: of an agent that is neither built in nor installed; see ``checkpoint.load_agent``.
        score_range: see ``offlinerl.fit``.

    Raises:
        UserError: the checkpoint cannot be read or does not fit the environment.
    """
    require_place(json_file)
    require_known(limits or {}, LIMITS, "limits have no entry")
    display, path = Display(), find_checkpoint(path)
    agent = checkpoint.load_agent(path, pick_device(device), agent_class=agent_class)
    if env is None and not agent.task.get("env"):
        raise UserError(f"the checkpoint {path} does not name its environment; name one with --env")
    task = task_for(agent, env, limits).scored(score_range)
    with closing(make_pool(task, len(agent.seeds), episodes)) as pool:
        if pool.endless:
            display.warn_of_endless(pool.name)
        if video is not None:
            choose_renderer(pool)
        with display.bar("evaluating", episodes * len(agent.seeds), unit="episodes"):
            result = evaluate(agent, task, episodes, seed, pool, display.add)
    say_of_diverged(agent, result, display)
    results = dict(
        checkpoint=str(path), env=task.env_id, updates=agent.updates, seeds=list(agent.seeds), episodes=episodes,
        score_kind=task.label, **result.facts(),
    )  # fmt: skip
    if values_of(agent.members[0]):
        results["members"] = agent.members
    display.evaluation(results)
    if json_file is not None:
        write_json(json_file, results)
    if video is not None:
        record_videos(agent, task, seed, video, display)
    return results
