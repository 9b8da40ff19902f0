"""When memory is highest on each rank, and what holds it then.

A rank holds model state, and the activations of the micro-batches in flight. While one of its stages runs a
micro-batch, levels rise and fall with what operators allocate (`graph.liveness`): through the stage forward,
back again while gradients appear, then through the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from costmodel.graph.model_graph import Phase
from costmodel.predict.memory import (
    ModelState,
    UnitBuffers,
    communication_bytes,
    keeps_own_shares,
    model_state,
    sharded_by_unit,
)
from costmodel.predict.optimizer_costs import optimizer_variant, state_bytes_per_parameter, update_bytes
from costmodel.predict.prediction import StageMemory
from costmodel.predict.units import bucketed_elements, expert_elements, frozen_elements, held_elements
from costmodel.strategies.parameter_server import servers_of

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.graph.liveness import SegmentMemory
    from costmodel.plan import Plan
    from costmodel.predict.forecaster import Forecaster
    from costmodel.predict.units import Unit
    from costmodel.step import Offload, StepResult

__all__ = ["Peak", "memory_of_rank", "peak_of_stage", "rank_memory", "walk_stage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """A level while one micro-batch passes a stage: what holds it, bytes above model state."""

    activations: int
    gradients: int
    temporary: int
    unit: int = 0
    """Position of the unit that runs then."""
    phase: Phase = Phase.FORWARD

    @property
    def total(self) -> int:
        """Sum of the three."""
        return self.activations + self.gradients + self.temporary


def walk_stage(units: Sequence[SegmentMemory], *, gradients_appear: bool) -> list[Peak]:
    """The highest level inside each unit, forward and back again.

    `gradients_appear`: none are there before backward.
    """
    held = gradients = 0
    levels = []
    for number, unit in enumerate(units):
        levels.append(Peak(activations=held, gradients=0, temporary=unit.forward_bytes, unit=number))
        held += unit.saved_bytes
    for number, unit in reversed(list(enumerate(units))):
        above = unit.backward_bytes if gradients_appear else unit.accumulating_bytes
        levels.append(
            Peak(activations=held, gradients=gradients, temporary=above, unit=number, phase=Phase.BACKWARD)
        )
        held -= unit.saved_bytes
        gradients += unit.gradient_bytes if gradients_appear else 0
    return levels


def peak_of_stage(units: Sequence[SegmentMemory], *, gradients_appear: bool) -> Peak:
    """The highest of `walk_stage`'s levels."""
    nothing = Peak(activations=0, gradients=0, temporary=0)
    return max(walk_stage(units, gradients_appear=gradients_appear), key=lambda p: p.total, default=nothing)


def rank_memory(
    forecaster: Forecaster, plan: Plan, groups: Sequence[Sequence[Unit]], step: StepResult
) -> tuple[StageMemory, ...]:
    """Peak memory of each pipeline rank. `groups`: the units of each (virtual) stage."""
    return tuple(
        memory_of_rank(
            forecaster,
            plan,
            rank,
            [list(groups[stage]) for stage in mine],
            held_bytes=int(step.peak_activation_bytes[rank]),
            weight_versions=step.weight_versions[rank],
            offload=step.offload,
            resident_bytes=None if step.resident_state_bytes is None else step.resident_state_bytes[rank],
        )
        for rank, mine in enumerate(step.stages_of)
    )


