"""From a plan to its prediction: partition, stage costs, simulated step, memory, interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from costmodel.estimate import Z90, expected_max
from costmodel.hardware.device import product_flop_per_s
from costmodel.partition.balanced import balanced_partition, even_partition
from costmodel.plan import Plan
from costmodel.predict.emptied import waits_for_wiping_s
from costmodel.predict.memory import model_state
from costmodel.predict.notes import (
    dispatch_notes,
    host_notes,
    machine_notes,
    model_notes,
    offload_notes,
    recompute_notes,
    sample_notes,
)
from costmodel.predict.optimizer_costs import (
    optimizer_s,
    optimizer_variant,
    orthogonalisation_s,
    state_bytes_per_parameter,
    written_out_s,
)
from costmodel.predict.peak import rank_memory
from costmodel.predict.planned import planned_starts
from costmodel.predict.prediction import HardwareUsed, Prediction, StageMemory
from costmodel.predict.pricing import host_cost_s
from costmodel.predict.segment_costs import dtensor_modules
from costmodel.predict.uncertainty import StepErrors, step_errors
from costmodel.predict.units import (
    Unit,
    bucketed_elements,
    expand,
    expert_elements,
    frozen_elements,
    held_elements,
    tied_elements,
    unit_costs,
    update_ranks,
    updated_elements,
)
from costmodel.predict.without_rule import cost_notes, sharding_notes
from costmodel.schedules import SCHEDULES
from costmodel.stage_costs import BREAKDOWN_PARTS, StageCosts
from costmodel.step import StepResult, simulate_step
from costmodel.strategies.offload import is_split, offload_of, split_update
from costmodel.strategies.parameter_server import paced, served_s, servers_of
from costmodel.strategies.stages import plans_stages

if TYPE_CHECKING:
    from costmodel.predict.forecaster import Forecaster

__all__ = ["action_s", "assemble", "errors_of", "send_s", "simulate_plan", "stage_costs", "stage_starts"]

_CONTENTION_ROUNDS = 3
"""Utilisation and speed settle within two rounds (a contraction: each maps [0, 1] into itself)."""


def stage_starts(units: list[Unit], n_stages: int, stages: str = "balanced") -> tuple[int, ...]:
    """First unit of each stage: the contiguous cut with the least bottleneck, or with as many blocks each."""
    blocks = [i for i, unit in enumerate(units) if unit.shard.local.is_block]
    even = even_partition(blocks, n_stages, stages)
    return even or balanced_partition([unit.seconds(1.0) for unit in units], n_stages)


def _planned(forecaster: Forecaster, plan: Plan, units: list[Unit]) -> list[tuple[int, ...]]:
    """Cuts worth simulating where the plan asks for planned stages; the plain one is among them."""
    costs = unit_costs(forecaster, plan, units, utilisation=1.0, waiting=0.0)
    sends_s = [send_s(forecaster, plan, unit.shard.output_bytes) for unit in units[:-1]]
    found = planned_starts(forecaster, plan, units, costs=costs, sends_s=sends_s)
    return [*found, stage_starts(units, plan.pp, forecaster.framework.stages)]


def assemble(forecaster: Forecaster, plan: Plan) -> tuple[Prediction, StepResult]:
    """Predict one plan. Raises PlanError where the model or schedule cannot take it."""
    asked = plan
    if SCHEDULES[plan.schedule].swaps:  # packs are computed again from their inputs (VLDB 2022, section 4)
        plan = plan.with_(recompute="full")
    units = expand(forecaster, plan)
    if plans_stages(plan) and plan.pp > 1:
        found = [_cut(forecaster, asked, plan, units, s) for s in _planned(forecaster, plan, units)]
        return min(found, key=lambda pair: (not pair[0].fits, pair[0].step_time_s))
    starts = stage_starts(units, plan.pp * plan.vpp, forecaster.framework.stages)
    return _cut(forecaster, asked, plan, units, starts)


def _cut(
    forecaster: Forecaster, asked: Plan, plan: Plan, units: list[Unit], starts: tuple[int, ...]
) -> tuple[Prediction, StepResult]:
    """Predict one plan with its stages given."""
    profile = forecaster.profile
    ends = (*starts[1:], len(units))
    groups = [units[a:b] for a, b in zip(starts, ends, strict=True)]
    alone = plan.world_size == 1
    servers = servers_of(plan)
    utilisation = 0.0 if alone else 1.0
    for _ in range(1 if alone or plan.pp == 1 or not profile.contention_s_per_byte else _CONTENTION_ROUNDS):
        stages = [
            stage_costs(forecaster, plan, i, group, last=i == len(groups) - 1, utilisation=utilisation)
            for i, group in enumerate(groups)
        ]
        step = simulate_plan(forecaster, plan, stages, _tied_s(forecaster, plan, groups))
        if servers is not None and not servers.waits:
            step = paced(step, served_s(forecaster, plan, servers, stages))
        utilisation = 0.0 if alone else 1.0 - step.bubble_fraction
    step_overhead_s = host_cost_s(profile, "step_s") + forecaster.framework.step_overhead_s
    step_overhead_s += _waits_for_input_s(forecaster, plan, step.step_time_s + step_overhead_s)
    memory = rank_memory(forecaster, plan, groups, step)
    step_overhead_s += _waits_for_memory_s(forecaster, plan, stages, memory)
    step_time_s = step.step_time_s + step_overhead_s
    breakdown = {part: step.breakdown_s.get(part, 0.0) for part in BREAKDOWN_PARTS}
    breakdown["host"] += step_overhead_s
    errors = errors_of(forecaster, plan, groups, breakdown, step_time_s, step_overhead_s, asked=asked)
    sigma = errors.log_sigma(step_time_s)
    samples_per_s = plan.global_batch_size / step_time_s
    model_flop_per_s = forecaster.model_flop(plan.micro_batch_size) * samples_per_s
    fused_again_flop_per_s = forecaster.fused_again_flop(plan.micro_batch_size) * samples_per_s
    peak = _peak_flop_per_s(forecaster, plan.micro_batch_size) * plan.world_size
    again = breakdown["recompute"] / breakdown["compute"] if breakdown["compute"] else 0.0
    graph = forecaster.graph(plan.micro_batch_size)
    micro_batch_s = breakdown["compute"] * plan.pp / plan.num_microbatches
    unmodelled, unruled = forecaster.without_rule(plan)
    per_node = 1 if profile.network is None else profile.network.ranks_per_node
    parameter_bytes = forecaster.framework.parameter_bytes
    of_ranks = [[unit for stage in mine for unit in groups[stage]] for mine in step.stages_of]
    too_much = host_notes(plan, step.offload, of_ranks, parameter_bytes, forecaster.host, per_node)
    prediction = Prediction(
        model=forecaster.source.name,
        plan=asked,
        step_time_s=step_time_s,
        step_time_low_s=step_time_s * math.exp(-Z90 * sigma),
        step_time_high_s=step_time_s * math.exp(Z90 * sigma),
        breakdown_s=breakdown,
        bubble_fraction=step.bubble_fraction,
        memory=memory,
        device_memory_bytes=int(profile.device.memory_bytes),
        samples_per_s=samples_per_s,
        tokens_per_s=samples_per_s * graph.seq_len if graph.seq_len else None,
        mfu=model_flop_per_s / peak if peak else None,
        hfu=(model_flop_per_s + fused_again_flop_per_s) * (1.0 + again) / peak if peak else None,
        unmodelled_fraction=graph.unmodelled_fraction,
        hardware=HardwareUsed(
            name=profile.name,
            source=profile.source,
            age_days=_age_days(profile.created),
            n_devices=plan.world_size,
        ),
        warnings=(
            *too_much,
            *offload_notes(plan, step.offload),
            *graph.notes,
            *forecaster.sharded(plan).notes,
            *cost_notes(unmodelled),
            *sharding_notes(unruled, plan.tp),
            *machine_notes(profile, forecaster.framework),
            *model_notes(forecaster.source, graph.seq_len),
            *sample_notes(graph, plan),
            *dispatch_notes(profile, forecaster.framework, units, micro_batch_s),
            *recompute_notes(plan.recompute, graph.segments),
        ),
        unmodelled_operators=unmodelled,
        unruled_operators=unruled,
        stage_modules=tuple(tuple(u.module for u in group) for group in groups),
        host_fits=not too_much,
        errors=errors,
    )
    return prediction, step


def _waits_for_input_s(forecaster: Forecaster, plan: Plan, step_s: float) -> float:
    """What a step of `step_s` waits for a rank's samples, which are made ready beside it."""
    rate = forecaster.framework.input_samples_per_s
    return max(0.0, plan.global_batch_size / plan.dp / rate - step_s) if rate else 0.0


