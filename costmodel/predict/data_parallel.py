"""What each unit exchanges with the other replicas: reductions of gradients, gathers of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from costmodel.hardware.collectives import bus_factor
from costmodel.hardware.overlap import share_taken
from costmodel.plan import Plan
from costmodel.predict.buckets import gradient_buckets
from costmodel.predict.placement import axis_groups
from costmodel.predict.pricing import host_cost_s
from costmodel.schedules import SCHEDULES
from costmodel.strategies.parameter_server import servers_of

if TYPE_CHECKING:
    from costmodel.predict.forecaster import Forecaster
    from costmodel.predict.units import Unit

__all__ = ["Exchange", "copy_s", "exchanges"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What one unit exchanges in a step; seconds, and shares of the device (see `share_taken`)."""

    reduce_s: float
    reduce_takes: float
    gather_s: float
    gather_takes: float
    copies_s: float
    """Copies on the device that belong to them, on its compute stream."""


@dataclass(slots=True)
class _Sum:
    """Collectives of one unit so far."""

    seconds: float = 0.0
    moved_bytes: float = 0.0


@dataclass(slots=True)
class _Unit:
    reduced: _Sum = field(default_factory=_Sum)
    gathered: _Sum = field(default_factory=_Sum)
    copies_s: float = 0.0


