"""Which OpenGL backend renders frames here: chosen once per process, tested before use, and passed to child processes
by ``MUJOCO_GL``."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from typing import Any, NamedTuple

from offlinerl.util.display import Display
from offlinerl.util.errors import UserError

PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(data)
lit = bool(renderer.render().any())
from OpenGL import GL
print(f"{int(lit)} {GL.glGetString(GL.GL_RENDERER).decode()}", flush=True)
import os
os._exit(0)  # some drivers fail when they are asked to leave
"""
"""Renders a ball, and prints whether it is visible and what rendered it."""

PACKAGES = dict(osmesa="libosmesa6", egl="libegl1", glfw="libglfw3")
"""The Debian package of each backend's library."""

SOFTWARE = ("llvmpipe", "softpipe", "swiftshader", "software")
"""Words in the names of renderers that run on the CPU."""


class Renderer(NamedTuple):
    """What renders frames.

    Attributes:
        backend: "egl", "osmesa" or "glfw", as ``MUJOCO_GL`` names it.
        device: the name that OpenGL reports.
    """

    backend: str
    device: str

    @property
    def software(self) -> bool:
        """Whether it renders on the CPU."""
        return any(name in self.device.lower() for name in SOFTWARE)


@cache
def choose() -> Renderer:
    """The renderer of this process: the one ``MUJOCO_GL`` names; else EGL if a GPU renders; else OSMesa, because with
    EGL closing one environment makes all others render black; else EGL in software.

    Raises:
        UserError: none renders anything; the message names the library and how to install it.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower()
    found, faults = [], []
    for backend in (asked,) if asked else ("egl", "osmesa"):
        tried = attempt(backend)
        if isinstance(tried, str):
            faults.append(f"{backend}: {tried}")
            continue
        found.append(tried)
        if not tried.software or backend == "osmesa":
            break
    if not found:
        package = PACKAGES.get(asked, PACKAGES["osmesa"])
        raise UserError(
            f"frames cannot be rendered here ({'; '.join(faults)}): install the library, as in `apt-get install"
            f" {package}`,{' or unset MUJOCO_GL' if asked else ' or the driver of a GPU'}"
            f"{'; glfw also needs a screen' if asked == 'glfw' else ''}"
        )
    chosen = found[-1]
    drawn_by_another(chosen)
    os.environ["MUJOCO_GL"] = chosen.backend
    return chosen


@cache
def say_of_software(chosen: Renderer, faster: str = "") -> None:
    """Reports, once, that the CPU renders, if it does, and what would be ``faster``."""
    if chosen.software:
        slow = f"frames are rendered on the CPU, not on a GPU ({chosen.backend}, {chosen.device}), which is slow"
        Display().say("; ".join(filter(None, (slow, faster))))


FAST_SCENE = (
    "--fast-scene, without shadows, reflections and multisampling, is about ten times faster, but its images differ"
)


def attempt(backend: str) -> Renderer | str:
    """Renders with a backend in a separate process, because a failed one would prevent the next. Returns the renderer,
    or what is wrong with it."""
    environment = {key: value for key, value in os.environ.items() if key != "PYOPENGL_PLATFORM"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], env={**environment, "MUJOCO_GL": backend}, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "it does not answer within a minute"
    lit, _, device = (done.stdout.strip().splitlines() or [""])[-1].partition(" ")
    if done.returncode or lit not in ("0", "1"):
        return (done.stderr.strip().splitlines() or [f"it ends with status {done.returncode}"])[-1]
    return Renderer(backend, device) if lit == "1" else "its frames are black"


def drawn_by_another(chosen: Renderer) -> None:
    """Raises a UserError if dm_control, which chooses a backend when it is imported, has chosen another one already."""
    loaded: Any = sys.modules.get("dm_control._render")
    if loaded is not None and chosen.backend != loaded.BACKEND:
        raise UserError(
            f"dm_control was imported earlier and renders with {loaded.BACKEND}, not with {chosen.backend}: set"
            f" MUJOCO_GL={chosen.backend} before Python starts"
        )
