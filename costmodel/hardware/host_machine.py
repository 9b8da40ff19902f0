"""The host of a node: what offload, streaming and host updates run on (`costmodel/data/hosts.json`)."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from costmodel.errors import InputFileError, UsageError
from costmodel.hardware.schema import HardwareProfile

__all__ = ["HostMachine", "dispatch_factor", "host_names", "host_of", "load_host", "unknown_dispatch_s"]

_FILE = Path(__file__).resolve().parent.parent / "data" / "hosts.json"


class HostMachine(BaseModel):
    """Rates of one node's host, shared by the ranks of the node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory_bytes_per_s: float = Field(gt=0)
    """DRAM bandwidth, nominal."""
    memory_bytes: float = Field(gt=0)
    update_efficiency: float = Field(gt=0, le=1)
    """Share of DRAM bandwidth that the optimizer's update reaches."""
    link_efficiency: float = Field(gt=0, le=1)
    """Share of the device link's nominal rate that pinned copies reach."""
    storage_bytes_per_s: float = Field(gt=0)
    """Drives of the node, one direction."""


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return data


def host_names() -> list[str]:
    """Names of the hosts there are."""
    return sorted(_data()["hosts"])


def load_host(name: str) -> HostMachine:
    """A host by name, or from a JSON file. Raises UsageError, InputFileError."""
    if name.endswith(".json"):
        try:
            return HostMachine.model_validate(json.loads(Path(name).read_text(encoding="utf-8")))
        except (OSError, ValueError, ValidationError) as error:
            raise InputFileError(f"host file {name}: {error}") from error
    if name not in _data()["hosts"]:
        raise UsageError(f"unknown host {name!r}; there are: {', '.join(host_names())}, or a JSON file")
    return HostMachine.model_validate(_data()["hosts"][name])


def host_of(profile: HardwareProfile) -> HostMachine:
    """The usual host of a device's generation."""
    data = _data()
    return load_host(data["by_architecture"].get(profile.device.architecture, data["default"]))


def dispatch_factor(profile: HardwareProfile) -> float:
    """Time that a framework's host code takes on the usual host of a device's generation, over what it takes
    on the host that frameworks' host times are given for."""
    return float(_data()["dispatch_factor"]["by_architecture"].get(profile.device.architecture, 1.0))


def unknown_dispatch_s(*, training: bool = True) -> float:
    """Seconds of an operator below which a host of unknown speed is likely to be what a step waits for, or a
    pass without gradients."""
    return float(_data()["unknown_dispatch"]["operator_s" if training else "forward_operator_s"])
