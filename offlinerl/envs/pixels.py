"""Tasks observed as images: MuJoCo tasks as in DrQ-v2 (Yarats et al., ICLR 2022), section 4.1, and tasks whose
observations are images themselves."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from PIL import Image

from offlinerl.envs import rendering
from offlinerl.envs.atari import ALE
from offlinerl.envs.spaces import name_of
from offlinerl.util.errors import UserError
from offlinerl.util.trees import Tree, tree_map

REPEAT = 2
"""Default number of steps for which an action is held."""

DEFAULTS = dict(size=84, repeat=None, fast=False, camera=None)
"""How a task is seen by default: see ``Pixels`` and ``camera``."""

STACK = 3
"""Default number of frames in an observation of a task that is seen as images."""

WALKERS = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "Swimmer", "Walker2d")
CAMERAS: dict[str, int | str] = {
    "dm_control/quadruped": 2,
    "dm_control/manipulation": "front_close",
    **{f"{walker}-v{version}": "track" for walker in WALKERS for version in (4, 5)},
}
"""Cameras other than a task's own, by the beginning of its id: for dm_control those chosen by DrQ-v2's authors; for
Gymnasium those that follow the robot, which leaves the view of the default one."""

SIZE = ("width", "height", "camera_id", "camera_name")
"""Arguments that only an environment that renders in any size takes; see ``arguments`` and ``camera``."""


def arguments(env_id: str, pixels: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with which an environment must be made to be seen as pixels."""
    if env_id.startswith(ALE):
        return dict(frameskip=1)  # its observations are frames already
    return dict(render_mode="rgb_array", width=pixels["size"], height=pixels["size"])


def camera(env_id: str, asked: int | str | None) -> dict[str, Any]:
    """The arguments for rendering with a camera, a number or a name; by default that of ``CAMERAS``, or the task's
    own."""
    if env_id.startswith(ALE):
        return {}
    if asked is None:
        asked = next((known for begin, known in CAMERAS.items() if env_id.startswith(begin)), None)
    if asked is None:
        return {}
    return {"camera_name" if isinstance(asked, str) and not env_id.startswith("dm_control/") else "camera_id": asked}


def asked_for(pixels: Any) -> dict[str, Any]:
    """A user's settings for how a task is seen, completed with the defaults; ``True`` means all defaults.

    Raises:
        UserError: they are invalid.
    """
    given = {} if pixels is True else pixels
    if not isinstance(given, Mapping) or not {*given} <= {*DEFAULTS}:
        raise UserError(f"pixels must be true, or some of {', '.join(DEFAULTS)} and their values, not {pixels!r}")
    how = {**DEFAULTS, **given}
    for name in ("size", "repeat"):
        if (type(how[name]) is not int or how[name] < 1) and how[name] is not DEFAULTS[name]:
            raise UserError(f"{name} of pixels must be a whole number of at least 1, not {how[name]!r}")
    if type(how["fast"]) is not bool or not isinstance(how["camera"], int | str | None):
        raise UserError(f"fast of pixels must be true or false, and camera a number or a name, not {pixels!r}")
    return how


class Pixels(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """An environment observed as rendered frames ``[size, size, 3]`` of uint8, in which every action is held for some
    steps.

    Args:
        env: a MuJoCo environment, made with ``arguments``.
        size: of a frame, in pixels.
        repeat: steps for which an action is held, at most until the end of the episode; their rewards are summed.
        fast: whether to omit shadows, reflections and multisampling, which take most of the time without a GPU.

    Raises:
        UserError: nothing can render here, the environment has no MuJoCo model, or a frame has another size or is
            black.
    """

    def __init__(self, env: gym.Env, size: int = 84, repeat: int = 2, fast: bool = False):
        gym.utils.RecordConstructorArgs.__init__(self, size=size, repeat=repeat, fast=fast)
        gym.Wrapper.__init__(self, env)
        self.renderer = rendering.choose()
        rendering.say_of_software(self.renderer, "" if fast else rendering.FAST_SCENE)
        self.name = name_of(env)
        self.size, self.repeat, self.fast = size, repeat, fast
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        if "render_fps" in self.metadata:
            self.metadata = {**self.metadata, "render_fps": self.metadata["render_fps"] / repeat}
        self.plain: Any = None  # the model rendered without shadows
        self.drawing, self.closed = ThreadPoolExecutor(1), False  # an OpenGL context belongs to its thread
        self._model()

    def reset(self, **how: Any) -> tuple[np.ndarray, dict[str, Any]]:
        _, info = self.env.reset(**how)
        return self._frame(), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.repeat):
            _, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return self._frame(), total, terminated, truncated, info

    def _frame(self) -> np.ndarray:
        if self.fast and (model := self._model()) is not self.plain:  # some tasks make a new one per episode
            self.plain = without_shadows(model)
        frame = np.asarray(self.render())
        if frame.shape != self.observation_space.shape or frame.dtype != np.uint8:
            raise UserError(
                f"{self.name} renders frames of {frame.shape} {frame.dtype} instead of {self.observation_space.shape}"
                " uint8: it ignores width and height"
            )
        if not frame.any():
            why = "its camera sees nothing: use another one"
            if self.renderer.backend != "osmesa":
                why = f"with {self.renderer.backend} this happens when another environment is closed: MUJOCO_GL=osmesa"
            raise UserError(f"{self.name} renders a black frame; {why}")
        return frame

    def render(self) -> Any:
        return self.drawing.submit(self.env.render).result()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.drawing.submit(self.env.close).result()
            self.drawing.shutdown()

    def _model(self) -> Any:
        if (model := model_of(self.env)) is None:
            raise UserError(
                f"{self.name} has no MuJoCo model: --pixels works for dm_control and Gymnasium's MuJoCo tasks;"
                " leave it out"
            )
        return model


