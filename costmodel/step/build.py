"""Stages and a schedule to engine actions: compute, transfers, data-parallel collectives, optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from costmodel.engine import Action
from costmodel.errors import PlanError
from costmodel.schedules import Order, Step, posted_after
from costmodel.stage_costs import CostParts, StageCosts, UnitCosts
from costmodel.step.builder import ActionBuilder, with_host
from costmodel.step.finish import end_step, update_stage
from costmodel.step.options import Options
from costmodel.step.swapping import Swaps

__all__ = ["build_actions"]

_HIDEABLE = "ep_comm"
"""What an action that runs joined with another hides behind the other's computation."""

_Key = tuple[int, str, int]
"""(stage, "F" or "G", micro-batch): an output, or a gradient of an input."""


def build_actions(order: Order, stages: Sequence[StageCosts], options: Options) -> list[Action]:
    """Actions of one step in an issue order that respects every rank's own order.

    Transfers: after a stage's forward its output goes to the next stage, after its backward the gradient to
    the one before. Without `p2p_overlap` a transfer also waits until the receiver has nothing else to run
    before the action that needs it (it posts the receive then); with `receives_listed` until the receiver has
    reached the receive in its list.

    Raises PlanError where the order deadlocks, naming who waits for what.
    """
    issuer = _Issuer(order, stages, options)
    cursors = [0] * len(order)
    remaining = sum(len(steps) for steps in order)
    while remaining:
        moved = False
        for rank, steps in enumerate(order):
            c = cursors[rank]
            while c < len(steps) and issuer.missing(steps[c]) is None:
                partner = _partner(steps, c)
                issuer.issue(rank, steps[c], partner)
                c += 1
            moved = moved or c > cursors[rank]
            remaining -= c - cursors[rank]
            cursors[rank] = c
        if not moved:
            raise PlanError(_deadlock(issuer, order, cursors))
    end_step(issuer.builder, issuer.stages_of(len(order)), issuer.offloaded)
    return issuer.builder.actions


def _partner(steps: Sequence[Step], c: int) -> Step | None:
    """The step that runs as one with steps[c]."""
    if steps[c].joined and c + 1 < len(steps):
        return steps[c + 1]
    return steps[c - 1] if c and steps[c - 1].joined else None


def _deadlock(issuer: _Issuer, order: Order, cursors: Sequence[int]) -> str:
    waiting = [
        f"{steps[c]} (rank {rank}) waits for {_say(issuer.missing(steps[c]))}"
        for rank, (steps, c) in enumerate(zip(order, cursors, strict=True))
        if c < len(steps)
    ]
    return f"the schedule deadlocks: {'; '.join(waiting)}; reorder the actions of one of these ranks"


def _say(key: _Key | None) -> str:
    if key is None:
        return "nothing"
    return f"{key[0]}{'F' if key[1] == 'F' else 'B'}{key[2]}"


