"""Atari games on ale-py, and MinAtar's small ones. Both need the extra ``atari``."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym
import numpy as np

from offlinerl.util.errors import UserError

ALE, MINATAR = "ALE/", "MinAtar/"
"""How the ids of their environments begin."""

REPEAT, STACK = 4, 4
"""Frames that an action is held for, and that an observation has (Mnih et al., Nature 2015, methods)."""

MINATAR_STEPS = 5000
"""After which an episode of MinAtar's is truncated, which a good player's would not end by itself."""


def register(env_id: str) -> bool:
    """Register the environments of the package that an id belongs to; False if it is neither of these.

    Raises:
        UserError: the package is missing.
    """
    if not env_id.startswith((ALE, MINATAR)):
        return False
    try:
        if env_id.startswith(ALE):
            module = importlib.import_module("ale_py")
            module.ALEInterface.setLoggerMode(module.LoggerMode.Error)
            gym.register_envs(module)
        else:
            importlib.import_module("minatar.gym").register_envs()
    except ModuleNotFoundError as error:
        raise UserError(
            f"{env_id} needs {error.name}, which is not installed: pip install 'offlinerl[atari]'"
        ) from error
    return True


def preprocessed(env: gym.Env, size: int, repeat: int) -> gym.Env:
    """A game of ``frameskip`` 1 as Gymnasium's ``AtariPreprocessing`` shows it: grey frames ``[size, size, 1]``, the
    brighter one of the last two of every ``repeat``, after up to 30 steps of no action.

    Raises:
        UserError: OpenCV, which resizes the frames, is missing.
    """
    try:
        return gym.wrappers.AtariPreprocessing(env, frame_skip=repeat, screen_size=size, grayscale_newaxis=True)
    except gym.error.DependencyNotInstalled as error:
        raise UserError("Atari's frames are resized by OpenCV: pip install 'offlinerl[atari]'") from error


class Planes(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """A game of MinAtar's (Young & Tian, 2019), whose planes ``[10, 10, C]`` are shown as uint8, 0 or 255. A seed
    decides all of an episode but the actions: sticky ones begin with none, where the game remembers the last episode's.
    """

    def __init__(self, env: gym.Env):
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self.observation_space = gym.spaces.Box(0, 255, env.observation_space.shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.env.unwrapped.game.last_action = 0
        return super().reset(seed=seed, options=options)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation.astype(np.uint8) * 255