def model_of(env: gym.Env) -> Any:
    """The MuJoCo model of a task, dm_control's or Gymnasium's; None for other environments."""
    inner = env.unwrapped
    model = getattr(getattr(getattr(inner, "control", None), "physics", inner), "model", None)
    return model if hasattr(model, "vis") else None


def is_rgb(space: gym.Space) -> bool:
    """Whether observations are images ``[H, W, 3]`` of uint8."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[-1] == 3


CAR_RACING = "gymnasium.envs.box2d.car_racing"


class Resized(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """An environment whose observations are images, resized to frames ``[size, size, 3]``, in which every action is
    held for some steps. Every pixel is the mean of the area that it covers.

    Args:
        env: with images ``[H, W, 3]`` of uint8, such as CarRacing.
        size: of a frame, in pixels.
        repeat: steps for which an action is held, at most until the end of the episode; their rewards are summed.
    """

    def __init__(self, env: gym.Env, size: int, repeat: int):
        gym.utils.RecordConstructorArgs.__init__(self, size=size, repeat=repeat)
        gym.Wrapper.__init__(self, env)
        self.renderer = None  # it shows pixels, but renders none
        self.size, self.repeat = size, repeat
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)

    def reset(self, **how: Any) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(**how)
        return self._frame(obs), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        total, inner = 0.0, self.env.unwrapped
        draws = any(of.__module__ == CAR_RACING for of in type(inner).__mro__)
        for left in range(self.repeat - 1, -1, -1):
            if undrawn := left and draws:  # CarRacing renders at every step, which takes most of its time
                inner._render = lambda mode: inner.state
            try:
                obs, reward, terminated, truncated, info = self.env.step(action)
            finally:
                if undrawn:
                    del inner._render
            total += float(reward)
            if terminated or truncated:
                obs = inner._render("state_pixels") if undrawn else obs
                break
        return self._frame(obs), total, terminated, truncated, info

    def _frame(self, obs: np.ndarray) -> np.ndarray:
        return np.array(Image.fromarray(obs).resize((self.size, self.size), Image.Resampling.BOX))


def without_shadows(model: Any) -> Any:
    """A MuJoCo model, changed to be rendered without shadows, reflections and multisampling from now on."""
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 0
    model.light_castshadow[:] = 0
    model.mat_reflectance[:] = 0
    return model


def is_fast(env: Mapping[str, Any]) -> bool:
    """Whether a described environment, see ``offlinerl.envs.make``, is rendered without shadows."""
    wrappers = json.loads(env["spec"]).get("additional_wrappers", ()) if "spec" in env else ()
    ours = (of["kwargs"] or {} for of in wrappers if of["entry_point"] == f"{__name__}:{Pixels.__name__}")
    return bool(env.get("pixels", {}).get("fast")) or any(how.get("fast") for how in ours)


class Stacked(gym.Wrapper):
    """An environment whose observations are its latest ones stacked along the last axis, oldest first; at the beginning
    of an episode the first one is repeated.

    Args:
        env: with vectors or images, or a dictionary of them.
        count: observations in a stack.
    """

    def __init__(self, env: gym.Env, count: int):
        super().__init__(env)
        self.latest: deque[Tree] = deque(maxlen=count)
        self.observation_space = _widened(env.observation_space, count)

    def reset(self, **how: Any) -> tuple[Tree, dict[str, Any]]:
        obs, info = self.env.reset(**how)
        self.latest.extend([tree_map(np.array, obs)] * (self.latest.maxlen or 1))
        return self._stack(), info

    def step(self, action: Any) -> tuple[Tree, Any, bool, bool, dict[str, Any]]:
        obs, *rest = self.env.step(action)
        self.latest.append(tree_map(np.array, obs))  # copied, because some environments reuse the array
        return self._stack(), *rest

    def _stack(self) -> Tree:
        return tree_map(lambda *leaves: np.concatenate(leaves, -1), *self.latest)


def _widened(space: gym.Space, count: int) -> gym.Space:
    if isinstance(space, spaces.Dict):
        return spaces.Dict({path: _widened(part, count) for path, part in space.items()})
    if len(space.shape) == 2:
        raise UserError(
            f"images of shape {space.shape} have no channel axis on which to stack them: give them the shape"
            f" {(*space.shape, 1)}, or leave out --stack"
        )
    low, high = (np.concatenate([side] * count, -1) for side in (space.low, space.high))
    return spaces.Box(low, high, dtype=space.dtype)


def newest(obs: Tree, count: int) -> Tree:
    """The latest one of ``count`` stacked observations, ``[..., count D] -> [..., D]``."""
    return obs if count == 1 else tree_map(lambda leaf: leaf[..., -(leaf.shape[-1] // count) :], obs)
