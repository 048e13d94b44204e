"""Errors that a user can fix. They have a module of their own because the command line imports it before torch."""

from __future__ import annotations

import csv
import difflib
import errno
import shlex
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from offlinerl.util.synonyms import SYNONYMS


class UserError(Exception):
    """An error that the user can fix; its message is one sentence that says how. The command line prints only the
    message and exits with ``status``."""

    status = 1


class WrongUsage(UserError):
    """Flags or arguments that are missing or do not make sense together."""

    status = 2


class Mishap(UserError):
    """Something that a job needs has failed, such as a disk or another process; the job can be resumed from its last
    save."""


class ActingFailed(Mishap):
    """An environment, or a process that acts in one, has failed."""


class NoSteps(UserError):
    """A source of data has no step to learn from, as may happen with some logs of a folder, although it has ``rows``
    rows."""

    def __init__(self, message: str, rows: int = 0):
        super().__init__(message)
        self.rows = rows


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of the system if a file cannot grow."""

UNSOUND = (
    LookupError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError, MemoryError,
    EOFError, zipfile.BadZipFile, zlib.error, csv.Error,
)  # fmt: skip
"""The exceptions that Python and libraries raise at damaged or unexpected file contents."""


@contextmanager
def reading(what: str, advice: str) -> Iterator[None]:
    """Turn exceptions about the contents of a file into a ``UserError``.

    Args:
        what: the thing that is read, including its path, as the subject of the message.
        advice: what the user should do.

    Raises:
        UserError: the contents are damaged or not of the expected kind.
    """
    try:
        yield
    except (*UNSOUND, OSError) as error:
        if isinstance(error, OSError) and error.strerror:  # from the system, about the path or the disk
            raise
        raise UserError(
            f"{what} is damaged or does not have the expected contents ({_reason(error)}); {advice}"
        ) from error


def _reason(error: BaseException) -> str:
    line = first_line(error)
    return f"{line} is missing" if isinstance(error, KeyError) else line.rstrip(".")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def command(*words: object) -> str:
    """A command of offlinerl, quoted for a shell, such as "offlinerl fit --resume 'runs/bc-my logs'"."""
    return shlex.join(["offlinerl", *map(str, words)])


def either(*words: object) -> str:
    """A list in words, such as "a, b or c"."""
    *first, last = map(str, words)
    return f"{', '.join(first)} or {last}" if first else last


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as "1 episode", "2 episodes" or "1,000 policies"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def did_you_mean(name: str, known: Iterable[str], otherwise: str, near: int = 3) -> str:
    """A hint that suggests known names that other libraries call so, or similar ones, such as actor_lr for lr and sac
    for SAC; or ``otherwise`` if there are none."""
    by_word = {word.lower(): word for word in known}
    own = [word for word in SYNONYMS.get(name, ()) if word in by_word]
    closest, close = (difflib.get_close_matches(name.lower(), by_word, near, cutoff) for cutoff in (0.8, 0.5))
    found = own or closest or [word for word in by_word if name in word.split("_")][:near] or close
    return f"did you mean {either(*(by_word[word] for word in found))}?" if found else otherwise
