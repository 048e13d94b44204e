"""Ctrl-C and SIGTERM, which a job answers by saving what it has and saying how to go on."""

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
"""Exit status of a process that SIGTERM ended, as shells and schedulers count it."""


class Interrupted(UserError):
    """A job was stopped from outside; what it had is saved. ``status`` is 1 after Ctrl-C and 143 after SIGTERM."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


class AtOnce(BaseException):
    """Raised out of a signal's handler where there is nothing new to save, so that nobody waits for a compiler. It
    is no ``Exception``, because some code that it passes through goes on after one."""


def leave(number: int) -> NoReturn:
    """End a job that has nothing to save."""
    raise AtOnce


class Stop:
    """Whether a job was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def set(self, number: int = signal.SIGINT) -> None:
        """Ask; the first signal is the one that counts."""
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
    """Let Ctrl-C and SIGTERM call ``heard`` with their number instead of ending the process; outside the main thread,
    which alone hears of them, do nothing."""
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
    """The ``preexec_fn`` of a process that must not outlive the one that starts it, which may have been killed. Only
    Linux can promise that. SIGTERM reaches it, whatever the parent has blocked."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
    if _prctl:
        _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
