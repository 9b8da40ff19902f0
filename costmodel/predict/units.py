"""From priced segments to the units of pipeline stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING

from costmodel.plan import Plan
from costmodel.predict.data_parallel import exchanges
from costmodel.predict.optimizer_costs import optimizer_variant
from costmodel.predict.pricing import host_cost_s
from costmodel.recompute import Recompute
from costmodel.stage_costs import CostParts, UnitCosts

if TYPE_CHECKING:
    from costmodel.predict.forecaster import Forecaster
    from costmodel.predict.segment_costs import SegmentCosts
    from costmodel.sharding import LocalParameter, ShardedSegment

__all__ = [
    "Unit",
    "accumulate_s",
    "after_blocks",
    "bucketed_elements",
    "expand",
    "expert_elements",
    "frozen_elements",
    "held_elements",
    "output_bytes",
    "shares_of_rank",
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
    updates_unused: bool = False
    """`FrameworkProfile.updates_unused`."""

    def trains(self, parameter: LocalParameter) -> bool:
        """Whether a parameter has a gradient and an update."""
        return not parameter.frozen and (self.updates_unused or not parameter.unused)

    @property
    def elements(self) -> tuple[int, ...]:
        """Elements of each trained parameter tensor on this rank, in registration order."""
        return tuple(prod(p.local_shape) for p in self.shard.parameters if not p.tied and self.trains(p))

    @property
    def unused_elements(self) -> int:
        """Elements of the trained parameters beside them that no gradient reaches."""
        return sum(
            prod(p.local_shape)
            for p in self.shard.parameters
            if not p.tied and not p.frozen and not self.trains(p)
        )

    @property
    def stored_elements(self) -> int:
        """Elements of all its parameters on this rank, the frozen ones among them."""
        return sum(prod(p.local_shape) for p in self.shard.parameters if not p.tied)

    def held(self, *, experts: bool) -> tuple[list[int], int]:
        """(`elements`, `stored_elements`) of experts that expert parallelism divides, or of all others."""
        own = [p for p in self.shard.parameters if not p.tied and ("ep" in p.axis.split("+")) == experts]
        trained = [prod(p.local_shape) for p in own if self.trains(p)]
        return trained, sum(prod(p.local_shape) for p in own)

    def reduced(self, *, experts: bool, unused: bool) -> list[tuple[int, bool]]:
        """(elements, whether it has a gradient) of each parameter tensor that a reducer was told of, of
        experts or of all others; `unused`: those without one too, in whose place it reduces zeros."""
        return [
            (prod(q.local_shape), self.trains(q))
            for q in self.shard.parameters
            if not q.tied and not q.frozen and ("ep" in q.axis.split("+")) == experts
            if unused or self.trains(q)
        ]

    def seconds(self, utilisation: float) -> float:
        """Forward + backward + recomputation of one micro-batch."""
        forward, backward = two_ways(self.costs, utilisation, 0.0)
        return sum(cost.total_s for cost in (*forward.values(), *backward.values()))


def held_elements(units: Sequence[Unit]) -> list[int]:
    """Elements of each trained parameter tensor of a rank with these units: those that start there, and
    copies of parameters tied to another rank's (the head of a pipeline's last stage)."""
    return [*(n for unit in units for n in unit.elements), *_copies(units, frozen=False)]


def frozen_elements(units: Sequence[Unit]) -> int:
    """Elements of the parameters without gradients that such a rank holds beside them."""
    own = sum(unit.stored_elements - sum(unit.elements) for unit in units)
    return own + sum(_copies(units, frozen=True))


def _copies(units: Sequence[Unit], *, frozen: bool) -> list[int]:
    own = {p.name for unit in units for p in unit.shard.parameters if not p.tied}
    copies = {
        p.name: prod(p.local_shape)
        for unit in units
        for p in unit.shard.parameters
        if p.tied and p.name not in own and unit.trains(p) != frozen
    }
    return list(copies.values())


def update_ranks(plan: Plan) -> int:
    """Ranks that share the update of parameters which all of them hold: data- and context-parallel ones."""
    return (plan.dp_shard or plan.dp) * plan.cp if plan.zero_stage else 1


def shares_of_rank(plan: Plan, units: Sequence[Unit]) -> tuple[float, float]:
    """Elements that a rank with these units updates, and that it holds of its parameters, under ZeRO."""
    ranks = update_ranks(plan)
    among = max(1, ranks // plan.experts_over)
    trained, frozen = sum(held_elements(units)), frozen_elements(units)
    experts, frozen_experts = expert_elements(units), expert_elements(units, frozen=True)
    stored, stored_experts = trained + frozen, experts + frozen_experts
    held = (stored - stored_experts) / ranks + stored_experts / among
    return (trained - experts) / ranks + experts / among, held if plan.zero_stage == 3 else float(stored)


def updated_elements(plan: Plan, units: Sequence[Unit]) -> list[int]:
    """Elements of each parameter tensor that one rank updates: its share of `held_elements` under ZeRO.

    1 / ep as many ranks share the update of experts, of which each holds others.
    """
    ranks = update_ranks(plan)
    experts = max(1, ranks // plan.experts_over)
    own = [p for unit in units for p in unit.shard.parameters if not p.tied and unit.trains(p)]
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
        if not p.tied and unit.trains(p) != frozen and "ep" in p.axis.split("+")
    )


def bucketed_elements(plan: Plan, units: Sequence[Unit]) -> int:
    """Elements of parameters for which the reducer's buckets have room though no gradient comes: DDP, told of
    them (`find_unused_parameters`), reduces zeros; FSDP leaves them out."""
    return sum(unit.unused_elements for unit in units) if plan.zero_stage < 2 else 0


def tied_elements(units: Sequence[Unit]) -> int:
    """Elements of the copies among `held_elements`."""
    return sum(held_elements(units)) - sum(n for unit in units for n in unit.elements)


def expand(forecaster: Forecaster, plan: Plan) -> list[Unit]:
    """Every instance of every segment, in forward order, under its own recomputation."""
    policy = Recompute.parse(plan.recompute)
    shards = forecaster.sharded(plan).segments
    updates_unused = forecaster.framework.updates_unused
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
            units.append(
                Unit(segment=number, module=module, shard=segment, costs=costs, updates_unused=updates_unused)
            )
    return units


def unit_costs(
    forecaster: Forecaster, plan: Plan, units: list[Unit], *, utilisation: float, waiting: float
) -> list[UnitCosts]:
    """Price the units of one stage under the plan's data-parallel strategy."""
    exchanged = exchanges(forecaster, plan, units)
    sharded = plan.zero_stage == 3 and plan.dp > 1
    # measured over forward and backward together; each takes half
    fsdp_s = 0.5 * host_cost_s(forecaster.profile, "fsdp_unit_s") if sharded else 0.0
    updates = optimizer_variant(forecaster.optimizer).updates
    result = []
    for i, unit in enumerate(units):
        added_s = accumulate_s(forecaster, sum(unit.elements))
        forward, backward = two_ways(unit.costs, utilisation, waiting)
        extra = CostParts(parts_s={"host": fsdp_s}) if fsdp_s else CostParts()
        mine = exchanged[i]
        dp_work = CostParts(parts_s={"dp_comm": mine.copies_s}) if mine.copies_s else CostParts()
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
                gather_s=mine.gather_s,
                gather_takes=mine.gather_takes,
                reduce_s=mine.reduce_s,
                reduce_takes=mine.reduce_takes,
                saved_bytes=unit.costs.memory.saved_bytes,
            )
        )
    return result


def _shared_by(plan: Plan, unit: Unit) -> float:
    """Mean over a unit's parameters of the ranks that each is divided over under ZeRO; 0 without."""
    ranks = update_ranks(plan)
    (_, others), (_, experts) = (unit.held(experts=which) for which in (False, True))
    share = others / ranks + experts / max(1, ranks // plan.experts_over)
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


def output_bytes(unit: Unit) -> int:
    """What a block hands to the next: the result of its last operator that makes one."""
    segment = unit.shard.local
    tensors = {t.index: t for t in segment.tensors}
    for op in reversed(segment.operators):
        made = [tensors[t] for t in op.outputs if tensors[t].view_of is None]
        if made and op.kind != "host":
            return max(t.size_bytes for t in made)
    return 0


def after_blocks(units: Sequence[Unit]) -> int:
    """How many units follow the last repeated block; 0 where there are no blocks."""
    for count, unit in enumerate(reversed(units)):
        if unit.shard.local.is_block:
            return count
    return 0
