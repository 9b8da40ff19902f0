"""Our actions against those of torch's own schedule classes."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.pipelining import schedules as theirs

from costmodel.errors import PlanError
from costmodel.schedules import Order, Step, parse_csv, schedule

KINDS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}


class _Stage:
    """As much of a pipeline stage as a schedule's constructor asks for."""

    def __init__(self, rank: int, index: int, p: int, v: int) -> None:
        self.group_rank, self.stage_index, self.group_size, self.num_stages = rank, index, p, p * v
        self.is_first, self.is_last = index == 0, index == p * v - 1
        self.device = torch.device("cpu")
        self.submod = torch.nn.Identity()
        self.group = None
        self.has_backward = True
        self.stage_index_to_group_rank = {i: i % p for i in range(p * v)}

    def __getattr__(self, name: str) -> object:
        return None


def _torch_order(cls: type, p: int, v: int, m: int) -> Order:
    stages = [_Stage(0, c * p, p, v) for c in range(v)]
    made = cls(stages, m, loss_fn=lambda *a: torch.zeros(()))
    return [
        [
            Step(a.stage_index, KINDS[a.computation_type.name], a.microbatch_index)
            for a in made.pipeline_order[rank]
            if a is not None
        ]
        for rank in range(p)
    ]


def _kinds(order: Order) -> list[list[tuple[int, str, int]]]:
    return [[(s.stage, s.kind, s.micro_batch) for s in steps] for steps in order]


@pytest.mark.parametrize("p", [2, 4, 8])
@pytest.mark.parametrize("v", [2, 4])
@pytest.mark.parametrize("m", [2, 4, 8, 12, 16, 32])
@pytest.mark.parametrize(
    ("name", "cls"),
    [("interleaved", theirs.ScheduleInterleaved1F1B), ("looped-bfs", theirs.ScheduleLoopedBFS)],
)
def test_equals_torch(name: str, cls: type, p: int, v: int, m: int) -> None:
    try:
        expected = _torch_order(cls, p, v, m)
    except ValueError:
        with pytest.raises(PlanError):
            schedule(name, p, v, m)
        return
    assert _kinds(schedule(name, p, v, m)) == _kinds(expected)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "interleaved", "looped-bfs"])
@pytest.mark.parametrize(("p", "m"), [(1, 1), (2, 2), (4, 4), (4, 8), (8, 32)])
def test_every_action_runs_once_and_forward_first(name: str, p: int, m: int) -> None:
    v = 2 if name in ("interleaved", "looped-bfs") else 1
    order = schedule(name, p, v, m)
    seen = [s for steps in order for s in steps]
    assert len(seen) == len(set(seen)) == 2 * p * v * m
    for steps in order:
        position = {s: i for i, s in enumerate(steps)}
        assert all(position[Step(s.stage, "F", s.micro_batch)] < position[s] for s in steps if s.kind == "B")


def test_one_f_one_b_holds_at_most_p_minus_stage() -> None:
    for rank, steps in enumerate(schedule("1f1b", 4, 1, 16)):
        held = peak = 0
        for step in steps:
            held += 1 if step.kind == "F" else -1
            peak = max(peak, held)
        assert peak == 4 - rank


def test_prints_and_parses_back() -> None:
    order = schedule("1f1b", 3, 1, 5)
    text = "\n".join(",".join(str(step) for step in steps) for steps in order)
    assert parse_csv(text) == order
    with pytest.raises(PlanError, match="2F0"):
        Step.parse("F2")


def test_one_chunk_schedules_refuse_two() -> None:
    with pytest.raises(PlanError, match="vpp=2"):
        schedule("gpipe", 2, 2, 4)
