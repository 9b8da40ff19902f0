"""From priced segments to the units of pipeline stages, with their data-parallel communication."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import TYPE_CHECKING

from costmodel.plan import Plan
from costmodel.predict.buckets import gradient_buckets
from costmodel.predict.optimizer_costs import optimizer_variant
from costmodel.predict.placement import axis_groups
from costmodel.predict.pricing import host_cost_s
from costmodel.recompute import Recompute
from costmodel.schedules import SCHEDULES
from costmodel.stage_costs import CostParts, UnitCosts
from costmodel.strategies.parameter_server import servers_of

if TYPE_CHECKING:
    from costmodel.predict.forecaster import Forecaster
    from costmodel.predict.segment_costs import SegmentCosts
    from costmodel.sharding import ShardedSegment

__all__ = [
    "Unit",
    "accumulate_s",
    "copy_s",
    "expand",
    "expert_elements",
    "frozen_elements",
    "held_elements",
    "tied_elements",
    "two_ways",
    "unit_costs",
    "update_ranks",
    "updated_elements",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One instance of a segment: an index into the sharded and priced segments, and its module path."""

    segment: int
    module: str
    shard: ShardedSegment
    costs: SegmentCosts

    @property
    def elements(self) -> tuple[int, ...]:
        """Elements of each trained parameter tensor on this rank, in registration order."""
        return tuple(prod(p.local_shape) for p in self.shard.parameters if not p.tied and not p.frozen)

    @property
    def stored_elements(self) -> int:
        """Elements of all its parameters on this rank, the frozen ones among them."""
        return sum(prod(p.local_shape) for p in self.shard.parameters if not p.tied)

    def held(self, *, experts: bool) -> tuple[list[int], int]:
        """(`elements`, `stored_elements`) of experts that expert parallelism divides, or of all others."""
        own = [p for p in self.shard.parameters if not p.tied and ("ep" in p.axis.split("+")) == experts]
        trained = [prod(p.local_shape) for p in own if not p.frozen]
        return trained, sum(prod(p.local_shape) for p in own)

    def seconds(self, utilisation: float) -> float:
        """Forward + backward + recomputation of one micro-batch."""
        forward, backward = two_ways(self.costs, utilisation, 0.0)
        return sum(cost.total_s for cost in (*forward.values(), *backward.values()))


def held_elements(units: Sequence[Unit]) -> list[int]:
    """Elements of each trained parameter tensor of a rank with these units: those that start there, and
    copies of parameters tied to another rank's (the head of a pipeline's last stage)."""
    return [*(n for unit in units for n in unit.elements), *_copies(units, frozen=False)]


def frozen_elements(units: Sequence[Unit]) -> int:
    """Elements of the frozen parameters that such a rank holds beside them: they have no gradients."""
    own = sum(unit.stored_elements - sum(unit.elements) for unit in units)
    return own + sum(_copies(units, frozen=True))


def _copies(units: Sequence[Unit], *, frozen: bool) -> list[int]:
    own = {p.name for unit in units for p in unit.shard.parameters if not p.tied}
    copies = {
        p.name: prod(p.local_shape)
        for unit in units
        for p in unit.shard.parameters
        if p.tied and p.name not in own and p.frozen == frozen
    }
    return list(copies.values())


def update_ranks(plan: Plan) -> int:
    """Ranks that share the update of parameters which all of them hold: data- and context-parallel ones."""
    return (plan.dp_shard or plan.dp) * plan.cp if plan.zero_stage else 1


