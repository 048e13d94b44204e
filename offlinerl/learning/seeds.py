"""Numbers of which every seed may have its own."""

from __future__ import annotations

from torch import Tensor

Number = float | Tensor
"""A number for all seeds, or one a seed: ``[S]`` or ``[S, 1]``."""


def per_seed(number: Number, like: Tensor) -> Number:
    """A number as it combines with ``like`` ``[S, ...]``: for all seeds as it is, one a seed as ``[S, 1, ...]``."""
    return number.view(-1, *[1] * (like.ndim - 1)) if isinstance(number, Tensor) else number
