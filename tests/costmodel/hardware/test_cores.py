"""Cores that a process may use, under affinity and control groups of both versions."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from costmodel.hardware import cores

ROOT = Path(__file__).parents[3]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """64 cores, all of them allowed, no quota yet."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(cores, "_MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "_MOUNTED", tmp_path / "mounted")
    return tmp_path


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_affinity_counts_where_no_group_is_limited(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores.usable_cores() == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert cores.usable_cores() == 2
    assert cores.core_ids() == {3, 5}


@pytest.mark.parametrize(
    ("limit", "expected"), [("max 100000", 64), ("250000 100000", 3), ("50000 100000", 1)]
)
def test_a_quota_of_the_second_version(machine: Path, limit: str, expected: int) -> None:
    written(machine / "cgroup", "0::/a/b\n")
    written(machine / "mounted/a/b/cpu.max", "max 100000\n")
    written(machine / "mounted/a/cpu.max", f"{limit}\n")  # of a group above the process's own
    assert cores.usable_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 64), ("200000", 2)])
def test_a_quota_of_the_first_version(machine: Path, quota: str, expected: int) -> None:
    written(machine / "cgroup", "5:memory:/docker/x\n2:cpu,cpuacct:/docker/x\n")
    written(machine / "mounted/cpu/cpu.cfs_quota_us", f"{quota}\n")  # the group is mounted as the root
    written(machine / "mounted/cpu/cpu.cfs_period_us", "100000\n")
    assert cores.usable_cores() == expected


def test_unreadable_limits_are_none(machine: Path) -> None:
    written(machine / "cgroup", "0::/\n")
    written(machine / "mounted/cpu.max", "\n")
    assert cores.usable_cores() == 64


def test_nothing_else_counts_cores() -> None:
    counted = re.compile(r"cpu_count|sched_getaffinity")
    files = [p for package in ("calibrate", "costmodel", "planner") for p in (ROOT / package).rglob("*.py")]
    assert [p.name for p in files if counted.search(p.read_text())] == ["cores.py"]
