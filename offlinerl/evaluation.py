"""Evaluation: vectorised, seeded rollouts of every seed's policy, with normalised scores and intervals."""

from __future__ import annotations

import json
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from offlinerl import checkpoint
from offlinerl.agent import Agent
from offlinerl.data import registry
from offlinerl.data.interaction import require_finite
from offlinerl.data.record import write_json
from offlinerl.device import pick_device
from offlinerl.display import Display
from offlinerl.envs.checks import Unsound, described, one
from offlinerl.envs.make import Pool, make, native_action, with_limits
from offlinerl.folder import find_checkpoint
from offlinerl.types import Spec, UserError


@dataclass(frozen=True)
class Task:
    """What evaluation must know of a task; plain data, so that a checkpoint can carry it.

    Attributes:
        env: ``{"id": ..., "kwargs": ...}`` or ``{"spec": ...}``; see ``offlinerl.envs.make``.
        obs_keys: parts of a ``Dict`` observation.
        score: ``{"min": ..., "max": ..., "from": "return" or "success"}``, or None: the return is the score.
        score_kind: what the score is called: "normalized", "minari" or "return".
    """

    env: Mapping[str, Any]
    obs_keys: Sequence[str] | None = None
    score: Mapping[str, Any] | None = None
    score_kind: str = "return"

    @classmethod
    def of(cls, entry: registry.Entry) -> Task:
        """The task of a dataset in the registry."""
        return cls(entry.env, entry.obs_keys, entry.score, entry.score_kind)

    @property
    def env_id(self) -> str:
        """The Gymnasium id of the environment."""
        return self.env["id"] if "id" in self.env else json.loads(self.env["spec"])["id"]

    @property
    def facts(self) -> dict[str, Any]:
        """What tells the task from others, as plain data that is the same by whichever name the task was given."""
        if "spec" in self.env:
            known = json.loads(self.env["spec"])
        else:
            spec = gymnasium.registry.get(self.env["id"])
            known = {} if spec is None else dict(kwargs=spec.kwargs, max_episode_steps=spec.max_episode_steps)
        kwargs = {**known.get("kwargs", {}), **self.env.get("kwargs", {})}
        given = {key: value for key, value in self.env.items() if key not in ("id", "spec", "kwargs")}
        limit = kwargs.pop("max_episode_steps", known.get("max_episode_steps"))
        wrappers = list(known.get("additional_wrappers", ()))
        env = dict(id=self.env_id, kwargs=kwargs, max_episode_steps=limit, wrappers=wrappers) | given
        facts = dict(env=env, obs_keys=self.obs_keys, score=self.score)
        return json.loads(json.dumps(facts, default=lambda value: type(value).__name__))

    def scores(self, returns: np.ndarray, success: np.ndarray) -> np.ndarray:
        """Normalised scores, ``100 (R - min) / (max - min)``, of raw returns or of successes."""
        if self.score is None:
            return returns
        raw = success if self.score.get("from") == "success" else returns
        return registry.normalized_score(raw, self.score["min"], self.score["max"])


@dataclass(frozen=True)
class Evaluation:
    """Episodes of every seed's policy, each array ``[S, episodes]``; ``success`` is None if no step told of it."""

    returns: np.ndarray
    lengths: np.ndarray
    success: np.ndarray | None
    scores: np.ndarray

    @property
    def per_seed(self) -> np.ndarray:
        """Mean score of every seed, ``[S]``."""
        return self.scores.mean(-1)

    @property
    def mean(self) -> float:
        return float(self.scores.mean())

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        return bootstrap(self.scores, level)


def bootstrap(scores: np.ndarray, level: float = 0.95, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean score, ``[S, episodes]``.

    Seeds are resampled, and episodes within each (Davison & Hinkley, 1997, section 3.8), so that the
    interval tells how another training would score and not only how another evaluation would; with one
    seed it can only tell the latter.
    """
    rng = np.random.default_rng(seed)
    S, episodes = scores.shape
    means = np.empty(draws)
    for i in range(0, draws, 500):  # in portions, to bound the memory
        size = min(500, draws - i)
        seeds = rng.integers(S, size=(size, S, 1))
        chosen = rng.integers(episodes, size=(size, S, episodes))
        means[i : i + size] = scores[seeds, chosen].mean((1, 2))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


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

    Raises:
        UserError: the checkpoint cannot be read or does not fit the environment.
    """
    display, path = Display(), find_checkpoint(path)
    agent = checkpoint.load_agent(path, pick_device(device))
    if env is None and not agent.task:
        raise UserError(f"the checkpoint {path} does not say what it was trained for; name an environment with --env")
    task = Task(**agent.task) if env is None else task_named(env)
    task = replace(
        task, env=with_limits(task.env, limits or {}), obs_keys=task.obs_keys or (agent.task or {}).get("obs_keys")
    )
    pool = make_pool(task, len(agent.seeds), episodes)
    display.warn_of_endless(pool)
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


def task_named(env: str) -> Task:
    """The task of a registry name, or that of a Gymnasium id, whose score is its return."""
    return Task.of(registry.entry(env)) if env in registry.names() else Task({"id": env})


def record_videos(agent: Agent, task: Task, seed: int, folder: Path) -> None:
    """Write one episode of every seed's policy as ``seed-<s>.gif``.

    Raises:
        UserError: the environment cannot be rendered on this machine, or renders nothing.
    """
    import imageio

    folder.mkdir(parents=True, exist_ok=True)
    instead = "on a machine without a screen install libosmesa6 and set MUJOCO_GL=osmesa"
    for s, number in enumerate(agent.seeds):
        env = make(task.env, task.obs_keys, render_mode="rgb_array")
        frames = []
        try:
            obs, _ = env.reset(seed=seed)
            over = False
            while not over:
                batch = torch.from_numpy(np.asarray(obs, np.float32)).expand(len(agent.seeds), 1, -1)
                with torch.no_grad():
                    action = agent.act(batch.to(agent.device))[s, 0].cpu().numpy()
                obs, _, terminated, truncated, _ = env.step(native_action(env.action_space, action))
                over = terminated or truncated
                frames.append(env.render())
        except Exception as error:  # every simulator has its own way to say that it cannot draw
            raise UserError(f"{task.env_id} cannot be rendered here ({described(error)}); {instead}") from error
        finally:
            env.close()
        if not all(isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 for frame in frames):
            raise UserError(
                f"{task.env_id} renders no pictures: in the mode rgb_array its render() must return arrays [height,"
                f" width, 3] of uint8, not {type(frames[0]).__name__}"
            )
        if not any(np.any(frame) for frame in frames):
            raise UserError(f"{task.env_id} renders black frames here; {instead}")
        imageio.mimsave(folder / f"seed-{number}.gif", frames, duration=1000 / frames_per_second(env), loop=0)


def frames_per_second(env: gymnasium.Env) -> float:
    """How fast an environment's pictures are to be shown; 30 where it does not say."""
    fps = (env.metadata or {}).get("render_fps")
    return float(fps) if isinstance(fps, numbers.Real) and 0 < fps < math.inf else 30.0
