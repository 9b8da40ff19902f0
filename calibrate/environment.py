"""The machine a measurement was taken on, and whether two measurements may go together.

The fingerprint names everything that changes what an operator or a collective takes: device, cores,
threads, torch, backend, driver, kernel of the operating system, number of ranks. Load is recorded, not
compared.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from costmodel.errors import MeasurementError
from costmodel.hardware.cores import usable_cores

__all__ = ["Machine", "cpu_name", "last_level_cache_bytes", "load_per_core", "require_same_machine"]

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What must be equal before samples are merged; `load` (running processes per core) need not."""

    device_kind: str
    device: str
    n_devices: int
    cores: int
    memory_bytes: int
    """Memory of one device; of the host where the device is its CPU."""
    multiprocessors: int
    """Streaming multiprocessors of a GPU, threads of a CPU rank."""
    cache_bytes: int
    """Last-level cache."""
    clock_hz: float
    """Highest clock the system tells; varies on some hosts, so it is not compared."""
    threads: int
    world_size: int
    torch: str
    backend: str
    driver: str
    os_kernel: str
    load: float

    @classmethod
    def here(cls, *, world_size: int, backend: str) -> Self:
        """This process's machine."""
        import torch

        cuda = torch.cuda.is_available()
        properties = torch.cuda.get_device_properties(torch.cuda.current_device()) if cuda else None
        return cls(
            device_kind=("rocm" if torch.version.hip else "cuda") if cuda else "cpu",
            device=torch.cuda.get_device_name(torch.cuda.current_device()) if cuda else cpu_name(),
            n_devices=torch.cuda.device_count() if cuda else 1,
            cores=usable_cores(),
            memory_bytes=(
                properties.total_memory
                if properties
                else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            ),
            multiprocessors=properties.multi_processor_count if properties else torch.get_num_threads(),
            cache_bytes=properties.L2_cache_size if properties else last_level_cache_bytes(),
            clock_hz=1e3 * properties.clock_rate if properties else _cpu_clock_hz(),
            threads=torch.get_num_threads(),
            world_size=world_size,
            torch=torch.__version__,
            backend=backend,
            driver=_driver() if cuda else "",
            os_kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
            load=load_per_core(),
        )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Read back what `to_dict` wrote. Raises MeasurementError where fields are missing or unknown."""
        try:
            return cls(**dict(fields))
        except TypeError as error:
            raise MeasurementError(
                f"samples carry no usable description of their machine ({error}); measure again with --fresh"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain fields, as they stand in a journal's first line."""
        return asdict(self)

    def differences(self, other: Self) -> dict[str, tuple[Any, Any]]:
        """Field -> (mine, theirs) for everything but load and clock."""
        mine, theirs = asdict(self), asdict(other)
        return {
            k: (mine[k], theirs[k]) for k in mine if k not in ("load", "clock_hz") and mine[k] != theirs[k]
        }


def require_same_machine(here: Machine, there: Machine, *, where: str) -> None:
    """Raises MeasurementError naming every field that differs."""
    found = here.differences(there)
    if found:
        listed = "; ".join(f"{k}: here {a!r}, there {b!r}" for k, (a, b) in found.items())
        raise MeasurementError(
            f"{where} was measured on another machine or setting ({listed}); samples of different machines "
            "do not merge: give another --out, or --fresh to measure this one anew"
        )


def _cpu_fields() -> dict[str, str]:
    fields: dict[str, str] = {}
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    return fields


def _cpu_clock_hz() -> float:
    highest = _CACHES.parent / "cpufreq" / "cpuinfo_max_freq"
    if highest.is_file():
        return 1e3 * float(highest.read_text())
    return 1e6 * float(_cpu_fields().get("cpu MHz", "1000"))


def cpu_name() -> str:
    """Model name of the processor, with its number where the vendor's name alone is ambiguous."""
    fields = _cpu_fields()
    name = fields.get("model name") or platform.processor() or platform.machine()
    family, model = fields.get("cpu family"), fields.get("model")
    return f"{name} (family {family} model {model})" if family and model else name


def last_level_cache_bytes() -> int:
    """Largest cache of core 0, bytes; 8 MiB where the system does not tell."""
    sizes = []
    for path in _CACHES.glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * unit)
    return max(sizes, default=8 << 20)


def load_per_core() -> float:
    """One-minute load average over usable cores."""
    return os.getloadavg()[0] / usable_cores()


def _driver() -> str:
    """CUDA driver version from the kernel module, with the runtime's."""
    import torch

    module = Path("/sys/module/nvidia/version")
    driver = module.read_text().strip() if module.is_file() else "unknown"
    return f"{driver} (runtime {torch.version.cuda or torch.version.hip})"
