"""Environments: the registered tasks, how they are made, and how several are stepped side by side."""

import gymnasium as gym

from offlinerl.envs import control, finite, kitchen, pen


def register() -> None:
    """Registers this package's environments with Gymnasium, once. Loads no simulator."""
    kitchen.register()
    control.register()
    finite.register()
    pen.register()
    if "offlinerl/AntDirection-v0" not in gym.registry:
        gym.register("offlinerl/AntDirection-v0", "offlinerl.envs.ant:AntDirection", max_episode_steps=1000)
        for maze, steps in dict(umaze=700, medium=1000, large=1000).items():
            name = f"offlinerl/AntMaze-{maze}-v0"
            gym.register(name, "offlinerl.envs.antmaze:AntMaze", max_episode_steps=steps, kwargs={"maze": maze})
        for maze, steps in dict(umaze=300, medium=600, large=800).items():
            name = f"offlinerl/Maze2D-{maze}-v0"
            gym.register(name, "offlinerl.envs.maze2d:Maze2D", max_episode_steps=steps, kwargs={"maze": maze})


register()