class _Issuer:
    """Turns steps into actions one by one; knows what is done and what was sent."""

    def __init__(self, order: Order, stages: Sequence[StageCosts], options: Options) -> None:
        self.stages = stages
        self.options = options
        self.builder = ActionBuilder(stages, options)
        self.done: dict[_Key, int] = {}
        self.sent: dict[_Key, int] = {}
        self.offloaded: dict[int, list[tuple[UnitCosts, int]]] = {}
        """Per rank: units whose gradients went to the host, and the copy."""
        self._where = {(s.stage, s.micro_batch): rank for rank, row in enumerate(order) for s in row}
        self._final = _final_backwards(order, options.window)
        self._accumulates: set[tuple[int, int]] = set()
        self._gathered: set[tuple[int, int]] = set()
        """Ranks and stages whose parameters of the step before are whole."""
        self._costs: dict[tuple[int, str, bool], CostParts] = {}
        self._sharded = options.dp > 1 and options.zero_stage == 3
        self._reduces = options.reduces
        self._late = options.gathers_late
        self._copies: dict[tuple[int, int], dict[int, int]] = {}
        """Per stage and unit: ranks whose gradients are whole but not reduced so far."""
        self._saved = [sum(u.saved_bytes for u in stage.units) for stage in stages]
        self._posted = posted_after(order) if options.p2p_overlap and options.receives_listed else {}
        """Where receives are listed: the receiver's last step before each."""
        self._ended: dict[tuple[int, Step | None], int] = {}
        self._swaps = Swaps(self.builder, self._final, self._where) if options.swaps else None

    def stages_of(self, n_ranks: int) -> list[list[StageCosts]]:
        """The stages that each rank holds, in forward order."""
        held: list[set[int]] = [set() for _ in range(n_ranks)]
        for (stage, _), rank in self._where.items():
            held[rank].add(stage)
        return [[self.stages[i] for i in sorted(mine)] for mine in held]

    def missing(self, step: Step) -> _Key | None:
        """What the step starts from and is not there yet."""
        stage, micro_batch = step.stage, step.micro_batch
        if step.kind == "F":
            key = (stage - 1, "F", micro_batch)
            return key if stage and key not in self.done else None
        key = (stage, "G" if step.kind == "W" else "F", micro_batch)
        if key not in self.done:
            return key
        key = (stage + 1, "G", micro_batch)
        return key if step.kind != "W" and stage < len(self.stages) - 1 and key not in self.done else None

    def issue(self, rank: int, step: Step, partner: Step | None) -> None:
        options = self.options
        stage = self.stages[step.stage]
        after = self._inputs(rank, step)
        if self._swaps is not None:
            after += self._swaps.before(rank, step)
        backward = step.kind in ("B", "W")
        again = backward and (rank, step.stage) in self._accumulates
        last = (step.stage, step.kind, step.micro_batch) in self._final
        reduces = self._reduces and backward and (self._sharded or last)
        first = self._late and step.kind == "F" and (rank, step.stage) not in self._gathered
        gathers = (self._sharded and step.kind != "W") or first
        if first:
            self._gathered.add((rank, step.stage))
        offload = options.offload
        streams = offload is not None and offload.stream_weights and step.kind != "W"
        to_host = offload is not None and last and offload.host_update_bytes_per_s > 0
        if reduces or gathers or streams or to_host:
            final = self._by_unit(rank, step, stage.units, after, again, gathers, reduces, streams, to_host)
        else:
            cost = self._total(step, again)
            if partner is not None:
                cost = _hidden(cost, self._total(partner, False))
            parts = with_host(cost, options.action_s)
            held = self._held(step, self._saved[step.stage])
            final = self.builder.compute(rank, str(step), step.kind, parts, after, holds_bytes=held)
        if self._posted:
            self._ended[rank, step] = final
        if step.kind != "W":
            self.done[step.stage, "F" if step.kind == "F" else "G", step.micro_batch] = final
        if backward:
            self._accumulates.add((rank, step.stage))
        if self._swaps is not None:
            self._swaps.after(rank, step, final)
        if last and options.window:
            self._accumulates.discard((rank, step.stage))
            update_stage(self.builder, rank, stage)

    def _held(self, step: Step, saved_bytes: int) -> int:
        if self.options.swaps or step.kind == "I":
            return 0
        return saved_bytes if step.kind == "F" else -saved_bytes

    def _total(self, step: Step, again: bool) -> CostParts:
        key = (step.stage, step.kind, again)
        if key not in self._costs:
            total: dict[str, float] = {}
            for unit in self.stages[step.stage].units:
                for part, seconds in _cost(unit, step, again).parts_s.items():
                    total[part] = total.get(part, 0.0) + seconds
            self._costs[key] = CostParts(parts_s=total)
        return self._costs[key]

    def _by_unit(
        self,
        rank: int,
        step: Step,
        units: Sequence[UnitCosts],
        after: Sequence[int],
        again: bool,
        gathers: bool,
        reduces: bool,
        streams: bool,
        to_host: bool,
    ) -> int:
        """Compute unit by unit, with the gather each unit waits for and the reduction it starts."""
        builder, options = self.builder, self.options
        ordered = list(units) if step.kind == "F" else list(reversed(units))
        ahead = options.prefetch_forward if step.kind == "F" else options.prefetch_backward
        first = builder.start_of(rank, after)
        history: list[int] = []
        final = -1
        for position, unit in enumerate(ordered):
            wait = list(after) if position == 0 else []
            # a gather is issued when the unit `ahead` before this one starts, that is after the one before it
            gate = position - 1 - ahead
            ready = [history[gate]] if gate >= 0 else first
            if self._late:  # updated when the step began: nothing to wait for
                ready = []
            if streams and unit.parameter_bytes:
                ready = [self._stream_in(rank, unit, ready)]
                wait += ready
            if gathers and unit.gather_s:
                name = f"nccl:all_gather {unit.name}"
                takes = unit.gather_takes
                wait.append(builder.data(rank, name, "gather", unit.gather_s, ready, takes=takes))
            parts = with_host(_cost(unit, step, again), 0.0 if position else options.action_s)
            held = self._held(step, unit.saved_bytes)
            name = f"{step} {unit.name}"
            final = builder.compute(rank, name, step.kind, parts, wait, holds_bytes=held)
            history.append(final)
            made = final
            if reduces and unit.reduce_s:
                made = self._reduce(rank, step.stage, position, unit, final)
            if to_host and unit.parameter_bytes * unit.trained_fraction:
                self._gradient_out(rank, unit, made)
        return final

    def _reduce(self, rank: int, stage: int, position: int, unit: UnitCosts, final: int) -> int:
        """Reduce a unit's gradients, where a stage has several copies once all of them are there."""
        ready = self._copies.setdefault((stage, position), {})
        ready[rank] = final
        if len(ready) < self.options.copies:
            return final
        op = "all_reduce" if self.options.zero_stage == 0 else "reduce_scatter"
        op = "send" if self.options.pulls else op
        after = list(self._copies.pop((stage, position)).values())
        name = f"nccl:{op} {unit.name}"
        seconds, takes = unit.reduce_s, unit.reduce_takes
        return [self.builder.data(r, name, "reduce", seconds, after, takes=takes) for r in sorted(ready)][-1]

    def _stream_in(self, rank: int, unit: UnitCosts, ready: Sequence[int]) -> int:
        offload = self.options.offload
        assert offload is not None
        # under ZeRO-3 each rank streams its part, which the gather completes; else all of the unit
        among = unit.shared_by or self.options.shard
        share = unit.parameter_bytes / (among if self.options.zero_stage == 3 else 1)
        return self.builder.copy(rank, "h2d", share, offload.h2d_bytes_per_s, f"copy in {unit.name}", ready)

    def _gradient_out(self, rank: int, unit: UnitCosts, made: int) -> None:
        offload = self.options.offload
        assert offload is not None
        size = (
            unit.parameter_bytes
            * unit.trained_fraction
            * offload.gradient_per_parameter_byte
            / (unit.shared_by or self.options.shard)
        )
        size *= 1.0 - offload.device_fraction
        name = f"gradients out {unit.name}"
        copy = self.builder.copy(rank, "d2h", size, offload.d2h_bytes_per_s, name, [made])
        self.offloaded.setdefault(rank, []).append((unit, copy))

    def _inputs(self, rank: int, step: Step) -> list[int]:
        """The arrival of what the step starts from."""
        if step.kind == "F" and step.stage:
            key = (step.stage - 1, "F", step.micro_batch)
        elif step.kind in ("B", "I") and step.stage < len(self.stages) - 1:
            key = (step.stage + 1, "G", step.micro_batch)
        else:
            return []
        made = self.done[key]
        sender = self._where[key[0], key[2]]
        if sender == rank:
            return [made]
        if key not in self.sent:
            duration_s = self.stages[min(key[0], step.stage)].send_s
            after = [made]
            if not self.options.p2p_overlap and rank in self.builder.last_compute:
                after.append(self.builder.last_compute[rank])
            elif self._posted.get(key) is not None:
                after.append(self._ended[rank, self._posted[key]])
            direction = "forward" if key[1] == "F" else "backward"
            name = f"nccl:send {_say(key)} to rank {rank}"
            self.sent[key] = self.builder.transfer(sender, rank, direction, duration_s, name, after)
        return [self.sent[key]]


