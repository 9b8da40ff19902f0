"""A machine for tests."""

from __future__ import annotations

from calibrate.environment import Machine

__all__ = ["a_machine"]


def a_machine(**changes: object) -> Machine:
    """Two cores, gloo, two ranks; `changes` replace fields."""
    fields: dict[str, object] = {
        "device_kind": "cpu",
        "device": "Test CPU",
        "n_devices": 1,
        "cores": 2,
        "memory_bytes": 1 << 34,
        "multiprocessors": 1,
        "cache_bytes": 1 << 25,
        "clock_hz": 3e9,
        "threads": 1,
        "world_size": 2,
        "torch": "2.13.0",
        "backend": "gloo",
        "driver": "",
        "os_kernel": "Linux 6 x86_64",
        "load": 0.1,
    }
    return Machine.from_dict({**fields, **changes})
