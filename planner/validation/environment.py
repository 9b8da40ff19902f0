"""The machine and software a run was taken on, as plain data beside its figures."""

from __future__ import annotations

import os
import platform
import time
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from costmodel.hardware.cores import usable_cores

__all__ = ["environment", "software"]

_PACKAGES = ("torch", "transformers", "numpy", "foreshard")


def environment(device: str, *, threads: int, pinned: bool) -> dict[str, Any]:
    """Versions, processor, threads, load and time of a measurement."""
    load = os.getloadavg()
    return {
        **_fixed(device),
        "threads_per_rank": threads,
        "pinned": pinned,
        "load_average_1min": load[0],
        "time": _now(),
    }


def software() -> dict[str, Any]:
    """Versions, processor and time of what is computed, not measured, here."""
    kept = ("processor", "cores", "system", "python", "versions")
    return {**{name: _fixed("cpu")[name] for name in kept}, "time": _now()}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@lru_cache(maxsize=4)
def _fixed(device: str) -> dict[str, Any]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found: dict[str, Any] = {
        "device": device,
        "processor": _processor(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
        found["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
