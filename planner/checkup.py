"""What `foreshard doctor` looks at."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Literal

from costmodel.hardware.cores import usable_cores
from planner.render import bytes_text

__all__ = ["Finding", "examine"]

_NOISE_WARN_FRACTION = 0.05
_LOAD_WARN_FRACTION = 0.25
_DISK_WARN_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the check-up."""

    check: str
    verdict: Literal["OK", "WARN", "FAIL"]
    found: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain fields."""
        return {k: str(v) for k, v in asdict(self).items()}


def examine() -> list[Finding]:
    """Every check, in a fixed order. Takes under two seconds beyond importing torch."""
    return [_python(), _torch(), _device(), _backends(), _threads(), _load(), _noise(), _extras(), _disk()]


def _python() -> Finding:
    return Finding(check="python", verdict="OK", found=f"{platform.python_version()} on {platform.system()}")


def _torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding(
            check="torch", verdict="FAIL", found=str(error), remedy="install torch (see README, Installing)"
        )
    return Finding(check="torch", verdict="OK", found=torch.__version__)


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding(check="device", verdict="OK", found=f"{len(names)} x {names[0]}")
    return Finding(
        check="device",
        verdict="OK",
        found=f"no CUDA device; CPU with {usable_cores()} cores",
        remedy="calibrate measures the CPU with gloo; shipped profiles answer for GPUs",
    )


def _backends() -> Finding:
    import torch.distributed as dist

    if not dist.is_available():
        return Finding(
            check="torch.distributed", verdict="FAIL", found="not built in", remedy="install a torch with it"
        )
    found = [name for name in ("gloo", "nccl", "mpi") if getattr(dist, f"is_{name}_available")()]
    ok = "gloo" in found or "nccl" in found
    return Finding(
        check="torch.distributed",
        verdict="OK" if ok else "FAIL",
        found=", ".join(found) or "no backend",
        remedy="" if ok else "install a torch built with gloo or NCCL",
    )


def _threads() -> Finding:
    import torch

    cores = usable_cores()
    asked = os.environ.get("OMP_NUM_THREADS", "unset")
    found = f"{cores} cores, torch uses {torch.get_num_threads()}, OMP_NUM_THREADS {asked}"
    if cores < 2:
        return Finding(
            check="threads",
            verdict="WARN",
            found=found,
            remedy="real 2-rank runs need 2 cores to be meaningful",
        )
    return Finding(check="threads", verdict="OK", found=found)


def _load() -> Finding:
    cores = usable_cores()
    load = os.getloadavg()[0]
    busy = load > _LOAD_WARN_FRACTION * cores
    return Finding(
        check="load",
        verdict="WARN" if busy else "OK",
        found=f"{load:.2f} running on {cores} cores (1 min)",
        remedy="stop other work before you calibrate: samples taken now are slow and spread" if busy else "",
    )


def _noise() -> Finding:
    times = []
    for _ in range(60):
        start = time.perf_counter()
        sum(range(60_000))
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    spread = statistics.median(abs(t - median) for t in times) / median
    noisy = spread > _NOISE_WARN_FRACTION
    return Finding(
        check="noise",
        verdict="WARN" if noisy else "OK",
        found=f"a fixed loop spreads {100 * spread:.1f} % (median absolute deviation)",
        remedy="use a larger --budget, or a quieter machine: intervals will be wide" if noisy else "",
    )


def _extras() -> Finding:
    wanted = {"transformers": "hf", "diffusers": "hf", "onnxruntime": "onnx"}
    missing = {extra for module, extra in wanted.items() if importlib.util.find_spec(module) is None}
    return Finding(
        check="extras",
        verdict="WARN" if missing else "OK",
        found="missing: " + ", ".join(sorted(missing)) if missing else ", ".join(wanted),
        remedy=f"pip install 'foreshard[{','.join(sorted(missing))}]'" if missing else "",
    )


def _disk() -> Finding:
    free = shutil.disk_usage(".").free
    low = free < _DISK_WARN_BYTES
    return Finding(
        check="disk",
        verdict="WARN" if low else "OK",
        found=f"{bytes_text(free)} free here",
        remedy="free some space: profiles and results are written here" if low else "",
    )
