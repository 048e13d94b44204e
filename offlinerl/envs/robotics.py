"""gymnasium-robotics, without the notice about its Adroit rewards that it prints to every user."""

from __future__ import annotations

import contextlib
import importlib
import io
from types import ModuleType


def load(module: str = "gymnasium_robotics") -> ModuleType:
    """Import the package or one of its modules, which registers its environments."""
    with contextlib.redirect_stderr(io.StringIO()):
        return importlib.import_module(module)
