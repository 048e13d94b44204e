"""The DeepMind Control Suite, and one of dm_control's manipulation tasks, observed as states.

Needs the extra ``pixels``, which brings dm_control.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
import weakref
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from offlinerl.envs import rendering

EPISODE_STEPS = 1000
"""Control steps in an episode, in every task of ``TASKS``."""

TASKS = {
    "acrobot": ("swingup", "swingup_sparse"),
    "ball_in_cup": ("catch",),
    "cartpole": ("balance", "balance_sparse", "swingup", "swingup_sparse", "two_poles", "three_poles"),
    "cheetah": ("run",),
    "dog": ("stand", "walk", "trot", "run", "fetch"),
    "finger": ("spin", "turn_easy", "turn_hard"),
    "fish": ("upright", "swim"),
    "hopper": ("stand", "hop"),
    "humanoid": ("stand", "walk", "run", "run_pure_state"),
    "humanoid_CMU": ("stand", "walk", "run"),
    "manipulator": ("bring_ball", "bring_peg", "insert_ball", "insert_peg"),
    "pendulum": ("swingup",),
    "point_mass": ("easy", "hard"),
    "quadruped": ("walk", "run", "escape", "fetch"),
    "reacher": ("easy", "hard"),
    "stacker": ("stack_2", "stack_4"),
    "swimmer": ("swimmer6", "swimmer15"),
    "walker": ("stand", "walk", "run"),
}
"""The suite's tasks by domain, except the two of lqr: these have no time limit, negative rewards, and a model that is
itself random. ``quadruped-escape`` passes its terrain to the renderer, so its reset needs OpenGL."""


MANIPULATION, MANIPULATION_STEPS = {"manipulation": ("reach_duplo",)}, 250
"""Of ``dm_control.manipulation``, whose arm is not part of the suite: the task used in DrQ-v2, and the control steps of
an episode, which takes ten seconds."""


def register() -> None:
    """Registers ``dm_control/<domain>-<task>-v0`` with Gymnasium. The simulator is loaded when one is first made."""
    for domain, tasks in {**TASKS, **MANIPULATION}.items():
        for task in tasks:
            name = f"dm_control/{domain}-{task}-v0"
            if name not in gym.registry:
                gym.register(name, entry_point=f"{__name__}:Control", kwargs={"domain": domain, "task": task})


def steps_allowed(env_id: str, action_repeat: int = 1, **others: Any) -> int | None:
    """Number of actions in an episode of ``dm_control/<domain>-<task>-v0``, made with these arguments; None for a
    domain that is not registered here. Loads no simulator."""
    domain = env_id.removeprefix("dm_control/").partition("-")[0]
    steps = MANIPULATION_STEPS if domain in MANIPULATION else EPISODE_STEPS if domain in TASKS else None
    return steps and math.ceil(steps / action_repeat)


def load() -> ModuleType:
    """Imports ``dm_control.suite``, without the warning of its window library on machines without a screen.

    Raises:
        DependencyNotInstalled: dm_control is missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from dm_control import suite
    except ModuleNotFoundError as error:
        raise gym.error.DependencyNotInstalled(
            "the DeepMind Control Suite is not installed; pip install 'offlinerl[pixels]'"
        ) from error
    return suite


class Control(gym.Env[np.ndarray, np.ndarray]):
    """A task of the DeepMind Control Suite (Tassa et al., 2018; Tunyasuvunakool et al., dm_control, 2020).

    The observation is a float32 vector: the task's arrays, flattened, in the task's order. An action is the control of
    every actuator; the simulator clips values beyond the bounds. The reward of a control step is between 0 and 1.

    An episode is truncated after 1000 control steps (250 in manipulation), and terminates only if the task signals it
    by a discount of 0, which none of the registered ones does; the two never coincide.

    Args:
        domain: such as "cheetah".
        task: such as "run".
        action_repeat: control steps for which an action is held, at most until the end of the episode; their rewards
            are summed. ``spec.max_episode_steps`` counts actions.
        height, width: of the image, in pixels, at most what the model allows (480 and 640 unless it says more).
        camera_id: number or name of the camera; -1 is the free one.
        render_mode: None or "rgb_array".

    Raises:
        DependencyNotInstalled: dm_control is missing.
        ValueError: the suite has no such task, or ``action_repeat`` is not a positive integer.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}
    _spec: EnvSpec | None = None

    def __init__(
        self,
        domain: str,
        task: str,
        action_repeat: int = 1,
        height: int = 240,
        width: int = 320,
        camera_id: int | str = 0,
        render_mode: str | None = None,
    ) -> None:
        if not isinstance(action_repeat, int) or action_repeat < 1:
            raise ValueError(f"action_repeat must be a whole number of at least 1, not {action_repeat!r}")
        if render_mode and "dm_control" not in sys.modules:
            rendering.choose()  # dm_control reads the choice when it is imported
        suite = load()
        if domain in MANIPULATION:
            from dm_control import manipulation

            self.control, self.steps = manipulation.load(f"{task}_features"), MANIPULATION_STEPS
        else:
            self.control, self.steps = suite.load(domain, task), EPISODE_STEPS
        # Referenced from outside: if dm_control collects it as garbage, it waits forever for a thread that has ended.
        self._free = weakref.finalize(self, lambda control: control.physics.free(), self.control)
        self._free.atexit = False  # at exit dm_control frees it itself
        self.action_repeat = action_repeat
        self.render_mode = render_mode
        self.camera = dict(height=height, width=width, camera_id=camera_id)
        self.metadata = {**self.metadata, "render_fps": 1 / (self.control.control_timestep() * action_repeat)}
        size = sum(math.prod(part.shape) for part in self.control.observation_spec().values())
        bounds = self.control.action_spec()
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = gym.spaces.Box(*np.float32([bounds.minimum, bounds.maximum]))
        self._ended = True

    @property
    def spec(self) -> EnvSpec | None:
        """The specification of this environment, with the time limit, although the suite enforces it and not a
        wrapper."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = spec and dataclasses.replace(spec, max_episode_steps=math.ceil(self.steps / self.action_repeat))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode. The seed, below 2^32, determines everything in it except the actions, and is passed to the
        suite as ``random``; without one, ``np_random`` draws it."""
        super().reset(seed=seed)
        random = self.control.random_state if hasattr(self.control, "random_state") else self.control.task.random
        random.seed(self.np_random.integers(2**32) if seed is None else seed)
        self._ended = False
        return _flat(self.control.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Holds the action for ``action_repeat`` control steps.

        Raises:
            ResetNeeded: the episode is over; the suite itself would silently start another one.
        """
        if self._ended:
            raise gym.error.ResetNeeded("the episode is over; call reset first")
        reward = 0.0
        for _ in range(self.action_repeat):
            now = self.control.step(action)
            reward += float(now.reward)
            if now.last():
                break
        self._ended = now.last()
        terminated = self._ended and now.discount == 0
        return _flat(now.observation), reward, terminated, self._ended and not terminated, {}

    def render(self) -> np.ndarray | None:
        """An image ``[height, width, 3]`` of uint8, or None without a ``render_mode``."""
        return self.control.physics.render(**self.camera) if self.render_mode else None

    def close(self) -> None:
        """Releases the simulator and its renderer."""
        self._free()


def _flat(observation: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([*observation.values()], axis=None, dtype=np.float32)  # flattens scalars too
