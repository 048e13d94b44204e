"""Videos of policies."""

from __future__ import annotations

import math
import numbers
import os
import time
from importlib.util import find_spec
from pathlib import Path

import gymnasium
import numpy as np

from offlinerl.envs import rendering
from offlinerl.envs.checks import described
from offlinerl.envs.make import steps_allowed
from offlinerl.envs.pixels import model_of, without_shadows
from offlinerl.envs.pool import Pool
from offlinerl.evaluation.task import Task
from offlinerl.rollout.loop import EnvironmentLoop, diverged_in_words
from offlinerl.rollout.policy import Policy, apart
from offlinerl.util.display import Display
from offlinerl.util.errors import UserError
from offlinerl.util.settings import named


def record_videos(policy: Policy, task: Task, seed: int, folder: Path, display: Display | None = None) -> None:
    """Write a video of one episode of every seed's policy as ``seed-<s>.gif``, or ``seed-<s>-beta-<x>.gif`` with
    several values of beta, and also as MP4 if PyAV is installed.

    Args:
        policy: S policies.
        task: to act in.
        seed: reset seed of every episode.
        folder: to write into.
        display: shows the number of frames drawn, since some simulators take minutes, and reports each file.

    Raises:
        UserError: the environment cannot be rendered on this machine, or renders nothing; see also ``evaluate``.
    """
    import imageio.v3 as images

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    instead = "on a machine without a screen install libosmesa6 and set MUJOCO_GL=osmesa"
    S = len(policy.seeds)
    pool = Pool(task.env, S, task.obs_keys, render_mode="rgb_array")
    plain = choose_renderer(pool) and _is_blind(pool)  # on a CPU, shadows take most of the time
    loop, policy = EnvironmentLoop(pool, S, lambda s, e, episode: seed, "stop"), apart(policy, range(1))
    display = display or Display()
    try:
        members = getattr(policy, "members", [dict(seed=number) for number in policy.seeds])
        with display.bar("drawing", S * (steps_allowed(task.env) or 0) or None, unit="frames"):
            for s, (member, env) in enumerate(zip(members, pool.envs, strict=True)):
                loop.begin(np.arange(S)[:, None] == s, np.zeros(loop.shape, int), policy)
                if plain:
                    without_shadows(model_of(env))  # some tasks create a new model for every episode
                frames, begun = [], time.monotonic()
                while loop.playing.any():
                    loop.step(policy)
                    frames.append(env.render())
                    display.add()
                if loop.diverged[s]:
                    display.say_once(f"{diverged_in_words(policy, s)}; it is not filmed")
                    continue
                if not all(isinstance(f, np.ndarray) and f.dtype == np.uint8 and f.ndim == 3 for f in frames):
                    raise UserError(
                        f"{task.env_id} renders no images: in the mode rgb_array its render() must return arrays"
                        f" [height, width, 3] of uint8, not {type(frames[0]).__name__}"
                    )
                if not any(map(np.any, frames)):
                    raise UserError(f"{task.env_id} renders black frames here; {instead}")
                stem = named(member).replace(", ", "-").replace(" ", "-")
                film, fps = folder / f"{stem}.gif", frames_per_second(env)
                images.imwrite(film, frames, duration=1000 / fps, loop=0)
                if find_spec("av"):
                    even = [frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames]
                    how = dict(plugin="pyav", codec="libx264", fps=max(1, round(fps)))
                    images.imwrite(film.with_suffix(".mp4"), even, **how)
                display.say(f"{film}: {len(frames):,} frames, drawn in {time.monotonic() - begun:.0f} s")
    except UserError:
        raise
    except Exception as error:  # simulators raise many kinds of errors if they cannot render
        raise UserError(f"{task.env_id} cannot be rendered here ({described(error)}); {instead}") from error
    finally:
        pool.close()


def choose_renderer(pool: Pool) -> bool:
    """Choose the renderer of MuJoCo environments on a machine without a screen, before long rollouts.

    Returns:
        Whether the renderer runs on the CPU.

    Raises:
        UserError: no renderer works here.
    """
    if model_of(pool.envs[0]) is None or os.environ.get("DISPLAY"):
        return False
    rendering.say_of_software(chosen := rendering.choose(), "films have no shadows" * _is_blind(pool))
    return chosen.software


def _is_blind(pool: Pool) -> bool:
    """Whether observations contain no images."""
    return all(len(leaf.shape) == 1 for leaf in pool.spec.obs)


def frames_per_second(env: gymnasium.Env) -> float:
    """The frame rate of an environment's videos; 30 if it does not state one."""
    fps = (env.metadata or {}).get("render_fps")
    return float(fps) if isinstance(fps, numbers.Real) and 0 < fps < math.inf else 30.0