def _waits_for_memory_s(
    forecaster: Forecaster, plan: Plan, stages: Sequence[StageCosts], memory: Sequence[StageMemory]
) -> float:
    """What a step's one forward waits for memory that the driver wipes first (none in a pipeline)."""
    if plan.pp > 1 or plan.num_microbatches > 1:
        return 0.0
    units, rank = stages[0].units, memory[0]
    lasting = rank.parameters + rank.gradients + rank.optimizer + rank.framework
    given_back = sum(unit.saved_bytes for unit in units)
    left = forecaster.profile.device.memory_bytes - lasting - given_back
    return waits_for_wiping_s(units, left, forecaster.framework.wiped_bytes_per_s)


def stage_costs(
    forecaster: Forecaster,
    plan: Plan,
    index: int,
    units: list[Unit],
    *,
    last: bool,
    utilisation: float,
) -> StageCosts:
    """The priced stage of these units. `utilisation`: how busy neighbours on the same memory are."""
    waiting = forecaster.profile.rank_log_sigma * expected_max(plan.world_size)
    costs = unit_costs(forecaster, plan, units, utilisation=utilisation, waiting=waiting)
    send_bytes = 0 if last else units[-1].shard.output_bytes
    if send_bytes and forecaster.framework.keeps_stage_outputs:
        costs[-1] = replace(costs[-1], saved_bytes=costs[-1].saved_bytes + send_bytes)
    mine = updated_elements(plan, units)
    update_s, _ = optimizer_s(
        mine,
        forecaster.optimizer,
        forecaster.profile,
        fused=forecaster.framework.fused_optimizer,
        n_dtensors=_n_dtensors(plan, units),
        utilisation=utilisation,
    )
    if forecaster.framework.update_kernels and optimizer_variant(forecaster.optimizer).updates:
        update_s = written_out_s(mine, forecaster.profile, forecaster.framework)
    shapes = [p.local_shape for u in units for p in u.shard.parameters if not p.tied and u.trains(p)]
    update_s += orthogonalisation_s(shapes, forecaster.optimizer, forecaster.profile) / update_ranks(plan)
    if (servers := servers_of(plan)) is not None:
        update_s /= servers.count
    state = _state(forecaster, plan, units)
    return StageCosts(
        index=index,
        units=tuple(costs),
        send_bytes=send_bytes,
        send_s=send_s(forecaster, plan, send_bytes) if send_bytes and plan.pp > 1 else 0.0,
        optimizer_s=update_s * (1.0 + waiting),
        state_bytes=state,
    )


