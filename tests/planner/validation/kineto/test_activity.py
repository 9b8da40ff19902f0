"""Hand-made CUDA traces with known answers, and what HolisticTraceAnalysis says of the same file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from planner.validation.kineto.activity import Activity, activity_of, shortest_transfers
from planner.validation.kineto.attribution import Attribution, attribute
from planner.validation.kineto.events import RankTrace
from planner.validation.kineto.operators import Call, DeviceWork, device_work, module_times, operator_calls
from planner.validation.kineto.reader import read_trace
from tests.planner.validation.kineto.hand_made import cuda_trace, write

US = 1e-6
KNOWN = ("aten::addmm", "aten::gelu", "aten::mm", "aten::gelu_backward")
CLASSES = {"nn.Module: Linear_0": "a", "nn.Module: GELU_0": "b"}
Measured = tuple[RankTrace, Attribution, list[Call], list[DeviceWork]]


def measured(path: Path, names: dict[str, str] | None = None) -> Measured:
    trace = read_trace(path)
    found = attribute(trace, names=names)
    calls = operator_calls(trace, found, KNOWN)
    work, _ = device_work(trace, found, calls)
    return trace, found, calls, work


def activity(*ranks: Measured) -> list[Activity]:
    shortest_s = shortest_transfers([(trace, work) for trace, _, _, work in ranks])
    return [activity_of(trace, found, calls, work, shortest_s) for trace, found, calls, work in ranks]


def microseconds(values: dict[str, float]) -> dict[str, float]:
    return {name: round(seconds / US, 3) for name, seconds in values.items() if seconds}


def test_parts_of_the_step(tmp_path: Path) -> None:
    (found,) = activity(measured(write(tmp_path, cuda_trace())))
    assert found.n_steps == 1
    parts = {"kernel": 390, "communication": 160, "optimizer": 60, "copy": 10, "host": 380}
    assert microseconds(dict(found.parts_s)) == parts
    assert found.step_s == pytest.approx(1000 * US)
    assert found.communication_s == pytest.approx(300 * US)
    assert found.overlap_fraction == pytest.approx(140 / 300)
    assert found.idle_s == pytest.approx(380 * US)
    (collective,) = found.collectives
    assert (collective.stream, collective.n) == (20, 1)
    assert collective.total_s == pytest.approx(300 * US)


def test_kernels_and_communication_as_analysed_by_hta(tmp_path: Path) -> None:
    analysis = pytest.importorskip("hta.trace_analysis")
    (found,) = activity(measured(write(tmp_path, cuda_trace())))
    hta = analysis.TraceAnalysis(trace_dir=str(tmp_path))
    row = hta.get_temporal_breakdown(visualize=False).set_index("rank").loc[0]
    parts = microseconds(dict(found.parts_s))
    assert row["compute_time(us)"] == pytest.approx(parts["kernel"] + parts["optimizer"])
    assert row["non_compute_time(us)"] == pytest.approx(parts["communication"] + parts["copy"])
    overlap = hta.get_comm_comp_overlap(visualize=False).set_index("rank").loc[0, "comp_comm_overlap_pctg"]
    assert overlap == pytest.approx(100 * (found.overlap_fraction or 0.0), abs=0.01)


@pytest.mark.parametrize(
    "options",
    [{}, {"arrows": False}, {"launches": False}, {"modules": "class"}, {"shift": 1.7e15}],
    ids=["all", "no arrows", "no launches", "classes", "epoch times"],
)
def test_modules_by_launch_and_forward(tmp_path: Path, options: dict[str, Any]) -> None:
    trace, found, calls, work = measured(write(tmp_path, cuda_trace(**options)), CLASSES)
    times = module_times(found, work)
    kernels = {
        path: microseconds({k: v for k, v in asdict(t).items() if "kernel" in k}) for path, t in times.items()
    }
    assert kernels == {
        "": {"forward_kernel_s": 150, "backward_kernel_s": 240},
        "a": {"forward_kernel_s": 100, "backward_kernel_s": 200},
        "b": {"forward_kernel_s": 50, "backward_kernel_s": 40},
    }
    coarse = options.get("shift", 0) > 1e15  # times of a quarter microsecond
    for path, forward, backward in (("a", 40, 90), ("b", 50, 30), ("", 90, 120)):
        assert times[path].forward_s == pytest.approx(forward * US, abs=0.6 * US if coarse else 1e-9)
        assert times[path].backward_s == pytest.approx(backward * US, abs=0.6 * US if coarse else 1e-9)
    assert [(c.name, c.module, c.phase) for c in sorted(calls, key=lambda c: c.start_s)] == [
        ("aten::addmm", "a", "forward"),
        ("aten::gelu", "b", "forward"),
        ("aten::gelu_backward", "b", "backward"),
        ("aten::mm", "a", "backward"),
        ("aten::mm", "a", "backward"),
        ("c10d::allreduce_", "a", "backward"),
        ("aten::_foreach_add_", "", "optimizer"),
    ]
    (whole,) = activity((trace, found, calls, work))
    assert sum(whole.parts_s.values()) == pytest.approx(whole.step_s)


def test_kernels_that_outlast_the_host_lengthen_the_last_step(tmp_path: Path) -> None:
    raw = cuda_trace()
    step = raw["traceEvents"][0]
    assert step["name"].startswith("ProfilerStep")
    step["dur"] = 500.0
    (found,) = activity(measured(write(tmp_path, raw)))
    assert found.step_s == pytest.approx(760 * US)
    assert found.parts_s["host"] == pytest.approx(140 * US)


def transfers(rank: int, waits: list[tuple[float, float]]) -> dict[str, Any]:
    """A pipeline rank on a CPU: an operator wherever it does not wait for the other rank."""
    events: list[dict[str, Any]] = [
        {
            "ph": "X",
            "cat": "user_annotation",
            "name": "ProfilerStep#0",
            "ts": 0,
            "dur": 1000,
            "pid": 1,
            "tid": 1,
        }
    ]
    begin = 0.0
    for start, end in [*waits, (1000.0, 1000.0)]:
        events.append(
            {
                "ph": "X",
                "cat": "cpu_op",
                "name": "aten::mm",
                "ts": begin,
                "dur": start - begin,
                "pid": 1,
                "tid": 1,
            }
        )
        if end > start:  # the record begins when the transfer is asked for, before the rank has to wait
            received = {"name": "gloo:recv", "cat": "user_annotation", "args": {"Input Dims": [[8]]}}
            events.append(
                {"ph": "X", "ts": start - 5, "dur": end - start + 5, "pid": 1, "tid": 1, **received}
            )
        begin = end
    return {"distributedInfo": {"rank": rank, "world_size": 2}, "traceEvents": events}


def test_waiting_beyond_the_shortest_transfer_is_bubble(tmp_path: Path) -> None:
    first = measured(write(tmp_path, transfers(0, [(100, 120), (300, 500)]), "rank-0.json"))
    second = measured(write(tmp_path, transfers(1, [(0, 100)]), "rank-1.json"))
    a, b = activity(first, second)
    # the shortest took 25, five of them behind the operator before it
    assert microseconds(dict(a.parts_s)) == {"kernel": 780, "communication": 50, "bubble": 170}
    assert microseconds(dict(b.parts_s)) == {"kernel": 900, "communication": 25, "bubble": 75}
    assert a.overlapped_s == pytest.approx(10 * US)


def test_steps_without_marks_end_with_updates(tmp_path: Path) -> None:
    raw = cuda_trace()
    raw["traceEvents"] = [e for e in raw["traceEvents"] if not e["name"].startswith("ProfilerStep")]
    found = attribute(read_trace(write(tmp_path, raw)))
    assert found.steps_by == "ends of Optimizer.step"
    (step,) = found.steps
    assert step[1] - step[0] == pytest.approx(295 * US)  # from the first launch at 5 to the update's end
    raw["traceEvents"] = [e for e in raw["traceEvents"] if not e["name"].startswith("Optimizer")]
    assert attribute(read_trace(write(tmp_path, raw))).steps_by.startswith("nothing")
