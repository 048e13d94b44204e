"""The algorithms, one file each. A file that defines an ``Agent`` here is an algorithm; there is no list."""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from offlinerl.agent import Agent
from offlinerl.types import UserError

BASES = {"policy_gradient"}
"""Files with what several algorithms share."""


def names() -> list[str]:
    """The algorithms, by file name."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - BASES)


def get(name: str) -> type[Agent]:
    """The agent class in the file of that name.

    Raises:
        UserError: there is none; the message names the nearest ones.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names())}"
        raise UserError(f"there is no agent {name!r}; {hint}")
    module = importlib.import_module(f"{__name__}.{name}")
    return next(
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, Agent) and thing.__module__ == module.__name__
    )
