"""`simulate_step`: run the actions of one step and say where the time went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from costmodel.engine import Run, run
from costmodel.schedules import SCHEDULES, Order, Schedule
from costmodel.schedules import schedule as order_of
from costmodel.stage_costs import StageCosts
from costmodel.step.breakdown import breakdown
from costmodel.step.build import build_actions
from costmodel.step.options import Offload, Options
from costmodel.step.swapping import resident_bytes

__all__ = ["StepResult", "simulate_order", "simulate_step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One simulated step. `breakdown_s`: mean over ranks, adds up to the step."""

    timeline: Run
    """All actions; of a schedule without flush several windows, of which `window_s` is the step."""
    window_s: tuple[float, float]
    n_ranks: int
    step_time_s: float
    breakdown_s: Mapping[str, float]
    bubble_fraction: float
    """Share of the step in which a pipeline's ranks run no stage and no update: they wait, or the schedule
    itself is at work."""
    peak_activation_bytes: tuple[int, ...]
    """Per rank: the most activation bytes held between forwards and backwards."""
    busy_s: tuple[float, ...]
    """Per rank: time its compute stream is busy."""
    stages_of: tuple[tuple[int, ...], ...]
    """Per rank: indices of the stages that it holds, in forward order."""
    weight_versions: tuple[int, ...]
    """Per rank: versions of its weights held at once (1 but for schedules without flush)."""
    offload: Offload | None = None
    """What lay on the host."""
    resident_state_bytes: tuple[int, ...] | None = None
    """Per rank: most model state on the device at once, where stages are swapped; else None."""


def simulate_step(
    stages: Sequence[StageCosts],
    *,
    schedule: str = "1f1b",
    num_microbatches: int = 1,
    vpp: int = 1,
    zero_stage: int = 0,
    dp: int = 1,
    overlap_dp: bool = True,
    overlap_gather: bool = False,
    p2p_overlap: bool = False,
    receives_listed: bool = False,
    prefetch_forward: int = 1,
    prefetch_backward: int = 1,
    overlap_reduce: bool = True,
    compute_slowdown: float = 1.0,
    comm_slowdown: float = 1.0,
    action_s: float = 0.0,
    tied_embedding_s: float = 0.0,
    share_network: bool = False,
    pulls: bool = False,
    speed: Mapping[int, float] | None = None,
    offload: Offload | None = None,
) -> StepResult:
    """Simulate one step of `len(stages) / vpp` ranks under a named schedule.

    A schedule may decide overlap by itself (Hippie, AxoNN). One without a flush is simulated until it is in
    its steady state, and the step is the time between two updates of the first stage.

    Raises PlanError where the schedule cannot take the numbers, ValueError where the stages do not divide.
    """
    if len(stages) % vpp:
        raise ValueError(f"{len(stages)} stages do not divide into vpp={vpp} chunks per rank")
    n_ranks = len(stages) // vpp
    how = SCHEDULES[schedule]
    flushes = how.update_every == "step"
    warm = 0 if flushes else num_microbatches * math.ceil(2 * n_ranks / num_microbatches)
    order = order_of(schedule, n_ranks, vpp, 2 * warm + num_microbatches)
    options = Options(
        zero_stage=zero_stage,
        dp=dp,
        overlap_dp=overlap_dp if how.overlap_dp is None else how.overlap_dp,
        overlap_gather=overlap_gather,
        p2p_overlap=p2p_overlap if how.overlap_p2p is None else how.overlap_p2p,
        receives_listed=receives_listed and how.overlap_p2p is None,
        prefetch_forward=prefetch_forward,
        prefetch_backward=prefetch_backward,
        overlap_reduce=overlap_reduce,
        action_s=action_s,
        tied_embedding_s=tied_embedding_s,
        share_network=share_network,
        pulls=pulls,
        copies=how.copies,
        window=0 if flushes else (1 if how.update_every == "micro_batch" else num_microbatches),
        swaps=how.swaps,
        offload=offload,
    )
    return simulate_order(
        order,
        stages,
        options,
        how=how,
        window=None if flushes else (warm - 1, warm + num_microbatches - 1),
        compute_slowdown=compute_slowdown,
        comm_slowdown=comm_slowdown,
        speed=speed,
    )


def simulate_order(
    order: Order,
    stages: Sequence[StageCosts],
    options: Options,
    *,
    how: Schedule | None = None,
    window: tuple[int, int] | None = None,
    compute_slowdown: float = 1.0,
    comm_slowdown: float = 1.0,
    speed: Mapping[int, float] | None = None,
) -> StepResult:
    """Simulate any order of actions (one read from torch's CSV, say). The step is the whole run, or from the
    end of stage 0's backward of micro-batch window[0] to that of window[1]."""
    actions = build_actions(order, stages, options)
    timeline = run(actions, compute_slowdown=compute_slowdown, comm_slowdown=comm_slowdown, speed=speed)
    n_ranks = len(order)
    window_s = (0.0, timeline.makespan_s)
    if window is not None:
        window_s = (_backward_end(timeline, window[0]), _backward_end(timeline, window[1]))
    step_time_s = window_s[1] - window_s[0]
    parts, busy = breakdown(timeline, n_ranks, window_s)
    idle = 0.0
    if n_ranks > 1 and step_time_s:
        scheduling_s = options.action_s * sum(map(len, order)) / n_ranks * step_time_s / timeline.makespan_s
        idle = parts["bubble"] + parts["pp_comm"] + scheduling_s
    held = _stages_of(order)
    return StepResult(
        timeline=timeline,
        window_s=window_s,
        n_ranks=n_ranks,
        step_time_s=step_time_s,
        breakdown_s=parts,
        bubble_fraction=idle / step_time_s if step_time_s else 0.0,
        peak_activation_bytes=_peaks(timeline, stages, held, options.swaps),
        busy_s=busy,
        stages_of=held,
        weight_versions=tuple(
            max((how.weight_versions(s, n_ranks) for s in mine), default=1) if how else 1 for mine in held
        ),
        offload=options.offload,
        resident_state_bytes=(
            tuple(resident_bytes([stages[s] for s in mine]) for mine in held) if options.swaps else None
        ),
    )


def _backward_end(timeline: Run, micro_batch: int) -> float:
    """End of stage 0's backward of a micro-batch."""
    name = f"0B{micro_batch}"
    return max(
        end
        for action, end in zip(timeline.actions, timeline.end_s, strict=True)
        if action.kind == "B" and action.name.partition(" ")[0] == name
    )


def _stages_of(order: Order) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sorted({step.stage for step in steps})) for steps in order)


def _peaks(
    timeline: Run, stages: Sequence[StageCosts], held: Sequence[Sequence[int]], swaps: bool
) -> tuple[int, ...]:
    """Most activation bytes per rank. Swapped stages recompute: they hold one micro-batch of one stage."""
    if swaps:
        saved = [sum(u.saved_bytes for u in stage.units) for stage in stages]
        return tuple(max((saved[s] for s in mine), default=0) for mine in held)
    peaks = [0] * len(held)
    now = [0] * len(held)
    for action in timeline.actions:
        if action.holds_bytes:
            now[action.rank] += action.holds_bytes
            peaks[action.rank] = max(peaks[action.rank], now[action.rank])
    return tuple(peaks)
