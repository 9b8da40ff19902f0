"""Our actions against those of torch's own schedule classes, and the rules of every schedule."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from torch.distributed.pipelining import schedules as theirs

from costmodel.errors import PlanError
from costmodel.schedules import SCHEDULES, Order, Step, format_csv, parse_csv, schedule

KINDS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
logging.getLogger("torch.distributed.pipelining.schedules").setLevel(logging.ERROR)


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


def _flat(action: object) -> list[tuple[int, str, int]]:
    if action is None:
        return []
    if action.sub_actions:
        return [a for sub in action.sub_actions for a in _flat(sub)]
    if action.computation_type.name not in KINDS:
        return []
    return [(action.stage_index, KINDS[action.computation_type.name], action.microbatch_index)]


def _torch_order(cls: type, p: int, v: int, m: int) -> list[list[tuple[int, str, int]]]:
    # lowering to sends and receives, which takes most of the constructor's time, is not compared
    quick = type(
        "Quick",
        (cls,),
        {
            "_prepare_schedule_with_comms": lambda self, *a, **k: None,
            "_validate_and_set_stage_mapping": lambda self, *a, **k: None,
        },
    )
    stages = [_Stage(0, c * p, p, v) for c in range(v)]
    single = issubclass(cls, theirs.PipelineScheduleSingle)
    made = quick(stages[0] if single else stages, m, loss_fn=lambda *a: torch.zeros(()))
    order = made._get_pipeline_order() if single else made.pipeline_order
    return [[entry for action in order[rank] for entry in _flat(action)] for rank in range(p)]


def _plain(order: Order) -> list[list[tuple[int, str, int]]]:
    return [[(s.stage, s.kind, s.micro_batch) for s in steps] for steps in order]


@pytest.mark.parametrize("p", range(1, 9))
@pytest.mark.parametrize(
    ("name", "cls", "chunks"),
    [
        ("gpipe", theirs.ScheduleGPipe, (1,)),
        ("interleaved", theirs.ScheduleInterleaved1F1B, (1, 2, 3, 4)),
        ("1f1b", theirs.ScheduleInterleaved1F1B, (2, 3, 4)),
        ("looped-bfs", theirs.ScheduleLoopedBFS, (1, 2, 3, 4)),
        ("zb-h1", theirs.ScheduleInterleavedZeroBubble, (1, 2, 3, 4)),
        ("zb-v", theirs.ScheduleZBVZeroBubble, (1, 2, 3)),
        ("dualpipe-v", theirs.ScheduleDualPipeV, (1, 2, 3)),
    ],
)
def test_equals_torch(name: str, cls: type, chunks: tuple[int, ...], p: int) -> None:
    """For all (p, m, v) up to (8, 32, 4): torch's order where it accepts, PlanError where it refuses."""
    compared = 0
    for v, m in itertools.product(chunks, range(1, 33)):
        try:
            expected = _torch_order(cls, p, v, m)
        except ValueError:
            with pytest.raises(PlanError):
                schedule(name, p, v, m)
            continue
        assert _plain(schedule(name, p, v, m)) == expected, (p, v, m)
        compared += 1
    assert compared


@pytest.mark.parametrize("p", [2, 4, 8])
def test_1f1b_equals_torch_in_kinds(p: int) -> None:
    """torch's printed 1F1B counts micro-batches wrongly on the last stage; the kinds are right."""
    for m in range(p, 33):
        expected = _torch_order(theirs.Schedule1F1B, p, 1, m)
        kinds = [[kind for _, kind, _ in steps] for steps in expected]
        assert [[s.kind for s in steps] for steps in schedule("1f1b", p, 1, m)] == kinds


def _chunks(name: str) -> int:
    return 2 if name in ("zb-v", "zbv", "dualpipe-v", "dualpipev", "looped-bfs", "harmony") else 1


