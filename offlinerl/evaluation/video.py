"""Films of policies."""

from __future__ import annotations

import math
import numbers
from pathlib import Path

import gymnasium
import numpy as np
import torch

from offlinerl.agents.base import Agent
from offlinerl.envs.checks import described
from offlinerl.envs.make import make, native_action
from offlinerl.evaluation.task import Task
from offlinerl.util.errors import UserError


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
