"""When a rank posts its receives, where a schedule runs from a list of actions that holds them.

torch.distributed.pipelining lowers such a schedule before it runs (`_add_send_recv`): the ranks take turns,
each lists its next action once the input's receive is listed, and with an action that another rank waits for
it lists its own send and that rank's receive, which so stands behind what that rank has listed until then.
Gathers of sharded parameters, which take turns too, are left out.
"""

from __future__ import annotations

from costmodel.errors import PlanError
from costmodel.schedules.actions import Order, Step

__all__ = ["posted_after"]

_Transfer = tuple[int, str, int]
"""(stage that sends, "F" or "G", micro-batch): an output, or the gradient of an input."""


def posted_after(order: Order) -> dict[_Transfer, Step | None]:
    """For each transfer between ranks the receiver's last action before it posts the receive (None: none).

    Raises PlanError where the order deadlocks.
    """
    where = {(step.stage, step.micro_batch): rank for rank, steps in enumerate(order) for step in steps}
    last_stage = max((step.stage for steps in order for step in steps), default=0)
    posted: dict[_Transfer, Step | None] = {}
    made: set[_Transfer] = set()
    latest: list[Step | None] = [None] * len(order)
    turns = [_turns(steps) for steps in order]
    remaining = sum(map(len, turns))
    while remaining:
        moved = 0
        for rank, mine in enumerate(turns):
            if not mine or not all(_ready(step, last_stage, made) for step in mine[-1]):
                continue
            for step in mine.pop():
                latest[rank] = step
                target = _target(step, last_stage)
                if target is None:
                    continue
                transfer = (step.stage, "F" if step.kind == "F" else "G", step.micro_batch)
                made.add(transfer)
                receiver = where[target, step.micro_batch]
                if receiver != rank:
                    posted[transfer] = latest[receiver]
            moved += 1
        if not moved:
            raise PlanError("the schedule deadlocks: each rank waits for another; reorder the actions")
        remaining -= moved
    return posted


def _turns(steps: list[Step]) -> list[tuple[Step, ...]]:
    """A rank's actions, last first; two that run joined are one, and a stage whose gradients are whole takes
    a turn to reduce them."""
    finals = {step.stage: step for step in steps if step.kind in ("B", "W")}
    turns: list[tuple[Step, ...]] = []
    pending: tuple[Step, ...] = ()
    for step in steps:
        pending = (*pending, step)
        if not step.joined:
            turns.append(pending)
            turns += [() for s in pending if finals.get(s.stage) == s]
            pending = ()
    return turns[::-1]


def _target(step: Step, last_stage: int) -> int | None:
    """The stage that needs what the step makes."""
    if step.kind == "F":
        return step.stage + 1 if step.stage < last_stage else None
    if step.kind in ("B", "I"):
        return step.stage - 1 if step.stage else None
    return None


def _ready(step: Step, last_stage: int, made: set[_Transfer]) -> bool:
    if step.kind == "F":
        return not step.stage or (step.stage - 1, "F", step.micro_batch) in made
    if step.kind in ("B", "I"):
        return step.stage == last_stage or (step.stage + 1, "G", step.micro_batch) in made
    return True