def memory_of_rank(
    forecaster: Forecaster,
    plan: Plan,
    rank: int,
    stages: list[list[Unit]],
    *,
    held_bytes: int,
    weight_versions: int = 1,
    offload: Offload | None = None,
    resident_bytes: int | None = None,
) -> StageMemory:
    """Peak memory of a rank with these (virtual) stages.

    `held_bytes`: activations of the micro-batches in flight; `weight_versions`: versions of its weights;
    `offload`: what lies on the host; `resident_bytes`: model state at once where stages are swapped. Where
    the update works on flat tensors, blocks of activations and of single gradients are too small for those:
    the pool holds both.
    """
    framework, optimizer = forecaster.framework, forecaster.optimizer
    units = [unit for stage in stages for unit in stage]
    elements = held_elements(units)
    held = partial(
        model_state,
        sum(elements),
        framework=framework,
        optimizer_bytes=state_bytes_per_parameter(optimizer, framework),
        dp=plan.dp,
        dp_shard=plan.dp_shard,
        cp=plan.cp,
        n_expert_parameters=expert_elements(units),
        ep=plan.experts_over,
        n_frozen=frozen_elements(units),
        n_frozen_experts=expert_elements(units, frozen=True),
        n_bucketed=bucketed_elements(plan, units),
    )
    state = held(zero_stage=plan.zero_stage)
    updates = optimizer_variant(optimizer).updates
    # flat buffers, the reducer's buckets and gradients that nobody takes are there before backward
    stay = framework.gradients_persist or (plan.dp > 1 and framework.gradient_as_bucket_view) or not updates
    if offload is not None and not offload.host_update_bytes_per_s:
        offload = None
    appear = not stay and plan.num_microbatches == 1 and plan.zero_stage < 2 and offload is None
    if offload is not None:
        sizes = sorted(u.stored_elements for u in units)
        state = _on_device(state, offload, sum(sizes[-2:]), framework)
    if servers_of(plan) is not None:
        state = replace(state, optimizer=0)
    resting = _resting(state, appear, weight_versions)
    by_unit = sharded_by_unit(framework, plan.zero_stage, plan.dp) and offload is None
    whole = UnitBuffers(at_peak=0.0, in_backward=0.0)
    if by_unit:
        standing = _standing_gradients(plan, state, framework, sum(elements), held(zero_stage=3).parameters)
        resting = replace(resting, gradients=standing)
        whole = _whole_units(stages, framework, plan)
    peaks = [_beside(resting, stage, held_bytes, gradients_appear=appear) for stage in stages]
    passing = max((p.total for p in peaks), default=0)
    moments = [(peak, whole.at_peak) for peak in peaks]
    if by_unit:
        between = Peak(activations=held_bytes, gradients=resting.gradients, temporary=0)
        moments.append((between, whole.in_backward))
    update = _update_bytes(forecaster, elements, offload)
    shard = (plan.dp_shard or plan.dp) * plan.cp if plan.zero_stage else 1
    moments.append((Peak(activations=0, gradients=state.gradients, temporary=update // shard), 0.0))
    highest, beside = max(moments, key=lambda moment: moment[0].total + moment[1])
    # gradients that appear during backward take the place of activations and whole units: what is above all
    above = max(0, highest.total + round(beside) - state.gradients)
    buffers = min(round(beside), above)
    above -= buffers
    temporary = min(highest.temporary, above)
    swapped = resident_bytes is not None
    fragments = framework.fragment_bytes + framework.fragment_fraction * above
    if framework.update_fragment_bytes and updates:
        fragments += min(max(0, passing - state.gradients), update // shard)
        if plan.zero_stage < 3:  # whose gradients are flat from the start
            fragments += framework.update_fragment_bytes * sum(elements) / shard
    return StageMemory(
        stage=rank,
        parameters=resting.parameters if resident_bytes is None else resident_bytes,
        gradients=0 if swapped else state.gradients,
        optimizer=0 if swapped else resting.optimizer,
        activations=above - temporary,
        temporary=temporary + framework.workspace_bytes,
        communication=communication_bytes(
            sum(elements) + bucketed_elements(plan, units),
            largest_unit_parameters=max((u.stored_elements for u in units), default=0),
            largest_unit_gradients=max((sum(u.elements) for u in units), default=0),
            framework=framework,
            zero_stage=plan.zero_stage,
            dp=plan.dp,
            by_unit=by_unit,
        )
        + buffers,
        framework=framework.memory_overhead_bytes,
        fragments=round(fragments),
    )


def _update_bytes(forecaster: Forecaster, elements: Sequence[int], offload: Offload | None) -> int:
    """Temporaries of updating tensors of so many elements, before they are divided among replicas."""
    framework, optimizer = forecaster.framework, forecaster.optimizer
    update = update_bytes(elements, optimizer, looped=forecaster.profile.device.kind == "cpu")
    if framework.fused_optimizer:
        update = 0
    if optimizer_variant(optimizer).updates:
        update += round(sum(elements) * framework.update_copy_bytes)
    if offload is not None:  # what the host updates leaves no temporaries here
        update = round(update * offload.device_fraction)
    return update


def _whole_units(stages: Sequence[Sequence[Unit]], framework: FrameworkProfile, plan: Plan) -> UnitBuffers:
    loose, largest, pair, trained = 0, 0, 0, 0
    for stage in stages:
        blocks = [unit.stored_elements * unit.shard.local.is_block for unit in stage]
        gradients = [sum(unit.elements) * unit.shard.local.is_block for unit in stage]
        loose += sum(unit.stored_elements for unit in stage) - sum(blocks)
        largest = max(largest, *blocks)
        pair = max(pair, *(a + b for a, b in zip(blocks, [0, *blocks], strict=False)))
        trained = max(trained, *(a + b for a, b in zip(gradients, [0, *gradients], strict=False)))
    return UnitBuffers.of(
        loose_elements=loose,
        block_elements=largest,
        pair_elements=pair,
        pair_trained=trained,
        framework=framework,
        gathers=plan.zero_stage == 3,
    )


def _standing_gradients(
    plan: Plan, state: ModelState, framework: FrameworkProfile, n_trained: int, own_parameters: int
) -> int:
    """What is there in the place of gradients before the (last) backward, where units are sharded one by one.

    Under ZeRO-3 each micro-batch adds to the rank's share of gradients. Under ZeRO-2 gradients stay whole
    until the last one's are reduced, and the rank's own parameters are there (`keeps_own_shares`).
    """
    several = plan.num_microbatches > 1
    if plan.zero_stage == 3:
        return state.gradients if several else 0
    own = own_parameters if keeps_own_shares(framework) else 0
    return own + (round(n_trained * framework.gradient_bytes) if several else 0)


def _beside(resting: ModelState, stage: list[Unit], held_bytes: int, *, gradients_appear: bool) -> Peak:
    """Peak of a stage's forward and backward, beside the gradients at rest and what other stages hold."""
    memories = [unit.costs.memory for unit in stage]
    peak = peak_of_stage(memories, gradients_appear=gradients_appear)
    others = max(0, held_bytes - sum(m.saved_bytes for m in memories))
    return Peak(
        activations=others + peak.activations,
        gradients=resting.gradients + peak.gradients,
        temporary=peak.temporary,
    )


def _on_device(
    state: ModelState,
    offload: Offload,
    two_units: int,
    framework: FrameworkProfile,
) -> ModelState:
    """What stays on the device: the optimizer's state of the share it updates itself, gradients until they
    are copied out (those of two units), and parameters, where they stream in, of two units."""
    parameters = state.parameters
    if offload.stream_weights:
        parameters = min(parameters, round(two_units * framework.parameter_bytes))
    gradients = min(state.gradients, round(two_units * framework.gradient_bytes))
    gradients += round((state.gradients - gradients) * offload.device_fraction)
    optimizer = round(state.optimizer * offload.device_fraction)
    return ModelState(parameters=parameters, gradients=gradients, optimizer=optimizer)


def _resting(state: ModelState, gradients_appear: bool, versions: int) -> ModelState:
    """Model state between micro-batches; schedules without a flush keep several versions of the weights."""
    return ModelState(
        parameters=state.parameters * versions,
        gradients=0 if gradients_appear else state.gradients,
        optimizer=state.optimizer,
    )
