"""Makes environments from plain descriptions."""

from __future__ import annotations

import copy
import importlib
import json
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import offlinerl.envs  # noqa: F401  (registers our environments)
from offlinerl.envs import atari, checks, control, pixels, robotics, spaces
from offlinerl.envs.goals import GoalSeen, shows_goal
from offlinerl.types import Spec
from offlinerl.util.errors import UserError, first_line
from offlinerl.util.interrupt import raise_interrupt

EXTRAS = {"ogbench": "manipulation"}
"""Packages that register environments, and the extras that install them."""


def make(
    env: Mapping[str, Any], obs_keys: Sequence[str] | None = None, render_mode: str | None = None, observed: bool = True
) -> gym.Env:
    """Makes an environment with the observations that agents see; see ``offlinerl.envs.spaces.observe``.

    Args:
        env: ``{"id": ..., "kwargs": {...}}``, or ``{"spec": ...}`` with Gymnasium's JSON of a specification, or
            ``{"id": ..., "factory": ...}`` with a function that makes it, see ``described``. It may also have
            ``max_episode_steps``, the time limit; ``action_range``, lower and upper bounds for its actions, a number or
            A numbers each; ``goal``, the size of the goal to add to its observations, see
            ``offlinerl.envs.goals.GoalSeen``; ``pixels``, how it is rendered, see
            ``offlinerl.envs.pixels.asked_for``; and ``stack``, the number of frames in an observation.
        obs_keys: the parts of a ``Dict`` observation, in order; by default all of them.
        render_mode: passed on if given.
        observed: False keeps the environment's own observations, without ``stack``.

    Raises:
        UserError: the environment is unknown, lacks a dependency, or refuses its arguments.
    """
    made = _created(env, arguments_of(env, render_mode))
    if env.get("pixels"):
        made = _as_pixels(made, env)
    if "action_range" in env:
        made = Bounded(made, *env["action_range"])
    if "goal" in env and not shows_goal(made):
        made = GoalSeen(made, env["goal"])
    if not observed:
        return made
    if not spaces.is_observed(made.observation_space):
        made = spaces.Observed(made, obs_keys)
    return pixels.Stacked(made, env["stack"]) if env.get("stack", 1) > 1 else made


def arguments_of(env: Mapping[str, Any], render_mode: str | None) -> dict[str, Any]:
    """The arguments that a description implies besides its own ``kwargs``: how to render, and the time limit."""
    drawn = env.get("pixels")
    if "factory" in env:  # its function takes no arguments
        if drawn:
            raise UserError(f"the environment {env['id']} was given as an object: wrap it in Pixels yourself")
        return {}
    arguments: dict[str, Any] = {"render_mode": render_mode} if render_mode else {}
    if drawn:
        arguments |= pixels.arguments(id_of(env), drawn)
    if "render_mode" in arguments:
        arguments |= _camera(env)
    if "max_episode_steps" in env:
        arguments["max_episode_steps"] = env["max_episode_steps"]
    elif "spec" not in env and env["id"].startswith(atari.MINATAR):
        arguments["max_episode_steps"] = atari.MINATAR_STEPS
    return arguments


def _created(env: Mapping[str, Any], arguments: Mapping[str, Any]) -> gym.Env:
    """The environment with its own observations.

    Raises:
        UserError: for any error of the environment.
    """
    drawn = env.get("pixels")
    try:
        made = _drawn(env, arguments) if drawn else _made(env, arguments)
    except UserError:
        raise
    except Exception as error:  # user code may raise anything
        raise_interrupt(error)
        name = id_of(env)
        if drawn and isinstance(error, TypeError):
            raise UserError(f"{name} cannot be rendered in any size: leave out --pixels") from error
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            hint = "; install that module or run in its folder, or give another --env, as in MODULE:ID"
        raise UserError(f"environment {name} cannot be made: {first_line(error)}{hint}") from error
    is_minatar = "factory" not in env and id_of(env).startswith(atari.MINATAR)
    return atari.Planes(made) if is_minatar and made.observation_space.dtype == bool else made


