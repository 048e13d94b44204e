"""Vectorised, seeded rollouts of every seed's policy."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offlinerl.agents import checkpoint
from offlinerl.agents.base import Agent
from offlinerl.envs.checks import Unsound, one
from offlinerl.envs.make import Pool, with_limits
from offlinerl.evaluation.statistics import Evaluation
from offlinerl.evaluation.task import Task, task_named
from offlinerl.evaluation.video import record_videos
from offlinerl.rollout.collector import require_finite
from offlinerl.types import Spec
from offlinerl.util.atomic import write_json
from offlinerl.util.device import pick_device
from offlinerl.util.display import Display
from offlinerl.util.errors import UserError
from offlinerl.util.folder import find_checkpoint


def evaluate(
    agent: Agent,
    task: Task,
    episodes: int,
    seed: int = 0,
    pool: Pool | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Roll out every seed's policy, without exploration.

    Episode i starts from the reset seed ``seed + i`` for every policy, so that policies meet the same
    starts, and the number of environments does not change what is measured.

    Args:
        agent: S policies.
        task: where and how to score.
        episodes: episodes of each policy.
        seed: reset seed of the first episode.
        pool: environments to reuse, a multiple of S of them; made and closed here by default.
        progress: called after every step with the number of episodes that it ended.

    Raises:
        UserError: the environment's shapes are not the policy's, or the policy's actions are not finite.
    """
    S = len(agent.seeds)
    own = pool is None
    pool = pool or make_pool(task, S, episodes)
    check_spec(agent, pool)
    try:
        return _rollouts(agent, task, episodes, seed, pool, progress or (lambda done: None))
    finally:
        if own:
            pool.close()


def make_pool(task: Task, seeds: int, episodes: int) -> Pool:
    """Environments for an evaluation: two a core or one a seed, whichever is more."""
    lanes = min(episodes, max(1, round(2 * (os.cpu_count() or 1) / seeds)))
    return Pool(task.env, seeds * lanes, task.obs_keys)


def check_spec(agent: Agent, pool: Pool) -> None:
    have, want = pool.spec, agent.spec
    if (have.obs_dim, have.action_dim, have.num_actions) != (want.obs_dim, want.action_dim, want.num_actions):
        name = pool.envs[0].spec.id
        raise UserError(
            f"{name} has {have.obs_dim} observations and {_actions(have)}, the policy {want.obs_dim} and"
            f" {_actions(want)}; evaluate it in the environment it was trained for"
        )


def _actions(spec: Spec) -> str:
    return f"{spec.num_actions} discrete actions" if spec.num_actions else f"{spec.action_dim} actions"


def _rollouts(
    agent: Agent, task: Task, episodes: int, seed: int, pool: Pool, progress: Callable[[int], None]
) -> Evaluation:
    S, E = len(agent.seeds), len(pool.envs) // len(agent.seeds)
    returns, lengths, success = (np.zeros((S, episodes)) for _ in range(3))
    told = False  # whether the environment knows what success is
    obs = np.zeros((S, E, agent.spec.obs_dim), np.float32)
    waiting = [list(range(episodes))[::-1] for _ in range(S)]  # episodes still to be played, by seed
    playing: dict[int, int] = {}  # lane -> episode; lane = s * E + e

    def start(lanes: Sequence[int]) -> None:
        for lane in lanes:
            playing.pop(lane, None)
            if waiting[lane // E]:
                playing[lane] = waiting[lane // E].pop()
        first = pool.reset({lane: seed + playing[lane] for lane in lanes if lane in playing})
        for lane, observation in first.items():
            obs[lane // E, lane % E] = observation

    start(range(S * E))
    while playing:
        with torch.no_grad():
            actions = agent.act(torch.from_numpy(obs).to(agent.device)).cpu().numpy()  # [S, E, A]
        require_finite(agent, actions, {lane // E for lane in playing})
        stepped = pool.step({lane: actions[lane // E, lane % E] for lane in playing})
        ended = []
        for lane, (observation, reward, terminated, truncated, info) in stepped.items():
            s, i = lane // E, playing[lane]
            obs[s, lane % E] = observation
            returns[s, i] += reward
            lengths[s, i] += 1
            reached = info.get("success", info.get("is_success"))
            if reached is not None:
                told, success[s, i] = True, max(success[s, i], _success(pool, lane, reached))
            if terminated or truncated:
                ended.append(lane)
        progress(len(ended))
        if ended:
            start(ended)
    succeeded = success > 0
    return Evaluation(returns, lengths.astype(int), succeeded if told else None, task.scores(returns, succeeded))


def _success(pool: Pool, lane: int, told: Any) -> float:
    try:
        return one("success", told)
    except Unsound as error:
        raise pool.blamed(lane, error) from error


def evaluate_checkpoint(
    path: Path,
    *,
    env: str | None = None,
    episodes: int = 50,
    seed: int = 0,
    video: Path | None = None,
    json_file: Path | None = None,
    device: str = "auto",
    limits: Mapping[str, Any] | None = None,
    agent_class: type[Agent] | str | None = None,
) -> dict[str, Any]:
    """What ``offlinerl evaluate`` does: needs the checkpoint and nothing else.

    Args:
        path: a checkpoint of a run, or its folder, whose last one is meant.
        env: another task than the checkpoint's own: a registry name, or a Gymnasium id, whose score is the
            return.
        episodes: episodes of each seed's policy.
        seed: reset seed of the first one.
        video: a folder for one GIF a seed.
        json_file: where to write what is returned.
        device: "auto", "cpu" or "cuda".
        limits: ``max_episode_steps`` and ``action_range``; see ``offlinerl.envs.make.make``.
        agent_class: of an agent that is neither ours nor installed; see ``checkpoint.load_agent``.

    Raises:
        UserError: the checkpoint cannot be read or does not fit the environment.
    """
    display, path = Display(), find_checkpoint(path)
    agent = checkpoint.load_agent(path, pick_device(device), agent_class=agent_class)
    if env is None and not agent.task:
        raise UserError(f"the checkpoint {path} does not say what it was trained for; name an environment with --env")
    task = Task(**agent.task) if env is None else task_named(env)
    task = replace(
        task, env=with_limits(task.env, limits or {}), obs_keys=task.obs_keys or (agent.task or {}).get("obs_keys")
    )
    pool = make_pool(task, len(agent.seeds), episodes)
    if pool.endless:
        display.warn_of_endless(pool.name)
    try:
        with display.bar("evaluating", episodes * len(agent.seeds), unit="episodes"):
            done = 0

            def progress(count: int) -> None:
                nonlocal done
                done += count
                display.advance(done)

            result = evaluate(agent, task, episodes, seed, pool, progress)
    finally:
        pool.close()
    results = dict(
        checkpoint=str(path),
        env=task.env_id,
        updates=agent.updates,
        seeds=list(agent.seeds),
        episodes=episodes,
        score_kind=task.score_kind,
        mean=result.mean,
        ci95=list(result.interval()),
        per_seed=result.per_seed.tolist(),
        mean_return=float(result.returns.mean()),
        mean_length=float(result.lengths.mean()),
        success=None if result.success is None else float(result.success.mean()),
    )
    display.evaluation(results)
    if json_file is not None:
        write_json(json_file, results)
    if video is not None:
        record_videos(agent, task, seed, video)
        display.say(f"videos in {video}")
    return results
