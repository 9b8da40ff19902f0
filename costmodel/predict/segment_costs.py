"""What one instance of a sharded segment costs for one micro-batch, priced on a profile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from costmodel.graph.fusion import FusedSegment, fuse
from costmodel.graph.liveness import SegmentMemory, kept_segments, recomputed_operators, segment_memory
from costmodel.graph.model_graph import Operator, Phase, TensorRole
from costmodel.graph.softmax import written_out_softmax
from costmodel.hardware.collectives import bus_factor
from costmodel.hardware.host_machine import dispatch_factor
from costmodel.hardware.overlap import share_taken
from costmodel.predict.pricing import PricedOperators, host_cost_s, price_runs, streaming_s
from costmodel.predict.served_kernels import as_answered
from costmodel.sharding.expert import biased_elements
from costmodel.stage_costs import CostParts

if TYPE_CHECKING:
    from costmodel.estimate import TimeEstimate
    from costmodel.framework import FrameworkProfile
    from costmodel.hardware.schema import HardwareProfile
    from costmodel.sharding import CollectiveCall, ShardedSegment

__all__ = [
    "PARTS",
    "CollectivePricer",
    "Kernels",
    "SegmentCosts",
    "dtensor_modules",
    "part_of",
    "price_kernels",
    "price_segment",
]

PARTS = ("forward", "backward_input", "backward_weight", "recompute")
"""The pieces of work a schedule can place."""

_LOSS = "aten._log_softmax"

CollectivePricer = Callable[[str, float, str], "TimeEstimate"]
"""(collective kind, size in bytes, mesh axis) -> time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentCosts:
    """Times of one instance, one micro-batch, one rank; every mapping is keyed by a name out of PARTS."""

    device_s: Mapping[str, float]
    """Part -> seconds on the device, all local ranks busy."""
    contended_s: Mapping[str, float]
    """Part -> how many of those seconds go to waiting for memory that busy neighbours use."""
    host_s: Mapping[str, float]
    comm_s: Mapping[str, Mapping[str, float]]
    """Part -> breakdown name (tp_comm, cp_comm, ep_comm) -> seconds, not overlapped."""
    memory: SegmentMemory
    error_s: Mapping[tuple[str, str], float]
    """(what errs together, part) -> seconds of one standard deviation; a fit, one size of it, or a link's
    collectives, named as in `costmodel.predict.uncertainty`."""
    deferred_bytes: int
    """What gradients of weights are made of: read again, from further away, where they are taken apart."""
    asynchronous: bool
    """The host queues kernels ahead of the device (cuda); else they are one (cpu)."""
    blocking: bool = False
    """On such a device, but the host waits for each kernel before it dispatches the next."""
    overlap_power: float = 0.0
    """How evenly host and device share a block (`FrameworkProfile.host_overlap_power`)."""

    def parts(self, part: str, utilisation: float, waiting: float = 0.0) -> CostParts:
        """One part's cost while neighbours on the same memory are busy this fraction of the time.

        `waiting`: what waiting for the slowest rank adds to computation, as a fraction of it.
        """
        device = self.device_s[part] - self.contended_s[part] * (1.0 - utilisation)
        device *= 1.0 + waiting
        name = "recompute" if part == "recompute" else "compute"
        host = {} if self.asynchronous else {"host": self.host_s[part]}
        return CostParts(parts_s={name: device, **host, **self.comm_s[part]})

    def exposed_host(self, parts: Mapping[str, CostParts]) -> CostParts:
        """What the device waits for the host over parts that run one after another.

        Where the host queues kernels ahead, it is late only by what it takes longer than the device does over
        all of them: a long kernel gives it time for the short ones that follow.
        """
        if not self.asynchronous:
            return CostParts()
        host = sum(self.host_s[part] for part in parts)
        if self.blocking:
            return CostParts(parts_s={"host": host})
        device = sum(cost.total_s for cost in parts.values())
        return CostParts(parts_s={"host": _longer_s(host, device, self.overlap_power) - device})