def updated_elements(plan: Plan, units: Sequence[Unit]) -> list[int]:
    """Elements of each parameter tensor that one rank updates: its share of `held_elements` under ZeRO.

    1 / ep as many ranks share the update of experts, of which each holds others.
    """
    ranks = update_ranks(plan)
    experts = max(1, ranks // plan.ep)
    own = [p for unit in units for p in unit.shard.parameters if not p.tied and not p.frozen]
    shared = [experts if "ep" in p.axis.split("+") else ranks for p in own]
    held = held_elements(units)
    shared += [ranks] * (len(held) - len(own))
    return [max(1, ceil(n / among)) for n, among in zip(held, shared, strict=True)]


def expert_elements(units: Sequence[Unit], *, frozen: bool = False) -> int:
    """Elements of the experts among `held_elements` (or `frozen_elements`): each expert-parallel rank holds
    others."""
    return sum(
        prod(p.local_shape)
        for unit in units
        for p in unit.shard.parameters
        if not p.tied and p.frozen == frozen and "ep" in p.axis.split("+")
    )


def tied_elements(units: Sequence[Unit]) -> int:
    """Elements of the copies among `held_elements`."""
    return sum(held_elements(units)) - sum(n for unit in units for n in unit.elements)


def expand(forecaster: Forecaster, plan: Plan) -> list[Unit]:
    """Every instance of every segment, in forward order, under its own recomputation."""
    policy = Recompute.parse(plan.recompute)
    shards = forecaster.sharded(plan).segments
    priced: dict[str, tuple[SegmentCosts, ...]] = {}
    units: list[Unit] = []
    block = 0
    for number, segment in enumerate(shards):
        for instance in range(segment.count):
            recompute = policy.of_block(block)
            if recompute not in priced:
                priced[recompute] = forecaster.segments(plan.with_(recompute=recompute))
            block += segment.local.is_block
            modules = segment.local.modules
            module = modules[instance] if instance < len(modules) else segment.name
            costs = priced[recompute][number]
            units.append(Unit(segment=number, module=module, shard=segment, costs=costs))
    return units


def copy_s(forecaster: Forecaster, size_bytes: float) -> float:
    """Time to copy `size_bytes` of fp32 on the device (read once, written once)."""
    if size_bytes <= 0:
        return 0.0
    return forecaster.streamed_s("copy", size_bytes / 4.0, 2.0 * size_bytes)


def unit_costs(
    forecaster: Forecaster, plan: Plan, units: list[Unit], *, utilisation: float, waiting: float
) -> list[UnitCosts]:
    """Price the units of one stage under the plan's data-parallel strategy."""
    reduce_s, gather_s, copies_s = _data_parallel(forecaster, plan, units)
    sharded = plan.zero_stage == 3 and plan.dp > 1
    # measured over forward and backward together; each takes half
    fsdp_s = 0.5 * host_cost_s(forecaster.profile, "fsdp_unit_s") if sharded else 0.0
    updates = optimizer_variant(forecaster.optimizer).updates
    result = []
    for i, unit in enumerate(units):
        added_s = accumulate_s(forecaster, sum(unit.elements))
        forward, backward = two_ways(unit.costs, utilisation, waiting)
        extra = CostParts(parts_s={"host": fsdp_s}) if fsdp_s else CostParts()
        dp_work = CostParts(parts_s={"dp_comm": copies_s[i]}) if copies_s[i] else CostParts()
        if not updates:  # nobody takes the gradients: each backward adds to those of the step before
            dp_work += CostParts(parts_s={"compute": added_s})
        result.append(
            UnitCosts(
                name=unit.module,
                forward=forward["forward"] + forward["host"] + extra,
                backward_input=backward["recompute"] + backward["backward_input"] + backward["host"] + extra,
                backward_weight=backward["backward_weight"] + dp_work,
                parameter_bytes=round(unit.stored_elements * forecaster.framework.parameter_bytes),
                trained_fraction=_trained(unit),
                shared_by=_shared_by(plan, unit),
                split_s=_split_s(forecaster, unit),
                accumulate_s=added_s if updates and plan.num_microbatches > 1 else 0.0,
                gather_s=gather_s[i],
                reduce_s=reduce_s[i],
                saved_bytes=unit.costs.memory.saved_bytes,
            )
        )
    return result


def _shared_by(plan: Plan, unit: Unit) -> float:
    """Mean over a unit's parameters of the ranks that each is divided over under ZeRO; 0 without."""
    ranks = update_ranks(plan)
    (_, others), (_, experts) = (unit.held(experts=which) for which in (False, True))
    share = others / ranks + experts / max(1, ranks // plan.ep)
    return (others + experts) / share if plan.zero_stage and share else 0.0


def _trained(unit: Unit) -> float:
    return sum(unit.elements) / unit.stored_elements if unit.stored_elements else 1.0


def _split_s(forecaster: Forecaster, unit: Unit) -> float:
    """What taking the gradients of a unit's weights apart from those of its inputs costs."""
    per_parameter_s = host_cost_s(forecaster.profile, "split_parameter_s")
    per_byte_s = host_cost_s(forecaster.profile, "split_s_per_byte")
    return len(unit.elements) * per_parameter_s + unit.costs.deferred_bytes * per_byte_s


def two_ways(
    costs: SegmentCosts, utilisation: float, waiting: float
) -> tuple[dict[str, CostParts], dict[str, CostParts]]:
    """Parts of forward and of backward, each with the host time that shows (`host`)."""
    forward = {"forward": costs.parts("forward", utilisation, waiting)}
    backward = {
        part: costs.parts(part, utilisation, waiting)
        for part in ("recompute", "backward_input", "backward_weight")
    }
    return (
        {**forward, "host": costs.exposed_host(forward)},
        {**backward, "host": costs.exposed_host(backward)},
    )


def accumulate_s(forecaster: Forecaster, elements: int) -> float:
    """Time of adding one micro-batch's gradients to the accumulated ones: two reads and a write of each."""
    if not elements:
        return 0.0
    size = forecaster.framework.gradient_bytes * elements
    return forecaster.streamed_s("add", float(elements), 3.0 * size)


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


def _data_parallel(
    forecaster: Forecaster, plan: Plan, units: list[Unit]
) -> tuple[list[float], list[float], list[float]]:
    """Per unit: seconds of gradient reduction, of parameter gathering, and of copies on the device."""
    n = len(units)
    reduce_s, gather_s, copies_s = [0.0] * n, [0.0] * n, [0.0] * n
    pipelines = SCHEDULES[plan.schedule].copies
    if plan.dp * plan.cp * pipelines == 1:
        return reduce_s, gather_s, copies_s
    framework = forecaster.framework
    servers = servers_of(plan)

    def collective(op: str, size: float, axis: str) -> float:
        return float(forecaster.collective(plan, op, size, axis).median_s[0])

    if servers is not None:
        workers = plan.dp * plan.cp if servers.waits else 1
        for i, unit in enumerate(units):
            if parameters := sum(unit.elements):
                pushed = servers.link_bytes(parameters * framework.gradient_comm_bytes, workers)
                pulled = servers.link_bytes(parameters * framework.parameter_comm_bytes, workers)
                reduce_s[i] = collective("p2p", pushed, "server")
                gather_s[i] = collective("p2p", pulled, "server")
        return reduce_s, gather_s, copies_s
    for experts in (False, True):
        held = [unit.held(experts=experts) for unit in units]
        if not any(stored for _, stored in held):
            continue
        if experts and max(1, plan.dp * plan.cp // plan.ep) == 1 and pipelines == 1:
            continue  # no other rank has them
        added = (_gathered if plan.zero_stage == 3 else _reduced)(forecaster, plan, held, experts=experts)
        for totals, more in zip((reduce_s, gather_s, copies_s), added, strict=True):
            totals[:] = [a + b for a, b in zip(totals, more, strict=True)]
    return reduce_s, gather_s, copies_s


def _gathered(
    forecaster: Forecaster, plan: Plan, held: Sequence[tuple[list[int], int]], *, experts: bool
) -> tuple[list[float], list[float], list[float]]:
    """`_data_parallel` of parameters that are gathered unit by unit; `held`: as `Unit.held` says."""
    framework = forecaster.framework
    reduce_s, gather_s, copies_s = ([0.0] * len(held) for _ in range(3))
    prefix = "expert_" if experts else ""
    axis = prefix + ("dp_shard" if plan.dp_shard else "dp")
    among, divided = (plan.dp_shard or plan.dp) * plan.cp, plan.dp_shard
    if experts:
        among = divided = max(1, among // plan.ep)
    forecaster = _narrowed(forecaster, plan, axis)
    # measured over the two gathers and the reduction of a step; each takes a third
    per_byte_s = host_cost_s(forecaster.profile, "fsdp_copy_s_per_byte") / 3.0
    measured = "fsdp_copy_s_per_byte" in forecaster.profile.host

    def collective(op: str, size: float, axis: str) -> float:
        return float(forecaster.collective(plan, op, size, axis).median_s[0])

    for i, (elements, stored) in enumerate(held):
        gathered = stored * framework.parameter_comm_bytes
        if not gathered:
            continue
        reduced = sum(elements) * framework.gradient_comm_bytes
        if among > 1:
            copy_in_s = gathered * per_byte_s if measured else copy_s(forecaster, gathered)
            gather_s[i] = collective("all_gather", gathered, axis) + copy_in_s
            if reduced:
                reduce_s[i] = collective("reduce_scatter", reduced, axis)
                copies_s[i] = reduced * per_byte_s if measured else copy_s(forecaster, reduced)
        if reduced and plan.dp_shard and plan.dp_shard < plan.dp:
            reduce_s[i] += collective("all_reduce", reduced / divided, f"{prefix}dp_replicate")
    return reduce_s, gather_s, copies_s


def _reduced(
    forecaster: Forecaster, plan: Plan, held: Sequence[tuple[list[int], int]], *, experts: bool
) -> tuple[list[float], list[float], list[float]]:
    """`_data_parallel` of parameters that every rank has whole, reduced in buckets."""
    framework = forecaster.framework
    pipelines = SCHEDULES[plan.schedule].copies
    reduce_s, gather_s, copies_s = ([0.0] * len(held) for _ in range(3))

    def collective(op: str, size: float, axis: str) -> float:
        return float(forecaster.collective(plan, op, size, axis).median_s[0])

    parameters_by_unit = [
        (i, round(count * framework.gradient_comm_bytes))
        for i, (elements, _) in enumerate(held)
        for count in elements
    ]
    op = "all_reduce" if plan.zero_stage == 0 else "reduce_scatter"
    per_bucket_s = host_cost_s(forecaster.profile, "ddp_bucket_s")
    synchronous = forecaster.profile.device.kind == "cpu"
    ranks = max(1, plan.dp * plan.cp // plan.ep) if experts else plan.dp * plan.cp
    smallest = framework.bucket_bytes_per_rank * ranks
    sharded = plan.zero_stage and plan.dp_shard and pipelines == 1
    prefix = "expert_" if experts else ""
    shard = prefix + ("dp_shard" if sharded else "dp")
    among = max(1, plan.dp_shard * plan.cp // plan.ep) if experts else plan.dp_shard
    for bucket in gradient_buckets(
        parameters_by_unit,
        bucket_bytes=max(framework.bucket_bytes, smallest),
        first_bucket_bytes=max(framework.first_bucket_bytes, smallest),
    ):
        size = bucket.size_bytes
        if not sharded or among > 1:
            if plan.zero_stage:
                updated = size * framework.parameter_comm_bytes / framework.gradient_comm_bytes
                gather_s[bucket.ready_unit] += collective("all_gather", updated, shard)
            reduce_s[bucket.ready_unit] += collective(op, size, "copies" if pipelines > 1 else shard)
        if sharded and plan.dp_shard < plan.dp:
            reduce_s[bucket.ready_unit] += collective("all_reduce", size / among, f"{prefix}dp_replicate")
        # launching takes the rank's own thread: on a CPU its computation waits for it
        (copies_s if synchronous else reduce_s)[bucket.ready_unit] += per_bucket_s
    if not framework.gradient_as_bucket_view:
        for i, size in parameters_by_unit:
            copies_s[i] += 2.0 * copy_s(forecaster, size)
    return reduce_s, gather_s, copies_s
