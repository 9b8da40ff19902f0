"""What the solver minimises: seconds per local operator and per collective, given by the caller.

`ReferenceCost` prices with the datasheet figures of a reference device (data/sharding/reference_device.json)
for callers without a measured profile; which assignment is best depends on their ratios, not on their size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Protocol

from costmodel.graph.model_graph import Operator

__all__ = ["ReferenceCost", "ShardingCost", "bus_factor", "reference_cost"]


class ShardingCost(Protocol):
    """Prices one local operator call and one collective."""

    def operator_s(self, op: Operator) -> float:
        """Seconds of the operator at its local sizes."""
        ...

    def collective_s(self, op: str, size_bytes: int, n: int, axis: str) -> float:
        """Seconds of a collective of `size_bytes` (nccl-tests convention) over n ranks of a mesh axis."""
        ...


def bus_factor(op: str, n: int) -> float:
    """Bytes each rank sends over bytes of the buffer (nccl-tests bus bandwidth factors)."""
    return {"all_reduce": 2 * (n - 1) / n, "broadcast": 1.0, "reduce": 1.0, "p2p": 1.0}.get(op, (n - 1) / n)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceCost:
    """Roofline per operator, latency + bandwidth per collective."""

    flop_per_s: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """Per rank, one direction."""
    launch_s: float
    collective_latency_s: float

    def operator_s(self, op: Operator) -> float:
        """max(FLOP / peak, bytes / bandwidth) + launch; views and bookkeeping run nothing."""
        if op.kind == "host":
            return 0.0
        moved = (op.bytes_read + op.bytes_written) / self.memory_bytes_per_s
        return max(op.flop / self.flop_per_s, moved) + self.launch_s

    def collective_s(self, op: str, size_bytes: int, n: int, axis: str) -> float:
        """latency + bus factor * size / link bandwidth."""
        return self.collective_latency_s + bus_factor(op, n) * size_bytes / self.link_bytes_per_s


@cache
def reference_cost() -> ReferenceCost:
    """The reference device's prices."""
    text = resources.files("costmodel").joinpath("data/sharding/reference_device.json").read_text()
    values = json.loads(text)["values"]
    return ReferenceCost(**{name: float(entry["value"]) for name, entry in values.items()})
