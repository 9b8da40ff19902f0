"""What follows the backwards: waiting for gradients, the update on device or host, gathering parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from costmodel.stage_costs import StageCosts, UnitCosts
from costmodel.step.builder import ActionBuilder

__all__ = ["end_step", "update_stage"]


def update_stage(builder: ActionBuilder, rank: int, stage: StageCosts) -> None:
    """Without a flush: one stage's update as soon as its gradients are whole."""
    after = builder.take_open_data(rank)
    if stage.optimizer_s or after:
        parts = {"optimizer": stage.optimizer_s}
        builder.compute(rank, f"optimizer {stage.index}", "optimizer", parts, after)


def end_step(
    builder: ActionBuilder,
    stages_of: Sequence[Sequence[StageCosts]],
    offloaded: Mapping[int, Sequence[tuple[UnitCosts, int]]],
) -> None:
    """Tied embeddings, then every rank's update when its own gradients are reduced, then ZeRO's gather."""
    options = builder.options
    _tied_embeddings(builder, stages_of)
    if options.window or options.swaps:
        return  # updated on the way
    for rank, mine in enumerate(stages_of):
        data = builder.take_open_data(rank)
        copies = _host_update(builder, rank, offloaded.get(rank, ()))
        seconds = sum(stage.optimizer_s for stage in mine)
        if options.offload is not None and options.offload.host_update_bytes_per_s:
            seconds *= options.offload.device_fraction
        made = builder.compute(rank, "optimizer", "optimizer", {"optimizer": seconds}, data)
        if options.dp > 1 and (options.pulls or options.zero_stage in (1, 2)) and not options.gathers_late:
            gather = sum(u.gather_s for stage in mine for u in stage.units)
            name = "nccl:recv parameters" if options.pulls else "nccl:all_gather parameters"
            if gather:
                builder.data(rank, name, "gather", gather, [made, *copies])


def _tied_embeddings(builder: ActionBuilder, stages_of: Sequence[Sequence[StageCosts]]) -> None:
    """The first and the last stage add up the gradients of the embedding that they share; both wait for
    both. Nothing where they lie on one rank."""
    seconds = builder.options.tied_embedding_s
    ends = (0, len(builder.stages) - 1)
    ranks = [rank for rank, mine in enumerate(stages_of) if any(s.index in ends for s in mine)]
    if not seconds or len(ranks) < 2:
        return
    after = [builder.last_compute[rank] for rank in ranks]
    for rank in ranks:
        builder.data(rank, "nccl:all_reduce tied embedding", "reduce", seconds, after)


def _host_update(builder: ActionBuilder, rank: int, gradients: Sequence[tuple[UnitCosts, int]]) -> list[int]:
    """Update on the host and copies back, unit by unit in the order of the backward.

    Delayed by a step, the update needs nothing of this step. With storage, a unit's optimizer state is read
    before and written after its update.
    """
    offload = builder.options.offload
    if offload is None or not gradients:
        return []
    every = [copy for _, copy in gradients]
    back = []
    for unit, copy in gradients:
        share = (
            unit.parameter_bytes
            * unit.trained_fraction
            * (1.0 - offload.device_fraction)
            / (unit.shared_by or builder.options.shard)
        )
        after = [] if offload.delayed_update else ([copy] if offload.eager_update else every)
        state = share * offload.state_per_parameter_byte
        if offload.storage_bytes_per_s:
            name = f"read state {unit.name}"
            read = builder.copy(rank, "storage read", state, offload.storage_bytes_per_s, name, [])
            after = [*after, read]
        done = builder.host(rank, share / offload.host_update_bytes_per_s, f"update {unit.name}", after)
        if offload.storage_bytes_per_s:
            name = f"write state {unit.name}"
            builder.copy(rank, "storage write", state, offload.storage_bytes_per_s, name, [done])
        name = f"parameters in {unit.name}"
        back.append(builder.copy(rank, "h2d", share, offload.h2d_bytes_per_s, name, [done]))
    return back
