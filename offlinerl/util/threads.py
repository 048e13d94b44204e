"""The threads of torch's CPU build, and how they share a busy machine with others.

A thread that has finished its part of an operation waits for the others by spinning, which is fastest while every
thread has a core of its own. Where something else runs too, a spinning thread keeps the one it waits for from the core,
and a training falls to a quarter of its speed. libgomp, torch's OpenMP library on Linux, spins short where a process
has more threads than the machine has cores; so while the machine is busy we keep as many more threads, asleep.
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
from offlinerl.util.given import whole_number

BUSY = 0.1
"""Share of the time that threads are ready to run and get no core, from which on a machine is busy."""
QUIET_AFTER = 1.0
"""Seconds without that until it is quiet again."""
EVERY = 0.2
"""Seconds between two looks."""

ALL = torch.get_num_threads()
"""That torch takes by itself."""

_watch: threading.Thread | None = None


@contextmanager
def threads_for(number: int | None, processes: int) -> Iterator[None]:
    """``set_threads`` for one of so many processes: those that it leaves to torch are divided among them, until all
    of them are done."""
    before = torch.get_num_threads()
    divided = number is None and processes > 1
    set_threads(max(1, ALL // processes) if divided else number)
    try:
        yield
    finally:
        if divided:
            torch.set_num_threads(before)


def set_threads(number: int | None) -> None:
    """Compute on so many CPU threads from now on, and wait for them in a way that suits the machine's load; None leaves
    the number to torch, which takes one a core."""
    global _watch
    if number is not None:
        torch.set_num_threads(whole_number("threads", number, 1))
    if _watch is None and (openmp := _libgomp()) is not None and _delay() is not None:
        _watch = threading.Thread(target=_adapt, args=(openmp,), name="threads", daemon=True)
        _watch.start()


def _libgomp() -> ctypes.CDLL | None:
    """torch's OpenMP library, if it is libgomp and the user has not said how its threads wait."""
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        return None
    found = next((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"), None)
    return found and ctypes.CDLL(str(found))


def _delay() -> float | None:
    """Seconds that the threads of this process have waited for a core, or None where the system does not say."""
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
    """Look at the machine's load again and again."""
    watch = Watch(openmp, _delay(), time.monotonic())
    while True:
        time.sleep(EVERY)
        watch.look(_delay(), time.monotonic())


class Watch:
    """Makes threads that wait spin long or short, by how long this process's threads are kept from the cores.

    Args:
        openmp: libgomp.
        waited: seconds they were, up to now.
        now: a clock's seconds.
    """

    def __init__(self, openmp: ctypes.CDLL, waited: float, now: float):
        self.openmp, self.waited, self.now = openmp, waited, now
        self.quiet = 0.0  # seconds
        self.sleepers: threading.Event | None = None  # set for them to end

    def look(self, waited: float, now: float) -> None:
        """Take the latest figures into account."""
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
    """Keep as many OpenMP threads as there are cores asleep: with them a process has more threads than cores, and
    libgomp spins short."""
    # A parallel region, whose threads stay with the thread that entered it, of a function that does nothing.
    nothing = ctypes.cast(openmp.omp_get_thread_num, ctypes.c_void_p)
    openmp.GOMP_parallel(nothing, None, cores() + 1, 0)
    end.wait()