def _as_pixels(made: gym.Env, env: Mapping[str, Any]) -> gym.Env:
    """The environment with images as observations: a game's screen, its own images resized, or rendered ones."""
    name, how, shows = id_of(env), env["pixels"], pixels.is_rgb(made.observation_space)
    is_game = name.startswith(atari.ALE)
    if (is_game or shows) and (how["fast"] or how["camera"] is not None):
        made.close()
        raise UserError(f"{name} returns images already: leave out --fast-scene, and any camera")
    if is_game:
        return atari.preprocessed(made, how["size"], how["repeat"])
    if made.has_wrapper_attr("renderer"):
        raise UserError(f"{name} returns images already: leave out --pixels")
    if shows:
        return pixels.Resized(made, how["size"], how["repeat"])
    return pixels.Pixels(made, how["size"], how["repeat"], how["fast"])


def _drawn(env: Mapping[str, Any], arguments: Mapping[str, Any]) -> gym.Env:
    """An environment to be seen as images: one that renders in any size, or whose observations are images."""
    try:
        return _made(env, arguments)
    except TypeError:
        made = _made(env, {name: arguments[name] for name in arguments if name not in pixels.SIZE})
        if pixels.is_rgb(made.observation_space):
            return made
        raise


def _camera(env: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for the requested camera, or else for a suitable one."""
    asked = (env.get("pixels") or {}).get("camera")
    given = json.loads(env["spec"])["kwargs"] if "spec" in env else env.get("kwargs", {})
    if asked is None and {"camera_id", "camera_name"} & {*given}:
        return {}
    return pixels.camera(id_of(env), asked)


def _made(env: Mapping[str, Any], arguments: Mapping[str, Any]) -> gym.Env:
    """The environment itself, made with further arguments."""
    if "factory" in env:
        return _made_by(env)
    if "spec" in env:
        spec = gym.envs.registration.EnvSpec.from_json(env["spec"])
        if str(spec.entry_point).startswith("gymnasium_robotics"):
            robotics.load()
        made = gym.make(spec, **arguments)
    else:
        register(env["id"])
        made = gym.make(env["id"], **{**env.get("kwargs", {}), **arguments}, disable_env_checker=True)
    if path := getattr(made.unwrapped, "tmp_xml_file_path", None):  # Gymnasium-Robotics' mazes leave it behind
        Path(path).unlink(missing_ok=True)
    return made


def register(env_id: str) -> None:
    """Imports the package that may provide an environment, if Gymnasium does not know it yet.

    Raises:
        UserError: the package is an extra that is not installed.
    """
    module = env_id.rpartition(":")[0]
    if module in EXTRAS:
        if find_spec(module) is None:
            extra = EXTRAS[module]
            raise UserError(f"{env_id} needs {module}, which is not installed: pip install 'offlinerl[{extra}]'")
        # It makes its spaces again and again, each time with the first warning, and looks for a screen.
        for message in (".*precision lowered by casting", ".*DISPLAY environment variable is missing"):
            warnings.filterwarnings("ignore", message=message)
    if env_id not in gym.registry and not atari.register(env_id):
        gym.register_envs(robotics.load())


def described(env: gym.Env | Callable[[], gym.Env]) -> dict[str, Any]:
    """A user's environment, or a function that makes one, as ``make`` takes it: by its specification if Gymnasium can
    make it again from that, wrappers included, else as the object itself.

    Raises:
        UserError: it is neither, or the function fails.
    """
    if isinstance(env, gym.Env):
        known = specification(env)
        return {"spec": known} if known else {"id": _path_of(env), "factory": Lender(env)}
    if not callable(env):
        raise UserError(
            f"env must be a name, a gymnasium.Env or a function that makes one, not {type(env).__name__} {env!r:.60}"
        )
    made = make({"id": getattr(env, "__qualname__", repr(env)), "factory": env}, observed=False)
    checks.close(made)
    return {"id": _path_of(made), "factory": env}


def plain(env: Any) -> Any:
    """A description as a file can hold it: without the object."""
    return {**env, "factory": None} if isinstance(env, Mapping) and "factory" in env else env


def id_of(env: Mapping[str, Any]) -> str:
    """The Gymnasium id of a described environment."""
    return env["id"] if "id" in env else json.loads(env["spec"])["id"]


def _path_of(env: gym.Env) -> str:
    kind = type(env.unwrapped)
    return env.spec.id if env.spec else f"{kind.__module__}.{kind.__qualname__}"


def _made_by(env: Mapping[str, Any]) -> gym.Env:
    if env["factory"] is None:
        raise UserError(
            f"the environment {env['id']} was given as an object, which no file holds: pass it again, in Python, as"
            " env="
        )
    made = env["factory"]()
    if not isinstance(made, gym.Env):
        raise UserError(f"the function {env['id']} returns no gymnasium.Env but {type(made).__name__} {made!r:.60}")
    return gym.wrappers.TimeLimit(made, env["max_episode_steps"]) if "max_episode_steps" in env else made


class Lender:
    """Lends a user's single environment, which cannot be made again, to one borrower at a time."""

    def __init__(self, env: gym.Env):
        self.env, self.lent = env, False

    def __call__(self) -> gym.Env:
        if self.lent:
            raise UserError(
                f"{spaces.name_of(self.env)} is one environment, but several are needed at a time, for parallel seeds"
                " or episodes, or to act in one and evaluate in another: pass a function that makes one, as in"
                " env=lambda: MyEnv()"
            )
        self.lent = True
        return Lent(self.env, self)


class Lent(gym.Wrapper):
    """A user's environment; closing it returns it to its lender."""

    def __init__(self, env: gym.Env, lender: Lender):
        super().__init__(env)
        self.lender = lender

    def close(self) -> None:
        self.lender.lent = False


def side_by_side(env: Mapping[str, Any], wanted: int) -> int:
    """How many instances of an environment can exist at a time, up to ``wanted``."""
    return 1 if isinstance(env.get("factory"), Lender) else wanted


class Bounded(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """An environment with bounds, a number or A numbers each, in the action dimensions that have none; the effect of an
    action does not change.

    Raises:
        UserError: its actions already have bounds or are not vectors, or the given bounds do not fit them.
    """

    def __init__(self, env: gym.Env, low: float | Sequence[float], high: float | Sequence[float]):
        gym.utils.RecordConstructorArgs.__init__(self, low=low, high=high)
        gym.Wrapper.__init__(self, env)
        name, space = spaces.name_of(env), env.action_space
        open_ = checks.unbounded(space)
        if not open_.any():
            raise UserError(f"{name} has actions {space}, which need no other bounds: leave out --action-range")
        try:
            low, high = (np.broadcast_to(np.asarray(side, np.float64), space.shape) for side in (low, high))
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: the action range has other dimensions than its {space.shape} actions") from error
        if space.dtype.kind != "f":
            low, high = np.ceil(low), np.floor(high)
        # A dimension with only one bound keeps that, if it is narrower than the given one.
        low = np.where(open_, np.fmax(low, space.low), space.low)
        high = np.where(open_, np.fmin(high, space.high), space.high)
        if not (low <= high).all():
            raise UserError(f"{name}: the action range does not overlap with its actions, {space}; give another one")
        self.action_space = gym.spaces.Box(low.astype(space.dtype), high.astype(space.dtype), space.shape, space.dtype)


def specification(env: gym.Env) -> str | None:
    """The specification from which an environment of ``make`` can be made again, with its own observations, as
    Gymnasium's JSON. None if it has no specification, or one with wrappers that do not record their arguments, or with
    something that cannot be found by name, such as a nested function."""
    spec = copy.deepcopy(native(env).spec)
    if spec is None or any(wrapper.kwargs is None for wrapper in spec.additional_wrappers):
        return None
    maker = spec.entry_point
    if callable(maker):
        module, name = (getattr(maker, attribute, None) for attribute in ("__module__", "__qualname__"))
        if module in (None, "__main__") or getattr(sys.modules.get(module), str(name), None) is not maker:
            return None
        spec.entry_point = f"{module}:{name}"
    try:
        return spec.to_json()
    except (TypeError, ValueError):  # its arguments are not plain data
        return None


def unbounded_actions(env: Mapping[str, Any]) -> np.ndarray:
    """``[A]`` bool, which action dimensions of an environment have no bounds; empty for discrete actions."""
    with checks.closing(make(env, observed=False)) as made:
        return checks.unbounded(made.action_space)


def with_limits(env: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    """A description of an environment, updated with the keys of ``LIMITS`` that ``limits`` has. Pixels imply frame
    stacking."""
    given = {key: limits[key] for key in LIMITS if limits.get(key) is not None}
    if given.get("pixels"):
        how, game = pixels.asked_for(given["pixels"]), "id" in env and env["id"].startswith(atari.ALE)
        how["repeat"] = how["repeat"] or (atari.REPEAT if game else pixels.REPEAT)
        given = {"stack": env.get("stack", atari.STACK if game else pixels.STACK), **given, "pixels": how}
    return {**env, **given}


LIMITS = ("max_episode_steps", "action_range", "pixels", "stack")
"""What a description may say about an environment besides its name; see ``make``."""


def without_stack(env: Mapping[str, Any]) -> dict[str, Any]:
    """A description of the environment without frame stacking."""
    return {key: value for key, value in env.items() if key != "stack"}


def native(env: gym.Env) -> gym.Env:
    """An environment of ``make`` with its original observations."""
    while isinstance(env, spaces.Observed | pixels.Stacked):
        env = env.env
    return env


def steps_allowed(env: Mapping[str, Any]) -> int | None:
    """The time limit of an environment of ``make`` in actions, each of which is held for several steps if pixels are
    shown; None if there is none. The environment is made only if necessary."""
    limit = _limit_undrawn(env)
    return limit and math.ceil(limit / env["pixels"]["repeat"]) if env.get("pixels") else limit


def _limit_undrawn(env: Mapping[str, Any]) -> int | None:
    if "max_episode_steps" in env:
        return env["max_episode_steps"]
    if "spec" in env:
        return _limit_in(gym.envs.registration.EnvSpec.from_json(env["spec"]))
    if "factory" in env:
        with checks.closing(make(env, observed=False)) as made:
            return limit_of(made)
    if "max_episode_steps" in env.get("kwargs", {}):
        return env["kwargs"]["max_episode_steps"]
    module, _, name = env["id"].rpartition(":")
    if module:
        with suppress(Exception):  # ``make`` reports it
            importlib.import_module(module)
    if name.startswith(atari.MINATAR):
        return atari.MINATAR_STEPS
    if name.startswith("dm_control/"):
        return control.steps_allowed(name, **env.get("kwargs", {}))
    register(name)
    if name not in gym.registry:
        return None
    game = name.startswith(atari.ALE) and env.get("pixels")
    return _limit_in(gym.registry[name], env.get("kwargs", {}) | (pixels.arguments(name, game) if game else {}))


def limit_of(env: gym.Env) -> int | None:
    """The number of steps after which an environment truncates its episodes; None if unknown."""
    if env.spec is not None:
        return _limit_in(env.spec)
    return env.get_wrapper_attr("_max_episode_steps") if env.has_wrapper_attr("_max_episode_steps") else None


def _limit_in(spec: gym.envs.registration.EnvSpec, given: Mapping[str, Any] = {}) -> int | None:
    """The time limit in a specification, for an environment made with the arguments ``given``."""
    kwargs = {**spec.kwargs, **given}
    frames, skip = kwargs.get("max_num_frames_per_episode"), kwargs.get("frameskip", 1)
    if spec.max_episode_steps is None and spec.id.startswith(atari.ALE) and frames:  # the game itself limits its frames
        return math.ceil(frames / (skip if isinstance(skip, int) else min(skip)))
    return spec.max_episode_steps


def spec_of(env: gym.Env) -> Spec:
    """Shapes and bounds of a task.

    Raises:
        UserError: the actions are neither bounded vectors nor discrete.
    """
    name = spaces.name_of(env)
    obs, action = env.observation_space, env.action_space
    if isinstance(action, gym.spaces.Discrete):
        return Spec.of(obs, action)
    if not isinstance(action, gym.spaces.Box) or len(action.shape) != 1 or not action.shape[0]:
        raise UserError(f"{name} has actions {action}; agents here need a vector or one discrete action")
    if checks.unbounded(action).any():
        raise UserError(f"{name} has actions without bounds; give them with --action-range LOW,HIGH")
    if not (action.low <= action.high).all():
        raise UserError(f"{name} has actions whose lower bounds lie above the upper ones; fix its action_space")
    return Spec.of(obs, action)


def native_action(space: gym.Space, action: np.ndarray) -> np.ndarray | int:
    """An agent's action ``[A]`` as the environment takes it: numbered from the space's first one, or in its own dtype
    and within bounds that float32 may have rounded. Vectors may be ``[..., A]``."""
    if isinstance(space, gym.spaces.Discrete):
        return int(action[0]) + int(space.start)
    if space.dtype.kind != "f":
        action = np.rint(action)
    return np.minimum(np.maximum(action, space.low), space.high).astype(space.dtype, copy=False)
