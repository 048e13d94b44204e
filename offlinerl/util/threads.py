"""The CPU threads of torch, and how they share a busy machine with other processes.

A thread that has finished its part of an operation waits for the others by spinning, which is fastest while every
thread has its own core. If other processes run too, a spinning thread keeps the thread that it waits for from getting a
core, and training can slow down to a quarter of its speed. libgomp, torch's OpenMP library on Linux, spins only shortly
if a process has more threads than the machine has cores. So while the machine is busy, we keep that many additional
threads asleep.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from offlinerl.util.cores import cores
from offlinerl.util.errors import UserError
from offlinerl.util.given import whole_number

BUSY = 0.1
"""The machine is busy if threads wait for a core for more than this fraction of the time."""
QUIET_AFTER = 1.0
"""The machine is quiet again after this many seconds without being busy."""
EVERY = 0.2
"""Seconds between two checks."""

ALL = torch.get_num_threads()
"""The number of threads that torch uses by default."""

MOST = 512
"""More threads than any machine has cores for; the system refuses to start very many."""

_watch: threading.Thread | None = None


@contextmanager
def threads_for(number: int | None, processes: int) -> Iterator[None]:
    """``set_threads`` for one of several processes: if ``number`` is None, torch's default is divided among them while
    the context lasts."""
    before = torch.get_num_threads()
    divided = number is None and processes > 1
    set_threads(max(1, ALL // processes) if divided else number)
    try:
        yield
    finally:
        if divided:
            torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes on one thread while the context lasts, so that sums and decompositions round alike on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def set_threads(number: int | None) -> None:
    """Compute with ``number`` CPU threads from now on, and adapt how they wait for each other to the machine's load.
    None: torch's default, which is one per core.

    Raises:
        UserError: the number is no whole number from 1 to ``MOST``.
    """
    global _watch
    if number is not None:
        if whole_number("threads", number, 1) > MOST:
            raise UserError(f"threads must be at most {MOST}, not {number}; more than one per core are slower")
        torch.set_num_threads(int(number))
    if _watch is None and (openmp := _libgomp()) is not None and _delay() is not None:
        _watch = threading.Thread(target=_adapt, args=(openmp,), name="threads", daemon=True)
        _watch.start()


def _libgomp() -> ctypes.CDLL | None:
    """torch's OpenMP library, if it is libgomp and the user has not configured how its threads wait."""
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        return None
    found = next((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"), None)
    return found and ctypes.CDLL(str(found))


def _delay() -> float | None:
    """Seconds that the threads of this process have waited for a core so far, or None if the system does not tell."""
    waited = 0
    try:
        for task in os.scandir("/proc/self/task"):
            try:
                waited += int(Path(task.path, "schedstat").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # the thread has ended
    except OSError:
        return None
    return waited / 1e9


def _adapt(openmp: ctypes.CDLL) -> None:
    """Check the machine's load repeatedly."""
    watch = Watch(openmp, _delay(), time.monotonic())
    while True:
        time.sleep(EVERY)
        watch.look(_delay(), time.monotonic())


class Watch:
    """Lets waiting threads spin long or shortly, depending on how long this process's threads wait for a core.

    Args:
        openmp: libgomp.
        waited: seconds that they have waited so far; see ``_delay``.
        now: seconds of a monotonic clock.
    """

    def __init__(self, openmp: ctypes.CDLL, waited: float, now: float):
        self.openmp, self.waited, self.now = openmp, waited, now
        self.quiet = 0.0  # seconds since the machine was last busy
        self.sleepers: threading.Event | None = None  # setting it ends the sleeping threads

    def look(self, waited: float, now: float) -> None:
        """Update with the latest values of both."""
        passed = now - self.now
        busy = waited - self.waited > BUSY * passed
        self.waited, self.now = waited, now
        self.quiet = 0.0 if busy else self.quiet + passed
        if busy and self.sleepers is None:
            self.sleepers = threading.Event()
            threading.Thread(target=_sleep, args=(self.openmp, self.sleepers), name="sleepers", daemon=True).start()
        elif self.sleepers is not None and self.quiet > QUIET_AFTER:
            self.sleepers.set()
            self.sleepers = None


def _sleep(openmp: ctypes.CDLL, end: threading.Event) -> None:
    """Keep as many OpenMP threads as there are cores asleep, so that the process has more threads than cores and
    libgomp spins only shortly."""
    # A parallel region of a function that does nothing: its threads live as long as the thread that entered it.
    nothing = ctypes.cast(openmp.omp_get_thread_num, ctypes.c_void_p)
    openmp.GOMP_parallel(nothing, None, cores() + 1, 0)
    end.wait()
