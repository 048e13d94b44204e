"""gymnasium-robotics, without the notice about Adroit rewards that it prints when it is imported."""

from __future__ import annotations

import contextlib
import importlib
import io
from types import ModuleType


def load(module: str = "gymnasium_robotics") -> ModuleType:
    """Imports the package or one of its modules, which registers its environments."""
    with contextlib.redirect_stderr(io.StringIO()):
        return importlib.import_module(module)