def _final_backwards(order: Order, window: int) -> set[tuple[int, str, int]]:
    """The backwards after which a rank's gradients of a stage are whole: the last one of the step, or without
    a flush the last one of every `window` micro-batches."""
    final: set[tuple[int, str, int]] = set()
    for steps in order:
        last: dict[int, Step] = {}
        for step in steps:
            if step.kind not in ("B", "W"):
                continue
            last[step.stage] = step
            if window and (step.micro_batch + 1) % window == 0:
                final.add((step.stage, step.kind, step.micro_batch))
        if not window:
            final |= {(s.stage, s.kind, s.micro_batch) for s in last.values()}
    return final


def _cost(unit: UnitCosts, step: Step, again: bool) -> CostParts:
    """Cost of one kind of action; `again`: its weight gradients are added to those of earlier ones."""
    if step.kind == "F":
        return unit.forward
    if step.kind == "I":
        return unit.backward_input
    weight = unit.backward_weight
    if again and unit.accumulate_s:
        weight = weight + CostParts(parts_s={"compute": unit.accumulate_s})
    if step.kind == "B":
        return unit.backward_input + weight
    # the first stage's inputs have no gradient to take the weights' apart from
    return weight + CostParts(parts_s={"host": unit.split_s}) if step.stage and unit.split_s else weight


def _hidden(cost: CostParts, partner: CostParts) -> CostParts:
    """Cost of an action whose expert communication runs beside its partner's computation."""
    parts: Mapping[str, float] = cost.parts_s
    if not parts.get(_HIDEABLE):
        return cost
    cover = sum(seconds for part, seconds in partner.parts_s.items() if part in ("compute", "recompute"))
    return CostParts(parts_s={**parts, _HIDEABLE: max(0.0, parts[_HIDEABLE] - cover)})
