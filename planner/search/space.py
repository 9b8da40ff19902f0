"""Which plans a search looks at: what the model and the machine allow of each axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from costmodel.closed_form import NO_OFFLOAD, Choices
from costmodel.errors import PlanError, UsageError
from costmodel.plan import Plan
from costmodel.recompute import Recompute

if TYPE_CHECKING:
    from costmodel.predict import Forecaster

__all__ = ["SearchOptions", "choices_of"]

_LEAST_POSITIONS = 4096
"""Context parallelism is tried by default where each rank keeps so many positions of a sequence: with fewer,
tensor parallelism splits the same work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """Axes as the user restricts them; None: what the model and the machine allow."""

    schedules: Sequence[str] = ("gpipe", "1f1b")
    zero_stages: Sequence[int] = (0, 1, 2, 3)
    recompute: Sequence[str] = ("none", "selective", "full")
    vpp: Sequence[int] = (1, 2, 3, 4, 6, 8)
    tp: Sequence[int] | None = None
    cp: Sequence[int] | None = None
    ep: Sequence[int] | None = None
    offload: Sequence[str] = (NO_OFFLOAD, "zero-offload", "zero-infinity")
    """What the host may take over where a plan does not fit without; nothing on a machine without devices."""
    max_micro_batch_size: int = 64
    exhaustive_below: int = 128
    """With so many feasible plans or fewer, the event engine prices all of them."""

    def __post_init__(self) -> None:
        for policy in self.recompute:
            Recompute.parse(policy)
        for name in ("vpp", "tp", "cp", "ep"):
            if any(d < 1 for d in getattr(self, name) or ()):
                raise UsageError(f"{name} {list(getattr(self, name))}: degrees must be at least 1")
        if not set(self.zero_stages) <= {0, 1, 2, 3} or not self.zero_stages:
            raise UsageError(f"ZeRO stages {list(self.zero_stages)}: must be some of 0, 1, 2, 3")


def choices_of(
    forecaster: Forecaster, n_devices: int, global_batch_size: int, options: SearchOptions
) -> Choices:
    """The axes of the space for this model on so many of these devices."""
    network = forecaster.profile.network
    per_node = 1 if network is None else max(1, network.ranks_per_node)
    inside_node = [d for d in range(1, min(per_node, n_devices) + 1) if n_devices % d == 0]
    tp = tuple(d for d in options.tp or inside_node if d == 1 or _splits(forecaster, Plan(tp=d)))
    several_nodes = n_devices > per_node > 1
    sequence = any(d > 1 and _splits(forecaster, Plan(tp=d, sequence_parallel=True)) for d in tp)
    experts = _experts(forecaster, n_devices, options)
    return Choices(
        n_devices=n_devices,
        global_batch_size=global_batch_size,
        n_units=forecaster.n_units(),
        tp=tp,
        cp=_context(forecaster, n_devices, options),
        ep=experts,
        whole_experts=any(d > 1 for d in experts),
        sequence_parallel=(False, True) if sequence else (False,),
        schedules=tuple(options.schedules),
        vpp=tuple(options.vpp),
        zero=tuple(options.zero_stages),
        shard=(0, per_node) if several_nodes else (0,),
        recompute=tuple(options.recompute),
        inside=(False, True) if several_nodes else (False,),
        offload=_offload(forecaster, options),
        max_micro_batch_size=options.max_micro_batch_size,
    )


def _offload(forecaster: Forecaster, options: SearchOptions) -> tuple[str, ...]:
    device = forecaster.profile.device
    words = [w for w in options.offload if w != NO_OFFLOAD]
    return (NO_OFFLOAD, *(words if device.kind != "cpu" and device.host_bytes_per_s else ()))


def _splits(forecaster: Forecaster, plan: Plan) -> bool:
    try:
        forecaster.sharded(plan)
    except PlanError:
        return False
    return True


def _context(forecaster: Forecaster, n_devices: int, options: SearchOptions) -> tuple[int, ...]:
    if options.cp is not None:
        return tuple(options.cp)
    most = (forecaster.graph(1).seq_len or 0) // _LEAST_POSITIONS
    degrees = [d for d in _powers(most) if n_devices % d == 0]
    return tuple(d for d in degrees if d == 1 or _splits(forecaster, Plan(cp=d)))


def _experts(forecaster: Forecaster, n_devices: int, options: SearchOptions) -> tuple[int, ...]:
    if options.ep is not None:
        return tuple(options.ep)
    found = [1]
    for d in _powers(n_devices):
        if d > 1 and n_devices % d == 0:
            if not _splits(forecaster, Plan(dp=d, ep=d)):
                break
            found.append(d)
    return tuple(found)


def _powers(most: int) -> list[int]:
    return [2**k for k in range(max(1, most).bit_length())]
