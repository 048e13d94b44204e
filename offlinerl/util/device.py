"""The device of a ``--device`` flag or of an argument ``device``, and what does not fit into its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from offlinerl.util.errors import UserError, counted


def pick_device(name: Any) -> torch.device:
    """The device of a ``--device`` flag, or of an argument that may be a device already.

    Raises:
        UserError: there is no device of that name, or this machine does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.empty(0, device=device)  # raises if this build of torch does not support the device
    except (RuntimeError, TypeError, AssertionError) as error:
        raise UserError(f"device must be auto, cpu or cuda, not {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this machine has no CUDA device that torch can use; try --device cpu")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UserError(f"--device {name}: this machine has {counted(count, 'CUDA device')}; try --device cuda")
    return device


@contextmanager
def memory_for(refusal: str) -> Iterator[None]:
    """Turn torch's errors about too little memory into a ``UserError`` that says ``refusal``."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = any(words in str(error) for words in ("can't allocate memory", "Storage size calculation overflowed"))
        if not said and not isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        raise UserError(refusal) from error
