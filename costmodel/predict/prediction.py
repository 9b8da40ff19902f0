"""Prediction: what `foreshard predict` says about one plan. Plain data, no rendering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from costmodel.plan import Plan
from costmodel.predict.uncertainty import NO_ERRORS, StepErrors
from costmodel.predict.without_rule import WithoutRule
from costmodel.stage_costs import BREAKDOWN_PARTS

__all__ = ["HardwareUsed", "Prediction", "StageMemory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """Peak memory of one pipeline stage's rank, bytes, by what holds it.

    Gradients are counted whole: `activations` is what the peak has above model state and temporaries.
    """

    stage: int
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    temporary: int
    communication: int
    framework: int
    fragments: int = 0
    """What the allocator keeps beside that in blocks which nothing uses. It gives them back before it fails,
    so that a plan needs no room for them; a device reading shows them."""

    @property
    def allocated_bytes(self) -> int:
        """What tensors take at the peak (torch.cuda.max_memory_allocated)."""
        return (
            self.parameters
            + self.gradients
            + self.optimizer
            + self.activations
            + self.temporary
            + self.communication
        )

    @property
    def peak_memory_bytes(self) -> int:
        """What the device must hold: tensors, and what lies outside the allocator."""
        return self.allocated_bytes + self.framework

    @property
    def reserved_bytes(self) -> int:
        """The allocator's whole pool where the device has room for it (torch.cuda.max_memory_reserved)."""
        return self.allocated_bytes + self.fragments

    def device_bytes(self, device_memory_bytes: int) -> int:
        """What the driver (nvidia-smi) shows as used on a device of that size: the pool stops there."""
        return max(self.peak_memory_bytes, min(self.reserved_bytes + self.framework, device_memory_bytes))

    def to_dict(self) -> dict[str, int]:
        """The parts and their sum."""
        return {
            "stage": self.stage,
            "peak_memory_bytes": self.peak_memory_bytes,
            "parameters": self.parameters,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
            "temporary": self.temporary,
            "communication": self.communication,
            "framework": self.framework,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareUsed:
    """Which profile a prediction stands on."""

    name: str
    source: str
    age_days: float | None
    n_devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Forecast of one training step (or one forward pass) of one plan.

    `breakdown_s` has the keys of BREAKDOWN_PARTS and adds up to `step_time_s`.
    """

    model: str
    plan: Plan
    step_time_s: float
    step_time_low_s: float
    step_time_high_s: float
    breakdown_s: Mapping[str, float]
    bubble_fraction: float
    memory: tuple[StageMemory, ...]
    device_memory_bytes: int
    samples_per_s: float
    tokens_per_s: float | None
    mfu: float | None
    hfu: float | None
    unmodelled_fraction: float
    """Share of the bytes that operators without a cost rule move."""
    hardware: HardwareUsed
    warnings: tuple[str, ...] = ()
    unmodelled_operators: tuple[WithoutRule, ...] = ()
    """Operators without a cost rule: priced by their bytes."""
    unruled_operators: tuple[WithoutRule, ...] = ()
    """Under tensor parallelism, operators without a sharding rule: whole on every rank."""
    host_fits: bool = True
    """Whether a node's host has the memory for what is offloaded to it."""
    errors: StepErrors = NO_ERRORS
    """What the interval is made of, by what errs together; in memory only."""
    stage_modules: tuple[tuple[str, ...], ...] = field(default_factory=tuple)
    """Module paths of each stage, in forward order."""

    def __post_init__(self) -> None:
        total = sum(self.breakdown_s.values())
        assert abs(total - self.step_time_s) <= 1e-3 * self.step_time_s, (total, self.step_time_s)
        assert set(self.breakdown_s) <= set(BREAKDOWN_PARTS)

    @property
    def peak_memory_bytes(self) -> int:
        """Highest peak of all stages."""
        return max((m.peak_memory_bytes for m in self.memory), default=0)

    @property
    def fits(self) -> bool:
        """Whether every stage stays below the device's memory, and what is offloaded below the host's."""
        return self.host_fits and self.peak_memory_bytes <= self.device_memory_bytes

    def to_dict(self) -> dict[str, Any]:
        """The fields of `predict --json`."""
        return {
            "model": self.model,
            "plan": str(self.plan),
            "step_time_s": self.step_time_s,
            "step_time_low_s": self.step_time_low_s,
            "step_time_high_s": self.step_time_high_s,
            "breakdown_s": {key: self.breakdown_s.get(key, 0.0) for key in BREAKDOWN_PARTS},
            "peak_memory_bytes": [m.to_dict() for m in self.memory],
            "reserved_memory_bytes": [m.reserved_bytes for m in self.memory],
            "device_memory_bytes": self.device_memory_bytes,
            "fits": self.fits,
            "bubble_fraction": self.bubble_fraction,
            "tokens_per_s": self.tokens_per_s,
            "samples_per_s": self.samples_per_s,
            "mfu": self.mfu,
            "hfu": self.hfu,
            "unmodelled_fraction": self.unmodelled_fraction,
            "unmodelled_operators": [one.to_dict() for one in self.unmodelled_operators],
            "unruled_operators": [one.to_dict() for one in self.unruled_operators],
            "hardware": {
                "name": self.hardware.name,
                "source": self.hardware.source,
                "age_days": self.hardware.age_days,
                "n_devices": self.hardware.n_devices,
            },
            "stages": [list(modules) for modules in self.stage_modules],
            "warnings": list(self.warnings),
        }
