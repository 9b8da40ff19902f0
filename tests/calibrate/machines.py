"""A machine for tests, and a bench on it."""

from __future__ import annotations

from calibrate.benchmarks.base import Bench
from calibrate.environment import Machine

__all__ = ["a_bench", "a_machine"]


def a_bench(**changes: object) -> Bench:
    """A CPU core of small rates; `changes` replace arguments."""
    import torch

    fields: dict[str, object] = {
        "cache_bytes": 1 << 22,
        "flop_per_s": 5e10,
        "bytes_per_s": 5e9,
        "largest_s": 1e-3,
    }
    return Bench(torch.device("cpu"), **{**fields, **changes})  # type: ignore[arg-type]


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