def _longer_s(host_s: float, device_s: float, power: float) -> float:
    """The longer one of both, or their norm of that power: never less than it, never more than their sum."""
    longer = max(host_s, device_s)
    if power < 1.0 or longer <= 0.0:
        return longer
    return longer * math.pow(1.0 + math.pow(min(host_s, device_s) / longer, power), 1.0 / power)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """The kernels that a segment's operators become, and what they cost; recomputation changes neither."""

    fused: FusedSegment
    operators: tuple[Operator, ...]
    """Those of `fused`, with the kernels that the framework's fused ones fall back to."""
    priced: PricedOperators
    """Of `operators`."""
    parts: tuple[str, ...]
    """Out of PARTS, of each of `operators`."""
    errors: tuple[tuple[tuple[str, float], ...], ...]
    """Of each of `operators`: what it errs with -> seconds of one standard deviation."""


def price_kernels(
    segments: Sequence[ShardedSegment],
    *,
    profile: HardwareProfile,
    framework: FrameworkProfile,
    fusion: str,
    long_run: bool = False,
) -> tuple[Kernels, ...]:
    """Fuse and price the operators of one instance of each segment; `long_run` as in `price_operators`."""
    fused = [fuse(segment.local, fusion) for segment in segments]
    runs = [one.operators for one in fused]
    if fusion == "fused":
        runs = [
            written_out_softmax(
                operators,
                {t.index: t for t in segment.local.tensors},
                batch_multiple=framework.softmax_batch_multiple,
                max_keys=framework.softmax_max_keys,
            )
            for segment, operators in zip(segments, runs, strict=True)
        ]
    if framework.merges_projections:
        runs = [
            operators if _trains(operators) else as_answered(segment.local, operators, framework)
            for segment, operators in zip(segments, runs, strict=True)
        ]
    priced = price_runs(runs, profile, framework, long_run=long_run)
    return tuple(
        Kernels(
            fused=one,
            operators=operators,
            priced=prices,
            parts=_parts(segment, operators),
            errors=prices.errors(operators),
        )
        for segment, one, operators, prices in zip(segments, fused, runs, priced, strict=True)
    )


def _trains(operators: Sequence[Operator]) -> bool:
    return any(op.phase is Phase.BACKWARD for op in operators)


def _parts(segment: ShardedSegment, operators: Sequence[Operator]) -> tuple[str, ...]:
    gradients = {t.index for t in segment.local.tensors if t.role is TensorRole.GRADIENT}
    return tuple(part_of(op, gradients) for op in operators)


def price_segment(
    segment: ShardedSegment,
    *,
    profile: HardwareProfile,
    framework: FrameworkProfile,
    kernels: Kernels,
    collective: CollectivePricer,
    link: Callable[[str], str],
    n_nodes: Callable[[str], int],
    exchange_fraction: float = 1.0,
    recompute: str,
    saved_elsewhere: frozenset[int] = frozenset(),
) -> SegmentCosts:
    """Price every kernel and collective of one instance.

    Backward operators that produce only parameter gradients are `backward_weight`, the others
    `backward_input`. `link`: mesh axis -> the link its group communicates over, `n_nodes`:
    -> the nodes it spans. `exchange_fraction`: of
    what the links between nodes carry, what the library's all-to-all sends. `recompute`: none, selective
    (operators of attention that no GEMM weight belongs to run again) or full (the forward runs again, its
    collectives too).
    """
    fused, operators, priced = kernels.fused, kernels.operators, kernels.priced
    device, contended = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
    host = dict.fromkeys(PARTS, 0.0)
    error: dict[tuple[str, str], float] = {}
    again = recomputed_operators(segment.local, recompute)
    module_s = host_cost_s(profile, "dtensor_module_s")
    dispatched = dtensor_modules(segment)
    columns = (priced.device_s, priced.contended_s, priced.host_s)
    numbers = zip(*(values.tolist() for values in columns), strict=True)
    for op, part, errors, (device_s, contended_s, host_s) in zip(
        operators, kernels.parts, kernels.errors, numbers, strict=True
    ):
        for name in (part, "recompute") if op.index in again else (part,):
            device[name] += device_s
            contended[name] += contended_s
            host[name] += host_s
            for what, seconds in errors:
                error[what, name] = error.get((what, name), 0.0) + seconds
    # measured over forward and backward together; each takes half
    for part in ("forward", "backward_input"):
        host[part] += 0.5 * module_s * len(dispatched)
    if profile.device.kind != "cpu":
        factor = dispatch_factor(profile)
        for part, seconds in _framework_host_s(segment, framework, bool(again), recompute).items():
            host[part] += factor * seconds
        if framework.segment_s:
            host["forward"] += framework.segment_s * kept_segments(segment.local, recompute, fused)
    for part in ("forward", "backward_input"):
        device[part] += 0.5 * _biases_s(segment, profile, framework)
    calls = [
        _as_dispatched(call, n_nodes(call.axis), framework, exchange_fraction) for call in segment.collectives
    ]
    comm, slowing = _comm_times(
        calls, collective, link, recompute == "full" and bool(again), error, profile, framework
    )
    if framework.overlap_ep:
        _hide_experts(comm, slowing, device)
    if framework.overlap_tp:
        _hide_slices(comm, slowing, device, max((c.n_ranks for c in calls if c.axis == "tp"), default=1))
    return SegmentCosts(
        device_s=device,
        contended_s=contended,
        host_s=host,
        comm_s=comm,
        memory=_with_loss(
            segment_memory(segment.local, recompute, fused, saved_elsewhere), segment, framework
        ),
        error_s=error,
        deferred_bytes=sum(
            op.bytes_read
            for op, part in zip(operators, kernels.parts, strict=True)
            if part == "backward_weight"
        ),
        asynchronous=profile.device.kind != "cpu",
        blocking=framework.launch_blocking,
        overlap_power=framework.host_overlap_power,
    )


