"""Handling of Ctrl-C and SIGTERM: a job saves its state and tells the user how to resume."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from offlinerl.util.errors import UserError

TERMINATED = 128 + signal.SIGTERM
"""Exit status after SIGTERM, by the convention of shells and schedulers."""


class Interrupted(UserError):
    """A job was interrupted; the message says what was saved. ``status`` is 1 after Ctrl-C and 143 after SIGTERM."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


class AtOnce(BaseException):
    """Raised by a signal handler to stop at once, if there is nothing new to save or the job is compiling. It is not an
    ``Exception``, because some code that it passes through catches those and continues."""


def leave(number: int) -> NoReturn:
    """A signal handler for jobs that have nothing to save."""
    raise AtOnce


def raise_interrupt(error: BaseException) -> None:
    """Raises the interruption that an error was made of, if there is one: some modules report one during their import
    as a failed import."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt | AtOnce):
            raise cause
        cause = cause.__cause__ or cause.__context__


class Stop:
    """Whether a job was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def set(self, number: int = signal.SIGINT) -> None:
        """Ask the job to stop; only the first signal is kept."""
        self.signal = self.signal or number

    def is_set(self) -> bool:
        return self.signal is not None

    @property
    def status(self) -> int:
        """Exit status of the process."""
        return TERMINATED if self.signal == signal.SIGTERM else 1


@contextmanager
def on_interrupt(
    heard: Callable[[int], None], signals: Sequence[int] = (signal.SIGINT, signal.SIGTERM)
) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM call ``heard`` with the signal's number instead of ending the process. Outside the main
    thread, which is the only one that receives signals, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signals}
    for number in before:
        signal.signal(number, lambda number, _: heard(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # looked up before a fork, not after it


def end_with_parent() -> None:
    """The ``preexec_fn`` of a process that must end when its parent dies, even if the parent is killed. Only Linux can
    guarantee that. The process receives SIGTERM even if its parent blocks it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
    if _prctl:
        _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