def exchanges(forecaster: Forecaster, plan: Plan, units: Sequence[Unit]) -> list[Exchange]:
    """The exchanges of every unit of a stage under the plan's data-parallel strategy.

    Experts that expert parallelism divides go between the ranks that have the same ones.
    """
    found = [_Unit() for _ in units]
    pipelines = SCHEDULES[plan.schedule].copies
    if plan.dp * plan.cp * pipelines > 1:
        if servers_of(plan) is not None:
            _served(forecaster, plan, units, found)
        else:
            exchange = _sharded if plan.zero_stage == 3 else _in_buckets
            for experts in (False, True):
                alone = experts and pipelines == 1 and max(1, plan.dp * plan.cp // plan.experts_over) == 1
                if not alone and any(stored for _, stored in (u.held(experts=experts) for u in units)):
                    exchange(forecaster, plan, units, found, experts=experts)

    def share(exchanged: _Sum) -> float:
        moved, seconds = np.array([exchanged.moved_bytes]), np.array([exchanged.seconds])
        return float(share_taken(forecaster.profile, moved, seconds)[0])

    return [
        Exchange(
            reduce_s=one.reduced.seconds,
            reduce_takes=share(one.reduced),
            gather_s=one.gathered.seconds,
            gather_takes=share(one.gathered),
            copies_s=one.copies_s,
        )
        for one in found
    ]


def copy_s(forecaster: Forecaster, size_bytes: float) -> float:
    """Time to copy `size_bytes` of fp32 on the device (read once, written once)."""
    if size_bytes <= 0:
        return 0.0
    return forecaster.streamed_s("copy", size_bytes / 4.0, 2.0 * size_bytes)


def _add(forecaster: Forecaster, plan: Plan, to: _Sum, op: str, size_bytes: float, axis: str) -> None:
    to.seconds += float(forecaster.collective(plan, op, size_bytes, axis).median_s[0])
    to.moved_bytes += bus_factor(op, forecaster.group(plan, axis).n_ranks) * size_bytes


def _served(forecaster: Forecaster, plan: Plan, units: Sequence[Unit], found: Sequence[_Unit]) -> None:
    """Gradients pushed to parameter servers, parameters pulled from them."""
    servers, framework = servers_of(plan), forecaster.framework
    assert servers is not None
    workers = plan.dp * plan.cp if servers.waits else 1
    for unit, mine in zip(units, found, strict=True):
        if parameters := sum(unit.elements):
            pushed = servers.link_bytes(parameters * framework.gradient_comm_bytes, workers)
            pulled = servers.link_bytes(parameters * framework.parameter_comm_bytes, workers)
            _add(forecaster, plan, mine.reduced, "p2p", pushed, "server")
            _add(forecaster, plan, mine.gathered, "p2p", pulled, "server")


def _sharded(
    forecaster: Forecaster,
    plan: Plan,
    units: Sequence[Unit],
    found: Sequence[_Unit],
    *,
    experts: bool,
) -> None:
    """ZeRO-3: units' parameters gathered, gradients reduced and scattered."""
    prefix = "expert_" if experts else ""
    axis = prefix + ("dp_shard" if plan.dp_shard else "dp")
    among, divided = (plan.dp_shard or plan.dp) * plan.cp, plan.dp_shard
    if experts:
        among = divided = max(1, among // plan.experts_over)
    forecaster, framework = _narrowed(forecaster, plan, axis), forecaster.framework
    # measured over the two gathers and the reduction of a step; each takes a third
    per_byte_s = host_cost_s(forecaster.profile, "fsdp_copy_s_per_byte") / 3.0
    measured = "fsdp_copy_s_per_byte" in forecaster.profile.host
    for unit, mine in zip(units, found, strict=True):
        elements, stored = unit.held(experts=experts)
        gathered = stored * framework.parameter_comm_bytes
        if not gathered:
            continue
        reduced = sum(elements) * framework.gradient_comm_bytes
        if among > 1:
            _add(forecaster, plan, mine.gathered, "all_gather", gathered, axis)
            mine.gathered.seconds += gathered * per_byte_s if measured else copy_s(forecaster, gathered)
            if reduced:
                _add(forecaster, plan, mine.reduced, "reduce_scatter", reduced, axis)
                mine.copies_s += reduced * per_byte_s if measured else copy_s(forecaster, reduced)
        if reduced and plan.dp_shard and plan.dp_shard < plan.dp:
            _add(forecaster, plan, mine.reduced, "all_reduce", reduced / divided, f"{prefix}dp_replicate")


def _in_buckets(
    forecaster: Forecaster,
    plan: Plan,
    units: Sequence[Unit],
    found: Sequence[_Unit],
    *,
    experts: bool,
) -> None:
    """Gradients reduced in buckets; under ZeRO-1 and 2 what each rank updated is gathered."""
    framework, pipelines = forecaster.framework, SCHEDULES[plan.schedule].copies
    told = plan.zero_stage < 2  # DDP's reducer, of all that is trained; what has no gradient is ready at once
    reduced = [
        (i if has_gradient else len(units) - 1, round(count * framework.gradient_comm_bytes), has_gradient)
        for i, unit in enumerate(units)
        for count, has_gradient in unit.reduced(experts=experts, unused=told)
    ]
    op = "all_reduce" if plan.zero_stage == 0 else "reduce_scatter"
    per_bucket_s = host_cost_s(forecaster.profile, "ddp_bucket_s")
    synchronous = forecaster.profile.device.kind == "cpu"
    ranks = max(1, plan.dp * plan.cp // plan.experts_over) if experts else plan.dp * plan.cp
    smallest = framework.bucket_bytes_per_rank * ranks
    sharded = plan.zero_stage and plan.dp_shard and pipelines == 1
    prefix = "expert_" if experts else ""
    shard = prefix + ("dp_shard" if sharded else "dp")
    among = max(1, plan.dp_shard * plan.cp // plan.experts_over) if experts else plan.dp_shard
    for bucket in gradient_buckets(
        [(i, size) for i, size, _ in reduced],
        bucket_bytes=max(framework.bucket_bytes, smallest),
        first_bucket_bytes=max(framework.first_bucket_bytes, smallest),
    ):
        mine, size = found[bucket.ready_unit], bucket.size_bytes
        if not sharded or among > 1:
            if plan.zero_stage:
                updated = size * framework.parameter_comm_bytes / framework.gradient_comm_bytes
                _add(forecaster, plan, mine.gathered, "all_gather", updated, shard)
            _add(forecaster, plan, mine.reduced, op, size, "copies" if pipelines > 1 else shard)
        if sharded and plan.dp_shard < plan.dp:
            _add(forecaster, plan, mine.reduced, "all_reduce", size / among, f"{prefix}dp_replicate")
        # launching takes the rank's own thread: on a CPU its computation waits for it
        if synchronous:
            mine.copies_s += per_bucket_s
        else:
            mine.reduced.seconds += per_bucket_s
    if not framework.gradient_as_bucket_view:
        for i, size, has_gradient in reduced:
            if has_gradient:
                found[i].copies_s += 2.0 * copy_s(forecaster, size)


def _narrowed(forecaster: Forecaster, plan: Plan, axis: str) -> Forecaster:
    """The forecaster with the axis' group on as many of a node's interfaces as the framework keeps busy."""
    network, interfaces = forecaster.profile.network, forecaster.framework.shard_interfaces
    if network is None or not interfaces:
        return forecaster
    group = axis_groups(plan, network.ranks_per_node)[axis]
    inter = network.links(forecaster.network_variant)[1]
    if group.n_nodes == 1 or inter is None:
        return forecaster
    sharing = max(group.nic_sharing, inter.nics_per_node // interfaces)
    return forecaster.placed({axis: replace(group, nic_sharing=sharing)})
