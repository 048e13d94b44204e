"""What computes: the device of a ``--device`` flag."""

from __future__ import annotations

import torch

from offlinerl.util.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device of a ``--device`` flag.

    Raises:
        UserError: it is not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device that torch can use; try --device cpu")
    return torch.device(name)
