"""Checks of the arguments that a user gives to a function, as for the flags of the command line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from numbers import Real
from os import PathLike
from typing import Any, ParamSpec, TypeVar

from offlinerl.util.errors import UserError

P, R = ParamSpec("P"), TypeVar("R")

EMPTY = "is empty, perhaps because a variable is not set: give a value, or leave it out"


def filled(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to raise a UserError for empty strings among its arguments; an empty path would be the
    current folder."""
    names = list(inspect.signature(function).parameters)

    @wraps(function)
    def checked(*args: P.args, **settings: P.kwargs) -> R:
        for name, value in [*zip(names, args, strict=False), *settings.items()]:
            several = isinstance(value, list | tuple)
            if any(isinstance(one, str) and not one for one in (value if several else [value])):
                raise UserError(f"{name} {EMPTY}")
        return function(*args, **settings)

    return checked


def whole_number(name: str, value: Any, least: int = 0) -> int:
    """Convert a whole number of at least ``least``, also a numpy number, to an int.

    Raises:
        UserError: it is not such a number.
    """
    if _is_number(value) and least <= value == int(value):
        return int(value)
    raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}")


def whole_in(text: str, least: int = 0) -> int:
    """The whole number of at least ``least`` in a text, also written as 1e6 or 1_000_000.

    Raises:
        UserError: it is not such a number.
    """
    with suppress(ValueError, OverflowError):  # not a number, or an infinite one
        value = int(text) if text.isdigit() else float(text)
        if least <= value == int(value):
            return int(value)
    raise UserError(f"{text!r} is not a whole number of at least {least}")


def numbers_in(text: str) -> list[int]:
    """The numbers in a text such as ``0,1,2`` or ``0-4,7``.

    Raises:
        UserError: it has something else.
    """
    found: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        span = low.isdigit() and high.isdigit()
        first, final = (int(low), int(high)) if span else (whole_in(part), whole_in(part))
        if not first <= final < first + 1_000_000:
            raise UserError(f"{part!r} is not a range of at most a million numbers, such as 0-4")
        found += range(first, final + 1)
    return found


def seeds_in(text: str) -> list[int]:
    """The seeds in a text such as ``0,1,2`` or ``0-2``.

    Raises:
        UserError: it has something else, or a seed twice.
    """
    seeds = numbers_in(text)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{text!r} names a seed twice")
    return seeds


def counts(**given: Any) -> list[int | None]:
    """Check named whole numbers of at least 1, where None is allowed; see ``whole_number``."""
    return [None if value is None else whole_number(name, value, 1) for name, value in given.items()]


def real_number(name: str, value: Any, high: float = math.inf) -> float:
    """Convert a finite number from 0 to ``high`` to a float.

    Raises:
        UserError: it is not such a number.
    """
    if _is_number(value) and 0 <= value <= high:
        return float(value)
    limits = "of at least 0" if high == math.inf else f"from 0 to {high:g}"
    raise UserError(f"{name} must be a number {limits}, not {value!r}")


def two_numbers(name: str, value: Any) -> list[float]:
    """Convert two different finite numbers, the lower one first, to a list of Python's.

    Raises:
        UserError: they are not such numbers.
    """
    if isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1]:
        return [side if isinstance(side, int) else float(side) for side in value]
    raise UserError(f"{name} must be a list of two numbers, the lower one first, not {value!r}")


def bounds(name: str, value: Any) -> list[Any]:
    """Convert bounds, two numbers or two lists of A numbers, the lower ones first, to lists of Python's numbers.

    Raises:
        UserError: they are no such bounds.
    """
    found = built_in(value)
    with suppress(UserError, ValueError):  # a side is longer than the other, or both are empty
        if isinstance(found, list) and all(isinstance(side, list) and side for side in found):
            low, high = zip(*(two_numbers(name, pair) for pair in zip(*found, strict=True)), strict=True)
            return [list(low), list(high)]
        return two_numbers(name, found)
    raise UserError(
        f"{name} must be the lower and the upper bounds, two numbers or two lists with a number for each dimension, not"
        f" {value!r}"
    )


def built_in(value: Any) -> Any:
    """A value with lists and Python's numbers instead of tuples and of numpy's arrays and numbers, and with paths as
    text."""
    if isinstance(value, Mapping):
        return {key: built_in(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [built_in(one) for one in value]
    if isinstance(value, PathLike):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _is_number(value: Any) -> bool:
    with suppress(OverflowError):  # a whole number beyond the largest float
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    return False
