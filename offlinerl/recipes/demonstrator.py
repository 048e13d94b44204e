"""Scripted demonstrators, which need no training: they read the simulator's true state and follow a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import gymnasium as gym
import mujoco
import numpy as np
from numpy.typing import ArrayLike

from offlinerl.envs.kitchen import TASKS

Point = tuple[float, float, float]
"""x, y, z in metres."""


class Motion(NamedTuple):
    """How the hand does one task: waypoints relative to a site of the object at the start of the motion, and the action
    of the fingers on the way to each."""

    site: str  # as the simulator names it
    path: tuple[tuple[float, float, float, int], ...]  # x, y, z in m; the fingers' action, 1 opens, -1 closes
    level: bool = False  # keep the hand oriented as it was at the start of the episode


KITCHEN = {
    "microwave": Motion(
        "microhandle_site",
        (
            (0.05, -0.22, 0.08, 1),
            (0.01, 0.01, 0.065, 1),
            (-0.005, 0.02, 0.06, -1),
            (-0.036, -0.105, 0.075, -1),
            (-0.145, -0.35, 0.06, -1),
        ),
    ),
    "kettle": Motion("kettle_site", ((-0.036, -0.106, -0.089, -1), (-0.032, 0.338, -0.089, -1))),
    "light switch": Motion(
        "light_site", ((0.092, -0.2, 0.023, 1), (0.092, -0.031, 0.023, 1), (-0.071, -0.026, 0.023, 1))
    ),
    "slide cabinet": Motion("slide_site", ((-0.12, -0.15, 0, 1), (-0.12, 0, 0, 1), (0.45, 0, 0, 1))),
    "bottom burner": Motion(
        "knob2_site",
        ((0.011, -0.2, 0.032, 1), (0.011, -0.034, 0.032, 1), (0.195, -0.047, 0.141, 1)),
        level=True,
    ),
}

HOME: Point = (-0.45, 0.15, 2.05)  # where every motion but the first begins, clear of all objects
TOLERANCE = 0.025  # m, within which a waypoint counts as reached
PATIENCE = 16  # maximum steps spent on a waypoint
REACH = 0.08  # m, to which the position error is clipped
GRASP = 4  # steps that closing the fingers takes
GAIN = 1.8  # fraction of the error to correct in a step: above 1, because the controller lags behind
DAMPING = 0.05  # of the least squares, which keeps joints slow near singularities
POSTURE = 0.05  # fraction of the way back to the starting posture per step, in the hand's null space
TURN = 2 * 0.08  # rad by which a joint turns in a step at action 1


class KitchenDemonstrator:
    """Does the tasks of a Kitchen in a given order, by moving the hand from waypoint to waypoint.

    Joint velocities come from damped least squares on the hand's Jacobian, with a pull towards the starting posture in
    its null space. A waypoint that takes too long is skipped, and a task that is not complete at the end of its motion
    is tried again. There is no motion for "hinge cabinet" and "top burner".

    Args:
        env: a ``Kitchen``, wrapped or not.
        order: what to do: names of tasks, rewarded by the environment or not, and points of the room to visit.
        noise: standard deviation of Gaussian noise on every action.
        rng: where the noise is drawn from.
        attempts: maximum number of attempts at a task that the environment rewards.

    Raises:
        ValueError: there is no motion for a task.

    Source: Buss, Introduction to inverse kinematics with Jacobian transpose, pseudoinverse and damped least squares
    methods, 2004.
    """

    def __init__(
        self,
        env: gym.Env,
        order: Sequence[str | Point] = TASKS,
        noise: float = 0.0,
        rng: np.random.Generator | None = None,
        attempts: int = 2,
    ) -> None:
        unknown = {step for step in order if isinstance(step, str)} - set(KITCHEN)
        if unknown:
            raise ValueError(f"no demonstration of {', '.join(sorted(unknown))}; known: {', '.join(KITCHEN)}")
        self.kitchen = env.unwrapped
        self.order = order
        self.attempts = attempts
        self.noise = noise
        self.rng = rng or np.random.default_rng()
        self.site = self.kitchen.model.site("end_effector").id
        self.reset()

    def reset(self) -> None:
        """Starts anew; to be called after the environment's ``reset``."""
        self.finished = False
        self.fingers = 0
        self.posture = self.kitchen.data.qpos[:7].copy()
        self.orientation = self.kitchen.data.site(self.site).xmat.reshape(3, 3).copy()
        self.plan = self._plan()

    def act(self) -> np.ndarray:
        """The next action, ``[9]`` float32 in [-1, 1]. Once ``finished``, the robot stays where it is."""
        action = next(self.plan) + self.noise * self.rng.standard_normal(9)
        return np.clip(action, -1, 1).astype(np.float32)

    def _plan(self) -> Iterator[np.ndarray]:
        for number, step in enumerate(self.order):
            if not isinstance(step, str):
                yield from self._visit(step, self.fingers)
                continue
            for attempt in range(self.attempts if step in self.kitchen.tasks else 1):
                if step in self.kitchen.franka.episode_task_completions:
                    break
                if number + attempt > 0:
                    yield from self._visit(HOME, KITCHEN[step].path[0][3])
                yield from self._move(step)
        self.finished = True
        while True:
            yield np.zeros(9)

    def _move(self, task: str) -> Iterator[np.ndarray]:
        motion = KITCHEN[task]
        origin = self.kitchen.data.site(motion.site).xpos.copy()
        for *offset, fingers in motion.path:
            for action in self._visit(origin + offset, fingers, motion.level):
                if task in self.kitchen.franka.episode_task_completions:
                    return
                yield action

    def _visit(self, point: ArrayLike, fingers: int, level: bool = False) -> Iterator[np.ndarray]:
        hand = self.kitchen.data.site(self.site)
        grasping = fingers < self.fingers
        self.fingers = fingers
        for step in range(PATIENCE):
            error = np.asarray(point) - hand.xpos
            distance = np.linalg.norm(error)
            if distance < TOLERANCE and not (grasping and step < GRASP):
                return
            error *= min(1, REACH / distance)
            turn = _rotation(hand.xmat.reshape(3, 3), self.orientation) if level else ()
            yield np.append(self._joints(np.append(error, turn)), [fingers, fingers])

    def _joints(self, error: np.ndarray) -> np.ndarray:
        """Joint velocities ``[7]`` that correct the hand's error, ``[3]`` in m or ``[6]`` in m and rad."""
        model, data = self.kitchen.model, self.kitchen.data
        jacobian = np.zeros((6, model.nv))
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], self.site)
        jacobian = jacobian[: len(error), :7]
        damped = jacobian @ jacobian.T + DAMPING**2 * np.eye(len(error))
        inverse = np.linalg.solve(damped, jacobian).T
        pull = POSTURE * (self.posture - data.qpos[:7])
        velocity = (inverse @ (GAIN * error - jacobian @ pull) + pull) / TURN
        return velocity / max(1, np.abs(velocity).max())


def _rotation(current: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The rotation vector ``[3]`` in rad that turns one ``[3, 3]`` orientation into the other."""
    quaternion, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, (wanted @ current.T).ravel())
    mujoco.mju_quat2Vel(vector, quaternion, 1)
    return vector