@pytest.mark.parametrize("name", sorted(str(n) for n in SCHEDULES))
@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8), (8, 32)])
def test_every_action_runs_once_and_forward_first(name: str, p: int, m: int) -> None:
    v = _chunks(name)
    order = schedule(name, p, v, m)
    forwards = [s for steps in order for s in steps if s.kind == "F"]
    assert len(forwards) == len(set(forwards)) == p * v * m
    for steps in order:
        position = {s: i for i, s in enumerate(steps)}
        assert len(position) == len(steps)
        for step in (s for s in steps if s.kind == "F"):
            full = position.get(Step(step.stage, "B", step.micro_batch))
            split = position.get(Step(step.stage, "I", step.micro_batch))
            weight = position.get(Step(step.stage, "W", step.micro_batch))
            assert (full is None) != (split is None), step
            assert position[step] < (full if full is not None else split)
            assert (weight is None) == (split is None)
            assert weight is None or weight > split


def test_one_f_one_b_holds_at_most_p_minus_stage() -> None:
    for rank, steps in enumerate(schedule("1f1b", 4, 1, 16)):
        held = peak = 0
        for step in steps:
            held += 1 if step.kind == "F" else -1
            peak = max(peak, held)
        assert peak == 4 - rank


def test_chimera_matches_the_papers_figure() -> None:
    """SC 2021, figure 3: four ranks, four micro-batches (0, 1 down; 2, 3 up)."""
    order = schedule("chimera", 4, 1, 4)
    assert [str(s) for s in order[0]] == ["0F0", "0F1", "3F2", "3B2", "3F3", "3B3", "0B0", "0B1"]
    assert [str(s) for s in order[1]] == ["1F0", "2F2", "1F1", "2F3", "2B2", "1B0", "2B3", "1B1"]


@pytest.mark.parametrize("name", sorted(str(n) for n in SCHEDULES))
def test_prints_and_parses_back(name: str) -> None:
    order = schedule(name, 4, _chunks(name), 8)
    text = format_csv(order)
    again = parse_csv(text)
    assert again == order
    assert [[s.joined for s in steps] for steps in again] == [[s.joined for s in steps] for steps in order]
    for line in text.strip().splitlines():
        for cell in line.split(","):
            assert str(theirs._Action.from_str(cell)) == cell


def test_parse_leaves_lowered_communication_out() -> None:
    assert parse_csv("0UNSHARD,0F0,0SEND_F0,,0RECV_B0,0I0,0W0,0REDUCE_GRAD\n") == [
        [Step(0, "F", 0), Step(0, "I", 0), Step(0, "W", 0)]
    ]
    with pytest.raises(PlanError, match="2F0"):
        parse_csv("0F0,nonsense")
    with pytest.raises(PlanError, match="2F0"):
        Step.parse("F2")


@pytest.mark.parametrize(
    ("name", "p", "v", "m", "rule"),
    [
        ("chimera", 3, 1, 4, r"pp\(3\).*even"),
        ("chimera", 4, 2, 4, "vpp=2"),
        ("zb-v", 4, 1, 8, "exactly 2 stages"),
        ("dualpipe-v", 4, 2, 7, r"7 < 2 \* pp\(4\)"),
        ("interleaved", 4, 2, 6 + 3, "multiple of pp"),
        ("pipedream", 4, 2, 8, "vpp=2"),
        ("gpipe", 0, 1, 4, "at least 1"),
    ],
)
def test_refusals_say_the_rule(name: str, p: int, v: int, m: int, rule: str) -> None:
    with pytest.raises(PlanError, match=rule):
        schedule(name, p, v, m)


def test_weight_versions() -> None:
    """PipeDream stashes p - stage versions (SOSP 2019, 3.3); 2BW two (2006.09503, 3.1)."""
    assert [SCHEDULES["pipedream"].weight_versions(s, 4) for s in range(4)] == [4, 3, 2, 1]
    assert {SCHEDULES["pipedream-2bw"].weight_versions(s, 4) for s in range(4)} == {2}
    assert {SCHEDULES["1f1b"].weight_versions(s, 4) for s in range(4)} == {1}