def send_s(forecaster: Forecaster, plan: Plan, size_bytes: float) -> float:
    """Time to hand one micro-batch's activations (or their gradient) to the next stage."""
    slices = plan.tp if forecaster.framework.scatter_p2p and not plan.sequence_parallel else 1
    seconds = float(forecaster.collective(plan, "p2p", size_bytes / slices, "pp").median_s[0])
    if slices > 1:
        seconds += float(forecaster.collective(plan, "all_gather", float(size_bytes), "tp").median_s[0])
    return seconds


def _n_dtensors(plan: Plan, units: list[Unit]) -> int:
    """Parameters that are DTensors in a real run: all under FSDP, else those of split layers."""
    if plan.zero_stage == 3 and plan.dp > 1:
        return sum(len(unit.elements) for unit in units)
    split = {unit.segment: dtensor_modules(unit.shard) for unit in units}
    return sum(
        p.is_sharded and unit.trains(p) and p.name.rpartition(".")[0] in split[unit.segment]
        for unit in units
        for p in unit.shard.parameters
    )


def _state(forecaster: Forecaster, plan: Plan, units: list[Unit]) -> int:
    return model_state(
        sum(held_elements(units)),
        framework=forecaster.framework,
        optimizer_bytes=state_bytes_per_parameter(forecaster.optimizer, forecaster.framework),
        zero_stage=plan.zero_stage,
        dp=plan.dp,
        dp_shard=plan.dp_shard,
        cp=plan.cp,
        n_expert_parameters=expert_elements(units),
        ep=plan.experts_over,
        n_frozen=frozen_elements(units),
        n_frozen_experts=expert_elements(units, frozen=True),
        n_bucketed=bucketed_elements(plan, units),
    ).total


def _tied_s(forecaster: Forecaster, plan: Plan, groups: list[list[Unit]]) -> float:
    """Time in which the last stage and the first add up the gradients of parameters that both hold: each
    sends the other half of them and gets half of the sums."""
    tied = tied_elements(groups[-1])
    if plan.pp == 1 or not tied:
        return 0.0
    size = tied * forecaster.framework.gradient_comm_bytes
    return float(forecaster.collective(plan, "p2p", size, "pp").median_s[0])


def action_s(forecaster: Forecaster, schedule: str, vpp: int) -> float:
    """Host time of the schedule itself for each forward and backward, its transfers' included."""
    listed = forecaster.framework.lists_receives(schedule, vpp)
    measured = "pipeline_listed_action_s" in forecaster.profile.host
    return host_cost_s(
        forecaster.profile, "pipeline_listed_action_s" if listed and measured else "pipeline_action_s"
    )