def _biases_s(segment: ShardedSegment, profile: HardwareProfile, framework: FrameworkProfile) -> float:
    """Seconds, forward and backward, of adding biases to the products of experts one expert at a time."""
    elements = biased_elements(segment.local) if framework.expert_bias_bytes else 0
    if not elements:
        return 0.0
    return streaming_s(elements, framework.expert_bias_bytes * elements, profile, framework)


def _with_loss(memory: SegmentMemory, segment: ShardedSegment, framework: FrameworkProfile) -> SegmentMemory:
    """The memory with what the framework's own loss holds more than torch's."""
    forward = segment.local.phase(Phase.FORWARD)
    logits = sum(op.dims["rows"] * op.dims["cols"] for op in forward if op.target.startswith(_LOSS))
    more = round(logits * framework.loss_copy_bytes)
    if not more:
        return memory
    return replace(
        memory,
        forward_bytes=memory.forward_bytes + more,
        backward_bytes=memory.backward_bytes + more,
        accumulating_bytes=memory.accumulating_bytes + more,
    )


def _framework_host_s(
    segment: ShardedSegment, framework: FrameworkProfile, again: bool, recompute: str
) -> dict[str, float]:
    """Part -> host time of collectives beside that of kernels: issuing them, and waiting for the last rank's.

    Where hosts are late by exponential times of one mean, the last of n is late by 1 + 1/2 + .. + 1/n of it.
    """
    host = dict.fromkeys(PARTS, 0.0)
    for call in segment.collectives:
        last = sum(1.0 / rank for rank in range(2, call.n_ranks + 1))
        seconds = framework.host_collective_s + framework.host_late_s * last
        forward = call.phase is Phase.FORWARD
        host["forward" if forward else "backward_input"] += seconds
        if forward and again and recompute == "full":
            host["recompute"] += seconds
    return host


def dtensor_modules(segment: ShardedSegment) -> frozenset[str]:
    """Modules whose operators DTensor dispatches: those with a split weight, convolutions aside (they and
    the normalisation of their channels run on plain local tensors)."""
    split = {p.name.rpartition(".")[0] for p in segment.parameters if p.is_sharded}
    plain = {op.module for op in segment.local.operators if op.kind in ("conv", "norm")}
    return frozenset(split - plain)


def part_of(op: Operator, gradients: set[int]) -> str:
    """The part of PARTS that an operator belongs to; `gradients`: indices of the parameters' gradients."""
    if op.phase is Phase.FORWARD:
        return "forward"
    made = set(op.outputs)
    return "backward_weight" if made and made <= gradients else "backward_input"


