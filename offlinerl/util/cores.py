"""The number of CPU cores that this process may use."""

import math
import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """The number of cores that this process may use, which a cluster's scheduler, a container or ``taskset`` may
    limit."""
    # not every system has sched_getaffinity
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(own, quota() or own)


def quota() -> int | None:
    """The CPU quota of this process's container in cores, rounded up; None without a quota."""
    files = (CGROUP / "cpu.max",), (CGROUP / "cpu/cpu.cfs_quota_us", CGROUP / "cpu/cpu.cfs_period_us")
    for of_version in files:
        with suppress(OSError, ValueError):
            share, period = " ".join(file.read_text() for file in of_version).split()
            return math.ceil(int(share) / int(period)) if share.isdigit() and int(share) else None
    return None
