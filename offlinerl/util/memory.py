"""The memory that this process may still use."""

from __future__ import annotations

from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
"""Where Linux keeps the limits of control groups, such as those of a container."""


def available() -> int | None:
    """Bytes that can be allocated without swapping or being killed: the minimum of what the machine has available and
    what the limits of this process's control groups leave. None if the system does not tell.

    Source: Documentation/filesystems/proc.rst and admin-guide/cgroup-v1 and -v2 of Linux.
    """
    try:
        found = [_numbers(Path("/proc/meminfo"))["MemAvailable:"] << 10]
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except (OSError, KeyError):
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            folder = GROUPS / controllers / path.lstrip("/")
            found += [left for group in (folder, *folder.parents) if (left := _left(group)) is not None]
    return max(0, min(found))


def _left(group: Path) -> int | None:
    """The bytes that a group's limit leaves, or None without a limit; page cache counts as free, since the system
    reclaims it."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            most, now = ((group / name).read_text().strip() for name in (limit, used))
            stat = _numbers(group / "memory.stat")
        except OSError:
            continue
        cached = stat.get("total_inactive_file", stat.get("inactive_file", 0))
        cached += stat.get("total_active_file", stat.get("active_file", 0))
        return None if most == "max" else int(most) - int(now) + cached
    return None


def _numbers(file: Path) -> dict[str, int]:
    """The number after the first word of every line, by that word."""
    return {words[0]: int(words[1]) for line in file.read_text().splitlines() if len(words := line.split()) > 1}
