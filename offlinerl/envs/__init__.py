"""Environments: the registered tasks, how they are made, and how several are stepped at once."""

from offlinerl.envs import control, finite, kitchen


def register() -> None:
    """Register this package's environments with Gymnasium, which calls it as a plugin. Loads no simulator."""
    kitchen.register()
    control.register()
    finite.register()


register()
