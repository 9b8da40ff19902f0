"""StageCosts: the priced pieces of a sharded model, between sharding and schedule.

A stage is a run of units in forward order. A unit is the smallest piece the step is scheduled in: the
block that FSDP gathers, the span between two DDP buckets. Times are seconds for one micro-batch on one
rank of the stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["BREAKDOWN_PARTS", "CostParts", "StageCosts", "UnitCosts"]

BREAKDOWN_PARTS = (
    "compute",
    "recompute",
    "tp_comm",
    "cp_comm",
    "ep_comm",
    "dp_comm",
    "pp_comm",
    "bubble",
    "optimizer",
    "host",
    "offload",
)
"""Names of `breakdown_s`; they add up to the step time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostParts:
    """Time of one action, split by what it is spent on (keys out of BREAKDOWN_PARTS)."""

    parts_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def total_s(self) -> float:
        """Sum of the parts."""
        return sum(self.parts_s.values())

    def __add__(self, other: CostParts) -> CostParts:
        keys = [k for k in BREAKDOWN_PARTS if k in self.parts_s or k in other.parts_s]
        return CostParts(parts_s={k: self.parts_s.get(k, 0.0) + other.parts_s.get(k, 0.0) for k in keys})

    def scaled(self, factor: float) -> CostParts:
        """Every part times `factor`."""
        return CostParts(parts_s={k: v * factor for k, v in self.parts_s.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCosts:
    """One unit of a stage, for one micro-batch."""

    name: str
    forward: CostParts
    backward_input: CostParts
    """Gradient of the inputs (I of the zero-bubble papers), recomputation included."""
    backward_weight: CostParts
    """Gradient of the weights (W); runs right after I except in zero-bubble schedules."""
    parameter_bytes: int
    """Parameters of the unit on this rank after tensor/expert sharding, before data-parallel sharding."""
    trained_fraction: float = 1.0
    """Share of them that has gradients and an update; the others are frozen."""
    shared_by: float = 0.0
    """Ranks that divide them and their optimizer's state, on average; 0: as a step's options say."""
    split_s: float = 0.0
    """Host time of taking the weights' gradients apart from the inputs' (not on the first stage)."""
    accumulate_s: float = 0.0
    """Adding a further micro-batch's gradients to those already there (not for the first one)."""
    gather_s: float = 0.0
    """All-gather of the unit's parameters over the shard group (ZeRO-3), once per use."""
    gather_takes: float = 0.0
    """Share of the rank's device that it keeps from computation while it runs (`hardware.overlap`)."""
    reduce_s: float = 0.0
    """All-reduce or reduce-scatter of the unit's gradients over the data-parallel group."""
    reduce_takes: float = 0.0
    saved_bytes: int = 0
    """Activations held from the unit's forward to its backward, per micro-batch, after recompute policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """One (virtual) pipeline stage on one of its ranks."""

    index: int
    units: tuple[UnitCosts, ...]
    send_bytes: int
    """Activation bytes to the next stage per micro-batch (its gradient comes back with the same size)."""
    send_s: float
    """Point-to-point time of `send_bytes` to the next stage."""
    optimizer_s: float
    """Optimizer update of the stage's local parameters."""
    state_bytes: int
    """Parameters + gradients + optimizer state + master copies on the rank, after ZeRO sharding."""