def _as_dispatched(
    call: CollectiveCall, n_nodes: int, framework: FrameworkProfile, exchange_fraction: float
) -> CollectiveCall:
    """The exchange of experts' tokens as it crosses nodes, inside one node as it crosses ranks: k experts
    drawn among n of them meet n (1 - (1 - 1/n)^k). A rate of its own counts as fewer bytes at the rate of
    the library's all-to-all, `exchange_fraction` of what the links carry."""
    if call.copies < 2:
        return call
    share = 1.0
    if framework.dispatch == "per_node":
        places = n_nodes if n_nodes > 1 else call.n_ranks
        share = places * (1.0 - (1.0 - 1.0 / places) ** call.copies) / call.copies
    fewest = 2 if framework.dispatch == "per_node" else 1
    own = framework.dispatch_link_fraction if n_nodes > fewest else 0.0
    speed = own / exchange_fraction or 1.0
    return replace(call, size_bytes=round(call.size_bytes * share / speed))


def _kernels_s(call: CollectiveCall, framework: FrameworkProfile) -> float:
    """What the dispatch's own kernels take at the least for the rows of tokens that they move."""
    if framework.dispatch != "per_node" or call.copies < 2 or not framework.dispatch_bytes_per_s:
        return 0.0
    beside = framework.dispatch_row_bytes / call.row_bytes if call.row_bytes else 0.0
    return call.size_bytes * (1.0 + beside) / framework.dispatch_bytes_per_s


_CommTimes = dict[str, dict[str, float]]
"""Part -> breakdown name -> seconds."""


def _hide_experts(comm: _CommTimes, slowing: _CommTimes, device: Mapping[str, float]) -> None:
    """What the exchanges of one micro-batch take longer than another one's computation, forward beside
    backward (Megatron-Core, overlap_moe_expert_parallel_comm), and what they slow it."""
    exchanged = sum(parts.get("ep_comm", 0.0) for parts in comm.values())
    if exchanged:
        left = max(0.0, exchanged - sum(device.values())) / exchanged
        for part, parts in comm.items():
            slowed = slowing[part].get("ep_comm", 0.0) * (1.0 - left)
            parts["ep_comm"] = parts.get("ep_comm", 0.0) * left + slowed


def _hide_slices(comm: _CommTimes, slowing: _CommTimes, device: Mapping[str, float], n_ranks: int) -> None:
    """Take off the tensor-parallel collectives what runs beside the products: (n - 1) / n of each, at most as
    long as the part computes; what they slow the products stays."""
    for part, parts in comm.items():
        if seconds := parts.get("tp_comm", 0.0):
            hidden = min(seconds * (1.0 - 1.0 / n_ranks), device[part])
            parts["tp_comm"] = seconds - hidden + slowing[part]["tp_comm"] * hidden / seconds


def _comm_times(
    calls: Iterable[CollectiveCall],
    collective: CollectivePricer,
    link: Callable[[str], str],
    again: bool,
    error: dict[tuple[str, str], float],
    profile: HardwareProfile,
    framework: FrameworkProfile,
) -> tuple[_CommTimes, _CommTimes]:
    """(seconds of the collectives, what they slow computation if all of them run beside it)."""
    kept_from_others = min(framework.dispatch_multiprocessors / profile.device.multiprocessors, 1.0)
    comm: _CommTimes = {part: {} for part in PARTS}
    slowing: _CommTimes = {part: {} for part in PARTS}
    for call in calls:
        if call.overlapped:
            continue
        estimate = collective(call.op, float(call.size_bytes), call.axis)
        seconds = max(float(np.sum(estimate.median_s)), _kernels_s(call, framework))
        moved = bus_factor(call.op, call.n_ranks) * call.size_bytes
        share = float(share_taken(profile, np.array(moved), np.array(seconds)))
        if call.axis == "ep" and call.op == "all_to_all":
            share = max(share, kept_from_others)
        slowed = seconds * share
        forward = call.phase is Phase.FORWARD
        parts = ["forward" if forward else "backward_input"]
        if forward and again:
            parts.append("recompute")
        for part in parts:
            name = "tp_comm" if call.axis.startswith("mesh") else f"{call.axis}_comm"
            comm[part][name] = comm[part].get(name, 0.0) + seconds
            slowing[part][name] = slowing[part].get(name, 0.0) + slowed
            key = (f"collective {call.op}/{link(call.axis)}", part)
            error[key] = error.get(key, 0.0) + seconds * float(np.max(estimate.log_sigma))
    return comm, slowing
