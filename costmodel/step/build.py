"""Stages and a schedule to engine actions: compute, transfers, data-parallel collectives, optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from costmodel.engine import Action
from costmodel.schedules import Order, Step
from costmodel.stage_costs import CostParts, StageCosts, UnitCosts

__all__ = ["Options", "build_actions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the step communicates. `dp`: size of the data-parallel group (1: no data-parallel actions)."""

    zero_stage: int = 0
    dp: int = 1
    overlap_dp: bool = True
    p2p_overlap: bool = False
    prefetch_forward: int = 1
    prefetch_backward: int = 1
    """Units whose parameters are gathered ahead of the one that computes (ZeRO-3)."""
    overlap_reduce: bool = True
    """Whether a unit's gradient reduction runs beside the next unit's backward."""
    action_s: float = 0.0
    """Host time of each pipeline action beyond its operators."""
    tied_embedding_s: float = 0.0
    """All-reduce of tied first- and last-stage embeddings before the optimizer."""


@dataclass(slots=True)
class _Builder:
    stages: Sequence[StageCosts]
    rank_of: Mapping[int, int]
    options: Options
    actions: list[Action] = field(default_factory=list)
    done: dict[Step, int] = field(default_factory=dict)
    """Last compute action of each finished step."""
    sent: dict[Step, int] = field(default_factory=dict)
    """Transfer of each step's result."""
    last_compute: dict[int, int] = field(default_factory=dict)

    def add(self, action: Action) -> int:
        self.actions.append(action)
        return len(self.actions) - 1

    def compute(self, rank: int, name: str, kind: str, cost: CostParts, after: Sequence[int]) -> int:
        index = self.add(
            Action(rank, "compute", cost.total_s, name, tuple(dict.fromkeys(after)), kind, cost.parts_s)
        )
        self.last_compute[rank] = index
        return index

    def data(self, rank: int, name: str, kind: str, duration_s: float, after: Sequence[int]) -> int:
        """A data-parallel collective; gathers and reductions have a stream each, as FSDP2 gives them."""
        overlaps = self.options.overlap_dp and (kind != "reduce" or self.options.overlap_reduce)
        stream = f"data {kind}" if overlaps else "compute"
        index = self.add(Action(rank, stream, duration_s, name, tuple(after), kind, {"dp_comm": duration_s}))
        if stream == "compute":
            self.last_compute[rank] = index
        return index


def build_actions(
    order: Order, stages: Sequence[StageCosts], rank_of: Mapping[int, int], options: Options
) -> list[Action]:
    """Actions of one step in an issue order that respects every rank's own order.

    Transfers: after a stage's forward its output goes to the next stage, after its backward the gradient to
    the one before. Without `p2p_overlap` a transfer also waits until the receiver has nothing else to run
    before the action that needs it (it posts the receive then).
    """
    builder = _Builder(stages=stages, rank_of=rank_of, options=options)
    last_micro_batch = _last_backward(order)
    cursors = [0] * len(order)
    remaining = sum(len(steps) for steps in order)
    while remaining:
        moved = False
        for rank, steps in enumerate(order):
            while cursors[rank] < len(steps) and _ready(builder, steps[cursors[rank]]):
                _issue(builder, rank, steps[cursors[rank]], last_micro_batch)
                cursors[rank] += 1
                remaining -= 1
                moved = True
        if not moved:
            _issue_rest(builder, order, cursors, last_micro_batch)
            break
    _finish(builder, len(order))
    return builder.actions


def _last_backward(order: Order) -> dict[int, Step]:
    """The backward that ends each stage's gradient accumulation."""
    last: dict[int, Step] = {}
    for steps in order:
        for step in steps:
            if step.kind in ("B", "W"):
                last[step.stage] = step
    return last


def _needs(builder: _Builder, step: Step) -> Step | None:
    """The step of another stage whose result this one starts from."""
    if step.kind == "F" and step.stage > 0:
        return Step(step.stage - 1, "F", step.micro_batch)
    if step.kind in ("B", "I") and step.stage < len(builder.stages) - 1:
        before = Step(step.stage + 1, step.kind, step.micro_batch)
        other = Step(step.stage + 1, "I" if step.kind == "B" else "B", step.micro_batch)
        return other if other in builder.done else before
    return None


def _ready(builder: _Builder, step: Step) -> bool:
    needed = _needs(builder, step)
    return needed is None or needed in builder.done


def _issue_rest(builder: _Builder, order: Order, cursors: list[int], last: Mapping[int, Step]) -> None:
    """No rank can go on: the order deadlocks. Name who waits for what."""
    from costmodel.errors import PlanError

    waiting = [
        f"{steps[c]} (rank {rank}) waits for {_needs(builder, steps[c])}"
        for rank, (steps, c) in enumerate(zip(order, cursors, strict=True))
        if c < len(steps)
    ]
    raise PlanError(f"the schedule deadlocks: {'; '.join(waiting)}")