def simulate_plan(
    forecaster: Forecaster, plan: Plan, stages: list[StageCosts], tied_embedding_s: float
) -> StepResult:
    """The engine's step of priced stages under the plan's schedule, degrees and strategies."""
    overlap = forecaster.profile.overlap
    simulate = partial(
        simulate_step,
        stages,
        schedule=plan.schedule,
        num_microbatches=plan.num_microbatches,
        vpp=plan.vpp,
        zero_stage=plan.zero_stage,
        dp=plan.dp * plan.cp,
        overlap_dp=forecaster.framework.overlap_dp,
        overlap_gather=forecaster.framework.overlap_gather,
        p2p_overlap=forecaster.framework.overlaps_p2p(plan.schedule, plan.vpp),
        receives_listed=forecaster.framework.lists_receives(plan.schedule, plan.vpp),
        # a CPU issues each collective itself: FSDP2 waits for a forward gather and for each reduction
        prefetch_forward=0 if forecaster.profile.device.kind == "cpu" else 1,
        overlap_reduce=plan.zero_stage != 3
        or (forecaster.framework.overlap_reduce and forecaster.profile.device.kind != "cpu"),
        compute_slowdown=overlap.compute_slowdown,
        comm_slowdown=overlap.comm_slowdown,
        tied_embedding_s=tied_embedding_s,
        share_network=forecaster.framework.share_network,
        action_s=action_s(forecaster, plan.schedule, plan.vpp) if plan.pp > 1 else 0.0,
        pulls=servers_of(plan) is not None,
        speed={plan.pp - 1: forecaster.straggler} if forecaster.straggler < 1.0 else None,
    )
    offload = offload_of(plan, forecaster.profile, forecaster.host, forecaster.framework)
    if offload is None or not is_split(plan):
        return simulate(offload=offload)
    return split_update(lambda share: simulate(offload=replace(offload, device_fraction=share)))


def errors_of(
    forecaster: Forecaster,
    plan: Plan,
    groups: list[list[Unit]],
    breakdown_s: Mapping[str, float],
    step_time_s: float,
    overhead_s: float,
    *,
    asked: Plan | None = None,
) -> StepErrors:
    """What a step with these stages errs with; `overhead_s`: host time outside its units. `asked`: the plan
    before its schedule changed it."""
    units = [unit for group in groups for unit in group]
    return step_errors(
        units,
        breakdown_s,
        step_time_s,
        plan=asked or plan,
        transfers=_transfers(forecaster, plan, units),
        update=_update(forecaster, groups),
        overhead_s=overhead_s,
        framework=forecaster.framework,
        learnt=forecaster.profile.learnt,
    )


def _transfers(forecaster: Forecaster, plan: Plan, units: list[Unit]) -> dict[str, tuple[str, float]]:
    """Part of the breakdown -> what the transfers in it err with, and the spread of the largest of them."""
    found: dict[str, tuple[str, float]] = {}
    if plan.dp * plan.cp > 1:
        size = max(sum(unit.elements) for unit in units) * forecaster.framework.gradient_comm_bytes
        op, axis = _gradient_collective(plan)
        sigma = float(forecaster.collective(plan, op, size, axis).log_sigma[0])
        found["dp_comm"] = f"collective {op}/{forecaster.link_name(plan, axis)}", sigma
    if plan.pp > 1:
        size = float(max(unit.shard.output_bytes for unit in units))
        sigma = float(forecaster.collective(plan, "p2p", size, "pp").log_sigma[0])
        found["pp_comm"] = f"collective p2p/{forecaster.link_name(plan, 'pp')}", sigma
    return found


def _gradient_collective(plan: Plan) -> tuple[str, str]:
    """The collective that gradients take most of their time in, and its axis."""
    if servers_of(plan) is not None:
        return "p2p", "server"
    if plan.zero_stage == 3:
        return "reduce_scatter", "dp_shard" if plan.dp_shard else "dp"
    return "all_reduce" if plan.zero_stage == 0 else "reduce_scatter", "dp"


def _update(forecaster: Forecaster, groups: list[list[Unit]]) -> tuple[str, float]:
    """What the optimizer's time errs with, and its spread."""
    elements = max((held_elements(group) for group in groups), key=sum)
    fused = forecaster.framework.fused_optimizer
    _, sigma = optimizer_s(elements, forecaster.optimizer, forecaster.profile, fused=fused)
    return f"fit optimizer/{optimizer_variant(forecaster.optimizer).variant}/fp32", sigma


def _peak_flop_per_s(forecaster: Forecaster, micro_batch_size: int) -> float:
    """Peak rate of products in the type computed in; convolutions at that of theirs."""
    device, framework = forecaster.profile.device, forecaster.framework
    found = product_flop_per_s(device, framework.compute_dtype)
    own = device.peak_flop_per_s.get(framework.fp32_convolutions, 0.0)
    flop = forecaster.model_flop(micro_batch_size)
    if framework.compute_dtype != "fp32" or not (own and flop and found):
        return found
    share = forecaster.convolution_flop(micro_batch_size) / flop
    return 1.0 / ((1.0 - share) / found + share / own)


def _age_days(created: str) -> float | None:
    try:
        then = datetime.fromisoformat(created)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, (datetime.now(UTC) - then).total_seconds() / 86400)
