"""The cores of this machine that are ours."""

import math
import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """How many cores this process may use: a job of a cluster, a container or ``taskset`` may have fewer than there
    are."""
    # not every system can say which ones
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(own, quota() or own)


def quota() -> int | None:
    """As many cores as a container's share of the processors' time is, rounded up; None if it is not bounded."""
    files = (CGROUP / "cpu.max",), (CGROUP / "cpu/cpu.cfs_quota_us", CGROUP / "cpu/cpu.cfs_period_us")
    for of_version in files:
        with suppress(OSError, ValueError):
            share, period = " ".join(file.read_text() for file in of_version).split()
            return math.ceil(int(share) / int(period)) if share.isdigit() and int(share) else None
    return None
