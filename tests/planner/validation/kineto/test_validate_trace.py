"""`foreshard validate trace` on hand-made traces: rows, verdict, and what is said of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calibrate.runner import ALONE, TOGETHER
from costmodel.errors import InputFileError, UsageError
from costmodel.hardware.store import load_profile
from costmodel.plan import Plan
from planner.cli import main
from planner.validation.kineto.module_names import align, align_forward
from planner.validation.kineto.operators import Call
from planner.validation.kineto.score import validate_trace
from planner.validation.run_spec import ModelSpec, RunSpec
from planner.validation.scoring import Report
from tests.planner.validation.kineto.hand_made import cuda_trace, write

GPU = "a100-sxm4-80gb"
MODEL = "tests.planner.validation.kineto.hand_made:two_layers"
ROW = {"id", "source", "group", "metric", "measured", "predicted", "low", "high", "skipped"}


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [write(tmp_path, cuda_trace(rank=r), f"trace-{r}.json") for r in range(2)]


def checked(paths: list[Path], **changes: Any) -> Report:
    return validate_trace(paths, **{"hardware": GPU, "model": MODEL, "plan": "dp2.mbs4", **changes})


def test_every_kernel_is_beside_its_forecast(pair: list[Path]) -> None:
    report = checked(pair)
    rows = {row.id: row for row in report.rows}
    us = {name: round((rows[name].measured or 0.0) * 1e6, 3) for name in rows}
    assert us["step"] == 1000
    assert us["part: kernel"] == 390
    assert us["part: communication"] == 160
    assert us["part: optimizer"] == 60
    assert us["kind: gemm forward"] == us["module: a forward"] == 100
    assert us["kind: gemm backward"] == us["module: a backward"] == 200
    assert us["kind: elementwise forward"] == us["module: b forward"] == 50
    assert us["module: b backward"] == 40
    for name in ("step", "kind: gemm forward", "module: a backward", "module: b forward"):
        row = rows[name]
        assert row.skipped is None
        assert row.low is not None
        assert row.high is not None
        assert row.predicted is not None
        assert 0 < row.low <= row.predicted <= row.high
    assert rows["part: bubble"].skipped == "neither in the trace nor in the forecast"


def test_the_verdict_takes_the_error_apart(pair: list[Path]) -> None:
    details = checked(pair).details
    verdict = details["verdict"]
    parts = {part["name"]: part for part in verdict["parts"]}
    assert sum(p["share"] for p in parts.values()) == pytest.approx(1.0)
    measured, predicted = (sum(p[key] for p in parts.values()) for key in ("measured_s", "predicted_s"))
    assert measured == pytest.approx(1e-3)
    assert predicted == pytest.approx(details["step_time_as_calibrated_s"], rel=1e-3)
    assert verdict["step_error"] == pytest.approx(predicted / measured - 1.0, rel=1e-3)
    # next to nothing is forecast for two tiny layers: 380 us idle are more than 390 us of kernels less theirs
    assert parts["host"]["difference_s"] == pytest.approx(-380e-6)
    assert parts["kernel"]["difference_s"] > -380e-6
    assert verdict["largest"] == "host"
    assert {m["name"] for m in verdict["modules"]} >= {"a forward", "a backward"}
    assert not verdict["within_interval"]


def test_a_recorded_run_is_restated_for_the_machines_speed(tmp_path: Path) -> None:
    profile = load_profile("epyc-9005-core").model_copy(update={"yardstick_s": {ALONE: 0.5, TOGETHER: 0.1}})
    machine = tmp_path / "machine.json"
    machine.write_text(profile.model_dump_json())
    raw = cuda_trace()  # two ranks started, one has work: a plan of one beside others of two
    raw["traceEvents"] = [e for e in raw["traceEvents"] if e.get("cat") not in ("kernel", "gpu_memcpy")]
    run = RunSpec(model=ModelSpec(model=MODEL), plan=Plan(micro_batch_size=4))
    raw["foreshard"] = {"run": run.to_dict(), "step_time_s": 9e-4, "yardstick_s": 1.0}
    report = validate_trace([write(tmp_path / "traces", raw)], hardware=str(machine))
    assert report.details["unprofiled_step_time_s"] == 9e-4
    assert report.details["machine_slowdown"] == 2.0
    assert report.rows[0].predicted == pytest.approx(2.0 * report.details["step_time_as_calibrated_s"])
    gemm = next(row for row in report.rows if row.id == "kind: gemm forward")
    assert gemm.measured == pytest.approx(13e-6), "on a CPU a call is its operator's time"


def test_ranks_that_are_not_of_the_plan(tmp_path: Path, pair: list[Path]) -> None:
    larger = cuda_trace(rank=3)
    larger["distributedInfo"]["world_size"] = 4
    beyond = cuda_trace(rank=5)
    del beyond["distributedInfo"]["world_size"]
    others = [write(tmp_path, larger, "of-four.json"), write(tmp_path, beyond, "rank-5.json")]
    report = checked([pair[0], *others])
    problems = report.details["problems"]
    assert len(problems) == 3
    assert "of a run with 4 ranks" in problems[0]
    assert "rank 5, but plan dp2.mbs4 has ranks 0 to 1" in problems[1]
    assert "no trace of 1 of 2 ranks (1)" in problems[2]
    assert [rank["rank"] for rank in report.details["ranks"]] == [0]
    with pytest.raises(InputFileError, match="no trace is of the plan"):
        checked(others)


def test_model_and_plan_must_be_known(pair: list[Path]) -> None:
    with pytest.raises(UsageError, match="--plan"):
        checked(pair, plan=None)
    with pytest.raises(UsageError, match="--model"):
        checked(pair, model=None)


def test_a_damaged_record_of_the_run_says_so(tmp_path: Path) -> None:
    raw = cuda_trace()
    raw["foreshard"] = {"run": {"model": "no specification"}}
    with pytest.raises(InputFileError, match="its record of the run cannot be read"):
        validate_trace([write(tmp_path, raw)], hardware=GPU)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `foreshard validate trace`."""
    with pytest.raises(SystemExit) as stop:
        main(["validate", "trace", *args])
    out, err = capsys.readouterr()
    code = stop.value.code
    return (0 if code is None else int(code)), out, err


