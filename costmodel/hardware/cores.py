"""The cores that this process may use: its affinity, and the share of time that control groups grant it.

A container with a quota of two cores on a machine of 64 sees all 64, and its processes would wait for each
other if there were as many.
"""

from __future__ import annotations

import contextlib
import math
import os
from functools import cache
from pathlib import Path

__all__ = ["core_ids", "usable_cores"]

_MEMBERSHIP = Path("/proc/self/cgroup")
_MOUNTED = Path("/sys/fs/cgroup")


def core_ids() -> set[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Processes or threads that run at once: the cores of `core_ids`, or a control group's quota, rounded up,
    where that is less; at least 1."""
    return max(1, min(len(core_ids()), math.ceil(_granted_cores(_MEMBERSHIP, _MOUNTED))))


@cache
def _granted_cores(membership: Path, mounted: Path) -> float:
    """Least quota of the process's control groups (of either version) and those above them, in cores; as many
    as there can be where none is set."""
    most = float(os.cpu_count() or 1)
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return most
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mounted / "cpu" if controllers else mounted
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if root in (folder, *folder.parents):
                most = min(most, _quota(folder))
    return most


def _quota(group: Path) -> float:
    """Cores that one control group grants; infinite where it sets no limit or cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        allowed, _, period = (group / "cpu.max").read_text().partition(" ")
        return math.inf if allowed == "max" else float(allowed) / float(period)
    with contextlib.suppress(OSError, ValueError):
        allowed = (group / "cpu.cfs_quota_us").read_text()
        period = (group / "cpu.cfs_period_us").read_text()
        return math.inf if float(allowed) < 0 else float(allowed) / float(period)
    return math.inf
