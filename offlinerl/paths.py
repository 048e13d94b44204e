"""Where the files that are not code live: configurations, built-in data, the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def share(*parts: str) -> Path:
    """A path below ``configs/`` or ``datasets/``, in a checkout as in an installed wheel."""
    installed = _PACKAGE / "_share"
    return (installed if installed.is_dir() else _PACKAGE.parent).joinpath(*parts)


def cache(*parts: str) -> Path:
    """A path below the cache of downloaded and generated datasets: ``$OFFLINERL_HOME``, or ``~/.cache/offlinerl``."""
    home = os.environ.get("OFFLINERL_HOME") or Path.home() / ".cache" / "offlinerl"
    return Path(home).joinpath(*parts)
