"""Paths of files that are not code: configurations, built-in datasets, the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from offlinerl.util.errors import UserError

_PACKAGE = Path(__file__).resolve().parent.parent


def share(*parts: str) -> Path:
    """A path below ``configs/`` or ``datasets/``, both in a checkout and in an installed wheel."""
    installed = _PACKAGE / "_share"
    return (installed if installed.is_dir() else _PACKAGE.parent).joinpath(*parts)


def cache(*parts: str) -> Path:
    """A path below the cache of downloaded and generated datasets: ``$OFFLINERL_HOME``, or ``~/.cache/offlinerl``."""
    given = os.environ.get("OFFLINERL_HOME")
    return (Path(given) if given else home("OFFLINERL_HOME") / ".cache" / "offlinerl").joinpath(*parts)


def home(instead: str) -> Path:
    """The user's home folder.

    Raises:
        UserError: there is none, as in some containers; the message names the variable to set ``instead``.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        raise UserError(f"there is no home folder to keep datasets in: set HOME, or {instead} to a folder") from error
