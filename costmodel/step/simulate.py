"""`simulate_step`: run the actions of one step and say where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from costmodel.engine import Run, run
from costmodel.schedules import Order, schedule, stage_rank
from costmodel.stage_costs import BREAKDOWN_PARTS, StageCosts
from costmodel.step.build import Options, build_actions

__all__ = ["StepResult", "simulate_step"]

_WAIT_PART = {"reduce": "dp_comm", "gather": "dp_comm", "transfer": "pp_comm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One simulated step. `breakdown_s`: mean over ranks, adds up to the step."""

    timeline: Run
    n_ranks: int
    step_time_s: float
    breakdown_s: Mapping[str, float]
    bubble_fraction: float
    peak_activation_bytes: tuple[int, ...]
    """Per rank: the most activation bytes held between forwards and backwards."""
    busy_s: tuple[float, ...]
    """Per rank: time its compute stream is busy."""


def simulate_step(
    stages: Sequence[StageCosts],
    *,
    schedule: str = "1f1b",
    num_microbatches: int = 1,
    vpp: int = 1,
    zero_stage: int = 0,
    dp: int = 1,
    overlap_dp: bool = True,
    p2p_overlap: bool = False,
    prefetch_forward: int = 1,
    prefetch_backward: int = 1,
    overlap_reduce: bool = True,
    compute_slowdown: float = 1.0,
    comm_slowdown: float = 1.0,
    action_s: float = 0.0,
    tied_embedding_s: float = 0.0,
    speed: Mapping[int, float] | None = None,
) -> StepResult:
    """Simulate one step of `len(stages) / vpp` ranks.

    Raises PlanError where the schedule cannot take the numbers, ValueError where the stages do not divide.
    """
    if len(stages) % vpp:
        raise ValueError(f"{len(stages)} stages do not divide into vpp={vpp} chunks per rank")
    n_ranks = len(stages) // vpp
    order = _order(schedule, n_ranks, vpp, num_microbatches)
    rank_of = _ranks(order, len(stages), n_ranks)
    options = Options(
        zero_stage=zero_stage,
        dp=dp,
        overlap_dp=overlap_dp,
        p2p_overlap=p2p_overlap,
        prefetch_forward=prefetch_forward,
        prefetch_backward=prefetch_backward,
        overlap_reduce=overlap_reduce,
        action_s=action_s,
        tied_embedding_s=tied_embedding_s,
    )
    actions = build_actions(order, stages, rank_of, options)
    timeline = run(actions, compute_slowdown=compute_slowdown, comm_slowdown=comm_slowdown, speed=speed)
    step_time_s = timeline.makespan_s
    parts, busy = _breakdown(timeline, n_ranks, step_time_s)
    idle = (parts["bubble"] + parts["pp_comm"]) if n_ranks > 1 else 0.0
    return StepResult(
        timeline=timeline,
        n_ranks=n_ranks,
        step_time_s=step_time_s,
        breakdown_s=parts,
        bubble_fraction=idle / step_time_s if step_time_s else 0.0,
        peak_activation_bytes=_peaks(order, stages),
        busy_s=busy,
    )


def _order(name: str, n_ranks: int, vpp: int, num_microbatches: int) -> Order:
    return schedule(name, n_ranks, vpp, num_microbatches)


def _ranks(order: Order, n_stages: int, n_ranks: int) -> dict[int, int]:
    """Rank of each stage: where its forwards run."""
    found = {step.stage: rank for rank, steps in enumerate(order) for step in steps if step.kind == "F"}
    return {stage: found.get(stage, stage_rank(stage, n_ranks)) for stage in range(n_stages)}


def _breakdown(timeline: Run, n_ranks: int, makespan_s: float) -> tuple[dict[str, float], tuple[float, ...]]:
    """Per part the mean over ranks. A wait of the compute stream belongs to the dependency that ended last:
    the time that this dependency itself was running is its communication, the rest is bubble."""
    totals = dict.fromkeys(BREAKDOWN_PARTS, 0.0)
    busy = [0.0] * n_ranks
    free_at = [0.0] * n_ranks
    tail: list[tuple[float, float, str]] = [(0.0, 0.0, "bubble")] * n_ranks
    order = sorted(range(len(timeline.actions)), key=lambda i: (timeline.start_s[i], i))
    for i in order:
        action = timeline.actions[i]
        start, end = timeline.start_s[i], timeline.end_s[i]
        if action.stream != "compute":
            if end > tail[action.rank][1]:
                tail[action.rank] = (start, end, _WAIT_PART.get(action.kind, "bubble"))
            continue
        rank = action.rank
        _share_gap(timeline, i, free_at[rank], start, totals)
        stretch = (end - start) / action.duration_s if action.duration_s > 0 else 1.0
        for part, seconds in action.parts_s.items():
            totals[part] += seconds * stretch
        unsaid = (end - start) - sum(action.parts_s.values()) * stretch
        totals["compute"] += max(0.0, unsaid) if not action.parts_s else 0.0
        busy[rank] += end - start
        free_at[rank] = end
    for rank in range(n_ranks):
        rest = makespan_s - free_at[rank]
        start, end, part = tail[rank]
        own = min(rest, max(0.0, end - max(start, free_at[rank])))
        totals[part] += own
        totals["bubble"] += rest - own
    return {part: seconds / n_ranks for part, seconds in totals.items()}, tuple(busy)


def _share_gap(timeline: Run, i: int, gap_start: float, gap_end: float, totals: dict[str, float]) -> None:
    if gap_end <= gap_start:
        return
    gap = gap_end - gap_start
    blocker = max(timeline.actions[i].after, key=lambda j: timeline.end_s[j], default=None)
    if blocker is None:
        totals["bubble"] += gap
        return
    part = _WAIT_PART.get(timeline.actions[blocker].kind, "bubble")
    moving = max(0.0, timeline.end_s[blocker] - max(gap_start, timeline.start_s[blocker]))
    if part == "dp_comm":
        moving = gap  # queued behind other collectives of its own stream
    own = min(gap, moving)
    totals[part] += own
    totals["bubble"] += gap - own


def _peaks(order: Order, stages: Sequence[StageCosts]) -> tuple[int, ...]:
    """Most activation bytes of the micro-batches in flight, per rank; W of a split backward frees them."""
    peaks = []
    saved = [sum(u.saved_bytes for u in stage.units) for stage in stages]
    for steps in order:
        held = peak = 0
        split = {(s.stage, s.micro_batch) for s in steps if s.kind == "W"}
        for step in steps:
            if step.kind == "F":
                held += saved[step.stage]
                peak = max(peak, held)
            elif step.kind in ("B", "W") or (step.stage, step.micro_batch) not in split:
                held -= saved[step.stage]
        peaks.append(peak)
    return tuple(peaks)