def test_the_command_prints_one_report(capsys: pytest.CaptureFixture[str], pair: list[Path]) -> None:
    common = [*map(str, pair), "-H", GPU, "-m", MODEL, "-p", "dp2.mbs4"]
    code, out, _ = run(capsys, *common, "--json")
    assert code == 0
    data = json.loads(out)
    assert all(set(row) - {"labels"} == ROW for row in data["rows"])
    assert {"by", "key", "n", "mape", "interval_coverage"} <= set(data["summary"][0])
    assert {(s["by"], s["key"]) for s in data["summary"]} >= {("table", "module"), ("phase", "backward")}
    assert [rank["parts_s"]["optimizer"] for rank in data["ranks"]] == pytest.approx([60e-6] * 2)
    code, out, _ = run(capsys, *common)
    assert code == 0
    for text in ("part of the step", "operator kinds", "a backward", "furthest off: host, 380 us too short"):
        assert text in out


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["no-such-trace.json"], 1, "does not exist"),
        (["-p", "tp0"], 2, "must be at least 1"),
        (["-m", "gpt9"], 2, "unknown model"),
        (["-H", "no-such-gpu"], 2, "no-such-gpu"),
        (["--framework", "nope"], 2, "unknown framework"),
        (["--optimizer", "nope"], 2, "unknown optimizer"),
    ],
)
def test_bad_input_ends_with_a_message(
    capsys: pytest.CaptureFixture[str], pair: list[Path], change: list[str], code: int, message: str
) -> None:
    found, out, err = run(capsys, str(pair[0]), "-H", GPU, "-m", MODEL, "-p", "dp2.mbs4", *change)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


def test_names_are_aligned_over_insertions_and_other_kernels() -> None:
    expected = [("t", "a"), ("mm", "a"), ("gelu", "b"), ("t", "c"), ("mm", "c"), ("norm", "d")]
    names = ["t", "mm", "cast", "gelu", "t", "fast_mm", "norm"]
    modules, n_equal = align(names, expected)
    assert modules == ["a", "a", "a", "b", "c", "c", "d"]
    assert n_equal == 5
    assert align([], expected) == ([], 0)
    assert align(["x", "y"], []) == (["", ""], 0)


def test_several_forwards_in_a_row_are_as_many_micro_batches() -> None:
    expected = [("mm", "a"), ("gelu", "b")]
    names = ["mm", "empty", "gelu", "mm", "gelu"]
    calls = [Call(i, name, "", "forward", 0, False, i, i + 1) for i, name in enumerate(names)]
    calls.append(Call(9, "mm", "", "backward", 0, False, 9, 10))
    calls += [Call(20 + i, n, "", "forward", 0, False, 20 + i, 21 + i) for i, n in enumerate(names[:3])]
    assigned, share = align_forward(calls, expected)
    assert [assigned[i] for i in range(5)] == ["a", "a", "b", "a", "b"]
    assert [assigned[20 + i] for i in range(3)] == ["a", "a", "b"]
    assert 9 not in assigned
    assert share == 1.0
