"""Numbers that may differ per seed."""

from __future__ import annotations

from torch import Tensor

Number = float | Tensor
"""One number for all seeds, or one per seed: ``[S]`` or ``[S, 1]``."""


def per_seed(number: Number, like: Tensor) -> Number:
    """A number that broadcasts with ``like`` ``[S, ...]``: one for all seeds unchanged, one per seed as
    ``[S, 1, ...]``."""
    return number.view(-1, *[1] * (like.ndim - 1)) if isinstance(number, Tensor) else number
