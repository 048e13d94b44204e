"""D4RL's ant: the model, and the task of walking in a given direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
from numpy.typing import ArrayLike

from offlinerl.envs.simulation import Simulation

FRAME_SKIP = 5
"""Simulator steps, 0.02 s each, for which an action is held."""

RESET_NOISE = 0.1
"""Half-width of the uniform noise on initial positions, and standard deviation of the Gaussian noise on velocities."""

LEGS = {
    1: (1, 1, "-1 1 0", "30 70"),
    2: (-1, 1, "1 1 0", "-70 -30"),
    3: (-1, -1, "-1 1 0", "-70 -30"),
    4: (1, -1, "1 1 0", "30 70"),
}
"""The direction of each leg in x and y, and the axis and range in degrees of its ankle."""

MOTORS = (4, 1, 2, 3)
"""The legs in the order of the actions; each one's hip comes before its ankle."""

LEG = """
    <body>
      <geom type="capsule" size=".08" fromto="0 0 0 {x:.1f} {y:.1f} 0"/>
      <body pos="{x:.1f} {y:.1f} 0">
        <joint name="hip_{leg}" axis="0 0 1" range="-30 30"/>
        <geom type="capsule" size=".08" fromto="0 0 0 {x:.1f} {y:.1f} 0"/>
        <body pos="{x:.1f} {y:.1f} 0">
          <joint name="ankle_{leg}" axis="{axis}" range="{bounds}"/>
          <geom type="capsule" size=".08" fromto="0 0 0 {xx:.1f} {yy:.1f} 0"/>
        </body>
      </body>
    </body>"""

MODEL = """
<mujoco model="ant">
  <option timestep="0.02" integrator="RK4"/>
  <default>
    <joint limited="true" armature="1" damping="1"/>
    <geom conaffinity="0" margin=".01" friction="1 .5 .5" solref=".02 1" solimp=".8 .8 .01" density="5"
          rgba=".8 .5 .2 1"/>
    <motor ctrllimited="true" ctrlrange="-1 1" gear="30"/>
  </default>
  <visual>
    <headlight ambient=".45 .45 .45" diffuse="0 0 0" specular="0 0 0"/>
    <quality shadowsize="4096"/>
  </visual>
  <asset>
    <texture type="skybox" builtin="flat" rgb1="1 1 1" width="8" height="8"/>
    <texture name="floor" type="2d" builtin="checker" rgb1=".82 .84 .86" rgb2=".9 .91 .92" width="300" height="300"/>
    <material name="floor" texture="floor" texuniform="true" texrepeat=".5 .5"/>
  </asset>
  <worldbody>
    <light directional="true" diffuse=".5 .5 .5" specular="0 0 0" pos="0 0 10" dir=".2 .3 -1"/>
    <geom name="floor" type="plane" conaffinity="1" size="100 100 .2" material="floor" rgba="1 1 1 1"/>
    <body name="torso" pos="0 0 .75">
      <joint type="free" limited="false" margin=".01" armature="0" damping="0"/>
      <geom size=".25"/>{legs}
    </body>{world}
  </worldbody>
  <actuator>{motors}</actuator>
</mujoco>
"""


def model(world: str = "") -> mujoco.MjModel:
    """Compiles D4RL's ant on an infinite floor: 8 motors of +-30, RK4 in steps of 0.02 s.

    Its numbers are those of D4RL's ``ant.xml``, which OGBench ships as well (Fu et al., 2020, Apache 2.0; Park et al.,
    2024, MIT): OpenAI Gym's ant with motors of 30 instead of 150 and hips with a smaller range.

    Args:
        world: MJCF elements to add around it.
    """
    legs = "".join(
        LEG.format(leg=leg, x=0.2 * x, y=0.2 * y, xx=0.4 * x, yy=0.4 * y, axis=axis, bounds=bounds)
        for leg, (x, y, axis, bounds) in LEGS.items()
    )
    motors = "".join(f'<motor joint="{joint}_{leg}"/>' for leg in MOTORS for joint in ("hip", "ankle"))
    return mujoco.MjModel.from_xml_string(MODEL.format(legs=legs, motors=motors, world=world))


class Ant(Simulation):
    """D4RL's ant at 10 Hz, without a task.

    An action is the torque of every motor in units of 30, ``[8]`` in [-1, 1]; values beyond the bounds are clipped.

    Args:
        model: see ``offlinerl.envs.ant.model``.
        camera: see ``Simulation``, also for ``render_mode``.
    """

    def __init__(self, model: mujoco.MjModel, camera: Mapping[str, Any], render_mode: str | None = None) -> None:
        super().__init__(model, FRAME_SKIP, 29, camera, render_mode)

    def stand(self, xy: ArrayLike | None = None) -> None:
        """Puts the ant in the model's initial pose, at x and y in m if given, with D4RL's noise on positions and
        velocities."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos += self.np_random.uniform(-RESET_NOISE, RESET_NOISE, self.model.nq)
        if xy is not None:
            self.data.qpos[:2] = xy
        self.data.qvel += RESET_NOISE * self.np_random.standard_normal(self.model.nv)
        mujoco.mj_forward(self.model, self.data)


class AntDirection(Ant):
    """The ant in the open, which is to walk in a direction that changes every 100 steps: a task to train goal-reaching
    policies on.

    The observation is a float32 vector of 29: the positions of the joints without the torso's x and y (13; m, a
    quaternion, rad), their velocities (14; m/s, rad/s) and the direction, a unit vector in x and y. The reward of a
    step is the distance in m by which the torso moved in that direction. The episode terminates when the torso's height
    leaves [0.2, 1] m.

    Args:
        render_mode: None, "human", "rgb_array" or "depth_array".

    Source: Park et al., OGBench, 2024 (arXiv 2410.20092), which uses it to train the policies for its mazes.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(
            model(), dict(type=mujoco.mjtCamera.mjCAMERA_TRACKING, trackbodyid=1, distance=8.0), render_mode
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode. The seed determines everything in it except the actions."""
        super().reset(seed=seed)
        self.stand()
        self._steps = 0
        self._turn()
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Holds the torques for 0.1 s."""
        before = self.data.qpos[:2].copy()
        self.move(action)
        reward = float((self.data.qpos[:2] - before) @ self.direction)
        self._steps += 1
        if self._steps % 100 == 0:
            self._turn()
        return self._observation(), reward, not 0.2 <= self.data.qpos[2] <= 1, False, {}

    def _turn(self) -> None:
        direction = self.np_random.standard_normal(2)
        self.direction = direction / np.linalg.norm(direction)

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.data.qpos[2:], self.data.qvel, self.direction], dtype=np.float32)
