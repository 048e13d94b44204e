"""Atari games by ale-py, and MinAtar's small games. Both need the extra ``atari``."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym
import numpy as np

from offlinerl.util.errors import UserError

ALE, MINATAR = "ALE/", "MinAtar/"
"""Prefixes of their environments' ids."""

REPEAT, STACK = 4, 4
"""Frames for which an action is held, and frames in an observation (Mnih et al., Nature 2015, methods)."""

MINATAR_STEPS = 5000
"""Time limit of MinAtar's episodes, which would never end for a good player."""

CELL = 16
"""Pixels of one of MinAtar's cells in a film."""


def register(env_id: str) -> bool:
    """Registers the environments of the package that an id belongs to; False if it belongs to neither.

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
    """A game of ``frameskip`` 1 in Gymnasium's ``AtariPreprocessing``: grey frames ``[size, size, 1]``, each the
    pixelwise maximum of the last two of every ``repeat`` frames, after up to 30 no-op steps.

    Raises:
        UserError: OpenCV, which resizes the frames, is missing.
    """
    try:
        return gym.wrappers.AtariPreprocessing(env, frame_skip=repeat, screen_size=size, grayscale_newaxis=True)
    except gym.error.DependencyNotInstalled as error:
        raise UserError("Atari's frames are resized by OpenCV: pip install 'offlinerl[atari]'") from error


class Planes(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """A MinAtar game (Young & Tian, 2019), with its planes ``[10, 10, C]`` as uint8, 0 or 255. The seed determines
    everything in an episode except the actions: sticky actions start without a previous one, whereas the game remembers
    the last episode's."""

    def __init__(self, env: gym.Env):
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self.observation_space = gym.spaces.Box(0, 255, env.observation_space.shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.env.unwrapped.game.last_action = 0
        return super().reset(seed=seed, options=options)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation.astype(np.uint8) * 255

    def render(self) -> Any:
        """Colours from 0 to 1 of 10 by 10 cells as an image of uint8."""
        shown = self.env.render()
        if not isinstance(shown, np.ndarray) or shown.dtype == np.uint8:
            return shown
        return np.kron(np.rint(255 * shown).astype(np.uint8), np.ones((CELL, CELL, 1), np.uint8))
