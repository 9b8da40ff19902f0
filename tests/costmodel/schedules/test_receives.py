"""Where receives are listed: as torch's own lowering puts them."""

from __future__ import annotations

import pytest
from torch.distributed.pipelining import schedules as theirs

from costmodel.errors import PlanError
from costmodel.schedules import Order, Step, posted_after, schedule

_TYPES = {"F": "FORWARD", "B": "FULL_BACKWARD", "I": "BACKWARD_INPUT", "W": "BACKWARD_WEIGHT"}
_KINDS = {name: kind for kind, name in _TYPES.items()}


def _action(step: Step) -> theirs._Action:
    return theirs._Action(step.stage, theirs._ComputationType[_TYPES[step.kind]], step.micro_batch)


def _rows(order: Order, m: int) -> dict[int, list[theirs._Action]]:
    rows = {}
    for rank, steps in enumerate(order):
        row, first = [], None
        for step in steps:
            if first is not None:
                pair = (_action(first), _action(step))
                row.append(theirs._Action(-1, theirs._ComputationType.OVERLAP_F_B, None, pair))
                first = None
            elif step.joined:
                first = step
            else:
                row.append(_action(step))
        rows[rank] = theirs._add_reduce_grad(row, m)
    return rows


def _lowered(order: Order, m: int) -> dict[tuple[int, str, int], tuple[int, str, int] | None]:
    """Per transfer the receiver's last compute action before its receive, in torch's lowered schedule."""
    rank_of = {step.stage: rank for rank, steps in enumerate(order) for step in steps}
    found: dict[tuple[int, str, int], tuple[int, str, int] | None] = {}
    for row in theirs._add_send_recv(_rows(order, m), lambda s: rank_of[s], len(rank_of)).values():
        latest = None
        for action in row:
            for sub in action.sub_actions or (action,):
                if sub.computation_type.name in _KINDS:
                    latest = (sub.stage_index, _KINDS[sub.computation_type.name], sub.microbatch_index)
            if action.computation_type.name == "RECV_F":
                found[action.stage_index - 1, "F", action.microbatch_index] = latest
            elif action.computation_type.name == "RECV_B":
                found[action.stage_index + 1, "G", action.microbatch_index] = latest
    return found


@pytest.mark.parametrize("p", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("name", "chunks"),
    [
        ("interleaved", (1, 2, 3, 4)),
        ("looped-bfs", (2, 3)),
        ("zb-h1", (1, 2, 3)),
        ("zb-v", (2,)),
        ("dualpipe-v", (2,)),
    ],
)
def test_equals_torch(name: str, chunks: tuple[int, ...], p: int) -> None:
    compared = 0
    for v in chunks:
        for m in (p, 2 * p, 4 * p):
            try:
                order = schedule(name, p, v, m)
            except PlanError:
                continue
            ours = {
                transfer: None if step is None else (step.stage, step.kind, step.micro_batch)
                for transfer, step in posted_after(order).items()
            }
            assert ours == _lowered(order, m)
            compared += len(ours)
    assert compared


def test_deadlock() -> None:
    order = [[Step(0, "B", 0), Step(0, "F", 0)], [Step(1, "F", 0), Step(1, "B", 0)]]
    with pytest.raises(PlanError, match="deadlocks"):
        posted_after(order)