def _issue(builder: _Builder, rank: int, step: Step, last: Mapping[int, Step]) -> None:
    options = builder.options
    stage = builder.stages[step.stage]
    needed = _needs(builder, step)
    after: list[int] = []
    if needed is not None:
        after.append(_transfer(builder, needed, rank))
    if step.kind == "W" and (made := builder.done.get(Step(step.stage, "I", step.micro_batch))) is not None:
        after.append(made)
    if step.kind in ("B", "I"):
        after.append(builder.done[Step(step.stage, "F", step.micro_batch)])
    sharded = options.dp > 1 and options.zero_stage == 3
    reduces = options.dp > 1 and step.kind in ("B", "W") and (sharded or last.get(step.stage) == step)
    gathers = sharded and step.kind in ("F", "B", "I")
    if reduces or gathers:
        final = _by_unit(builder, rank, step, stage.units, after, gathers=gathers, reduces=reduces)
    else:
        cost = _total(stage.units, step)
        if options.action_s:
            cost = cost + CostParts(parts_s={"host": options.action_s})
        final = builder.compute(rank, str(step), step.kind, cost, after)
    builder.done[step] = final


def _cost(unit: UnitCosts, step: Step) -> CostParts:
    if step.kind == "F":
        return unit.forward
    if step.kind == "I":
        return unit.backward_input
    weight = unit.backward_weight
    if step.micro_batch and unit.accumulate_s:
        weight = weight + CostParts(parts_s={"compute": unit.accumulate_s})
    return weight if step.kind == "W" else unit.backward_input + weight


def _total(units: Sequence[UnitCosts], step: Step) -> CostParts:
    parts: dict[str, float] = {}
    for unit in units:
        for key, seconds in _cost(unit, step).parts_s.items():
            parts[key] = parts.get(key, 0.0) + seconds
    return CostParts(parts_s=parts)


def _by_unit(
    builder: _Builder,
    rank: int,
    step: Step,
    units: Sequence[UnitCosts],
    after: Sequence[int],
    *,
    gathers: bool,
    reduces: bool,
) -> int:
    """Compute unit by unit, with the gather each unit waits for and the reduction it starts."""
    options = builder.options
    ordered = list(units) if step.kind == "F" else list(reversed(units))
    previous = list(after)
    history: list[int] = []
    ahead = options.prefetch_forward if step.kind == "F" else options.prefetch_backward
    final = -1
    for position, unit in enumerate(ordered):
        wait = list(previous)
        if gathers and unit.gather_s:
            # a gather is issued when the unit `ahead` before this one starts, that is after the one before it
            gate = position - 1 - ahead
            first = [history[gate]] if gate >= 0 else _start_of(builder, rank, after)
            wait.append(builder.data(rank, f"nccl:all_gather {unit.name}", "gather", unit.gather_s, first))
        cost = _cost(unit, step)
        if position == 0 and options.action_s:
            cost = cost + CostParts(parts_s={"host": options.action_s})
        final = builder.compute(rank, f"{step} {unit.name}", step.kind, cost, wait)
        history.append(final)
        previous = []
        if reduces and unit.reduce_s:
            op = "all_reduce" if options.zero_stage == 0 else "reduce_scatter"
            builder.data(rank, f"nccl:{op} {unit.name}", "reduce", unit.reduce_s, [final])
    return final


def _start_of(builder: _Builder, rank: int, after: Sequence[int]) -> list[int]:
    """What the first unit of a pass waits for: its inputs, and the rank's own work before it."""
    last = builder.last_compute.get(rank)
    return [*after, *([] if last is None else [last])]


def _transfer(builder: _Builder, needed: Step, receiver: int) -> int:
    sender = builder.rank_of[needed.stage]
    made = builder.done[needed]
    if sender == receiver:
        return made
    if needed in builder.sent:
        return builder.sent[needed]
    stage = needed.stage if needed.kind == "F" else needed.stage - 1
    duration_s = builder.stages[stage].send_s
    after = [made]
    if not builder.options.p2p_overlap and receiver in builder.last_compute:
        after.append(builder.last_compute[receiver])
    direction = "forward" if needed.kind == "F" else "backward"
    index = builder.add(
        Action(
            sender,
            f"pipeline {direction}",
            duration_s,
            f"nccl:send {needed} to rank {receiver}",
            tuple(after),
            "transfer",
            {"pp_comm": duration_s},
        )
    )
    builder.sent[needed] = index
    return index


def _finish(builder: _Builder, n_ranks: int) -> None:
    options = builder.options
    for rank in range(n_ranks):
        mine = [s for s in builder.stages if builder.rank_of[s.index] == rank]
        newest = {a.stream: i for i, a in enumerate(builder.actions) if a.rank == rank and "data" in a.stream}
        data = sorted(newest.values())
        if options.tied_embedding_s and any(s.index in (0, len(builder.stages) - 1) for s in mine):
            data.append(
                builder.data(
                    rank,
                    "nccl:all_reduce tied embedding",
                    "reduce",
                    options.tied_embedding_s,
                    [builder.last_compute[rank]],
                )
            )
        seconds = sum(s.optimizer_s for s in mine)
        made = builder.compute(
            rank, "optimizer", "optimizer", CostParts(parts_s={"optimizer": seconds}), data
        )
        if options.dp > 1 and options.zero_stage in (1, 2):
            gather = sum(u.gather_s for s in mine for u in s.units)
            if gather:
                builder.data(rank, "nccl:all_gather parameters", "gather", gather, [made])
