"""A robot arm that plays with cubes, drawers and buttons, controlled by OGBench's scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from offlinerl.data.episode import Episode
from offlinerl.rollout.policy import Policy
from offlinerl.util.trees import Tree

ROBOT, CUBE, BUTTON, SLIDE = 19, 9, 4, 2
"""Numbers in an observation for the robot, then for each cube, each button, and the drawer and the window."""

CENTRE, SCALE = np.array([0.425, 0.0, 0.0]), 10.0
"""An observation encodes a position in m as ``SCALE (position - CENTRE)``."""

SLIDES = dict(drawer=18.0, window=15.0)
"""Factors by which an observation multiplies how far these are open, in m."""

NEAR = 0.04
"""In m; an object within this distance of its target counts as being there."""


class Oracle(Policy):
    """Carries out one random task after another: it picks a cube up and puts it down, presses a button, or opens or
    closes the drawer or the window. The motion is planned when a task begins, with smoothed noise.

    Args:
        envs: E of OGBench's manipulation environments in the mode ``data_collection``, wrapped or not.
        seed: determines the random part of the plans, together with the lane and the number of an episode.
        lanes: E numbers, which of the recipe's environments they are.
        noise: its scale; 0.1 in OGBench's data.

    Source: Park et al., OGBench, 2025, whose ``generate_manipspace.py`` makes its ``play`` data in this way.
    """

    def __init__(self, envs: Sequence[gym.Env], seed: int, lanes: Sequence[int], noise: float = 0.1) -> None:
        self.envs, self.seeds, self.lanes = [env.unwrapped for env in envs], (seed,), tuple(lanes)
        self.noise, self.device = noise, "cpu"
        self.plans: list[Any] = [None] * len(envs)
        self.rngs: list[np.random.Generator] = [np.random.default_rng()] * len(envs)

    def begin(self, where: np.ndarray, episodes: np.ndarray) -> None:
        for e in np.flatnonzero(where[0]).tolist():
            self.rngs[e] = np.random.default_rng([*self.seeds, self.lanes[e], int(episodes[0, e])])
            self.plans[e] = self._plan(e)

    def act(self, obs: Tree, explore: bool = False) -> Tensor:
        actions = np.zeros((1, len(self.envs), 5), np.float32)
        for e, env in enumerate(self.envs):
            if self.plans[e] is None:  # made all its episodes before a restart, and began none
                continue
            if self.plans[e].done:
                env.set_new_target(return_info=False)
                self.plans[e] = self._plan(e)
            actions[0, e] = self.plans[e].select_action(None, env.get_step_info())
        return torch.from_numpy(actions).clamp(-1, 1)

    def _plan(self, e: int) -> Any:
        """A plan for the task that an environment currently asks for."""
        info = self.envs[e].get_step_info()
        task = info["privileged/target_task"]
        module = import_module(f"ogbench.manipspace.oracles.plan.{task}_plan")
        plan = getattr(module, f"{task.capitalize()}PlanOracle")(env=self.envs[e], noise=self.noise)
        with _global_seed(int(self.rngs[e].integers(2**32))):
            plan.reset(None, info)
        return plan


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seeds numpy's global generator, which OGBench's plans draw from, and restores it afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def relabelled(episode: Episode, goal: Mapping[str, Any]) -> Episode:
    """The episode with the rewards for one task: minus the number of objects that are not at their target. A step whose
    first state has all of them there is terminal; the robot plays on, so that others may follow.

    Args:
        episode: T steps, T + 1 observations.
        goal: any of ``cubes``, their positions in m, ``buttons``, their states 0 or 1, ``drawer`` and ``window``, m
            open.

    Source: OGBench's ``relabel_utils.py``.
    """
    obs, at, met = np.asarray(episode.observations[:-1], float), ROBOT, []
    for place in goal.get("cubes", ()):
        met.append(np.linalg.norm(obs[:, at : at + 3] / SCALE + CENTRE - place, axis=1) <= NEAR)
        at += CUBE
    for state in goal.get("buttons", ()):
        met.append(obs[:, at : at + 2].argmax(1) == state)
        at += BUTTON
    for name, scale in SLIDES.items():
        if name in goal:
            met.append(abs(obs[:, at] / scale - goal[name]) <= NEAR)
            at += SLIDE
    unmet = len(met) - np.sum(met, 0)  # [T]
    return episode._replace(rewards=-unmet.astype(episode.rewards.dtype), terminations=unmet == 0)
