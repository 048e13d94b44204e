"""The cores of this machine that are ours."""

import os


def cores() -> int:
    """How many cores this process may use: a job of a cluster, a container or ``taskset`` may have fewer than there
    are."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
