"""What a user can put right. Here, because the command line must know it before it loads anything heavy."""

from __future__ import annotations

import csv
import difflib
import errno
import shlex
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can put right; its message is one sentence that says how. The command line prints
    it alone and exits with its status."""

    status = 1


class WrongUsage(UserError):
    """Flags, or arguments, that do not make sense together."""

    status = 2


class Mishap(UserError):
    """What a job needs has failed it, such as a disk or another process: what it saved before can go on."""


class ActingFailed(Mishap):
    """An environment, or a process that acts in one, has failed."""


class NoSteps(UserError):
    """A source holds no step to learn from, as some logs of a folder may; it has so many ``rows`` in spite of that."""

    def __init__(self, message: str, rows: int = 0):
        super().__init__(message)
        self.rows = rows


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a file cannot grow."""

UNSOUND = (
    LookupError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError, MemoryError,
    EOFError, zipfile.BadZipFile, zlib.error, csv.Error,
)  # fmt: skip
"""What Python raises at content that is not as it should be."""


@contextmanager
def reading(what: str, advice: str) -> Iterator[None]:
    """Turns what Python and the libraries raise at content of a file into one sentence.

    Args:
        what: is read, with its place.
        advice: what to do about it.

    Raises:
        UserError: the content is not what it should be.
    """
    try:
        yield
    except (*UNSOUND, OSError) as error:
        if isinstance(error, OSError) and error.strerror:  # the system's: of the path or the disk
            raise
        raise UserError(f"{what} is damaged or does not hold what it should ({_reason(error)}); {advice}") from error


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"it lacks {lines[0]}" if isinstance(error, KeyError) else lines[0].rstrip(".")


def command(*words: object) -> str:
    """A command of ours as a shell takes it, as in "offlinerl fit --resume 'runs/bc-my logs'"."""
    return shlex.join(["offlinerl", *map(str, words)])


def either(*words: object) -> str:
    """As in "a, b or c"."""
    *first, last = map(str, words)
    return f"{', '.join(first)} or {last}" if first else last


def counted(number: int, noun: str) -> str:
    """As in "1 episode", "2 episodes" or "1,000 policies"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def did_you_mean(name: str, known: Iterable[str], otherwise: str, near: int = 3) -> str:
    """Asks for the nearest ones of the known names, if any is near; else what to say otherwise."""
    found = difflib.get_close_matches(name, known, near, 0.5)
    return f"did you mean {either(*found)}?" if found else otherwise
