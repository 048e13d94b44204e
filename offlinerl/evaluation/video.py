"""Films of policies."""

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
from offlinerl.envs.make import Pool, steps_allowed
from offlinerl.envs.pixels import model_of, without_shadows
from offlinerl.evaluation.task import Task
from offlinerl.rollout.loop import EnvironmentLoop, diverged_in_words
from offlinerl.rollout.policy import Policy, apart
from offlinerl.util.display import Display
from offlinerl.util.errors import UserError
from offlinerl.util.settings import named


def record_videos(policy: Policy, task: Task, seed: int, folder: Path, display: Display | None = None) -> None:
    """Write one episode of every seed's policy as ``seed-<s>.gif``, of several values as ``seed-<s>-beta-<x>.gif``, and
    as MP4 too if PyAV is installed.

    Args:
        policy: S policies.
        task: where they act.
        seed: what every episode is reset with.
        folder: to write into.
        display: shows how many frames are drawn, which takes minutes with some simulators, and says of each film.

    Raises:
        UserError: the environment cannot be rendered on this machine, or renders nothing; see also ``evaluate``.
    """
    import imageio.v3 as images

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    instead = "on a machine without a screen install libosmesa6 and set MUJOCO_GL=osmesa"
    S = len(policy.seeds)
    pool = Pool(task.env, S, task.obs_keys, render_mode="rgb_array")
    plain = choose_renderer(pool) and _is_blind(pool)  # shadows are most of a CPU's work
    loop, policy = EnvironmentLoop(pool, S, lambda s, e, episode: seed, "stop"), apart(policy, range(1))
    drawn, display = 0, display or Display()
    try:
        members = getattr(policy, "members", [dict(seed=number) for number in policy.seeds])
        with display.bar("drawing", S * (steps_allowed(task.env) or 0) or None, unit="frames"):
            for s, (member, env) in enumerate(zip(members, pool.envs, strict=True)):
                loop.begin(np.arange(S)[:, None] == s, np.zeros(loop.shape, int), policy)
                if plain:
                    without_shadows(model_of(env))  # some tasks make another one for every episode
                frames, begun = [], time.monotonic()
                while loop.playing.any():
                    loop.step(policy)
                    frames.append(env.render())
                    drawn += 1
                    display.advance(drawn)
                if loop.diverged[s]:
                    display.say_once(f"{diverged_in_words(policy, s)}; it is not filmed")
                    continue
                if not all(isinstance(f, np.ndarray) and f.dtype == np.uint8 and f.ndim == 3 for f in frames):
                    raise UserError(
                        f"{task.env_id} renders no pictures: in the mode rgb_array its render() must return arrays"
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
    except Exception as error:  # every simulator has its own way to say that it cannot draw
        raise UserError(f"{task.env_id} cannot be rendered here ({described(error)}); {instead}") from error
    finally:
        pool.close()


def choose_renderer(pool: Pool) -> bool:
    """Choose what draws the environments of MuJoCo, where there is no screen, before they are played for long.

    Returns:
        Whether a CPU draws them.

    Raises:
        UserError: nothing draws here.
    """
    if model_of(pool.envs[0]) is None or os.environ.get("DISPLAY"):
        return False
    rendering.say_of_software(chosen := rendering.choose(), "films have no shadows" * _is_blind(pool))
    return chosen.software


def _is_blind(pool: Pool) -> bool:
    """Whether nothing that is observed is drawn."""
    return all(len(leaf.shape) == 1 for leaf in pool.spec.obs)


def frames_per_second(env: gymnasium.Env) -> float:
    """How fast an environment's pictures are to be shown; 30 where it does not say."""
    fps = (env.metadata or {}).get("render_fps")
    return float(fps) if isinstance(fps, numbers.Real) and 0 < fps < math.inf else 30.0
