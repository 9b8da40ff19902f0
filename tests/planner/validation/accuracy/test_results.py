"""Results of several machines: each keeps its environment, no measurement counts twice."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from costmodel.errors import InputFileError, MeasurementError
from costmodel.plan import Plan
from planner.validation.accuracy.report import accuracy_report
from planner.validation.accuracy.results import merged_rows, read_result, read_results
from planner.validation.harness import score_runs
from planner.validation.run_spec import ModelSpec, RunResult, RunSpec
from tests.planner.validation.accuracy.made import four_plans, row, run_result, written


def test_two_machines_runs_are_two_sources_with_their_environments(tmp_path: Path) -> None:
    paths = [run_result(tmp_path / f"{name}.json", name, t) for name, t in (("left", 1.0), ("right", 2.0))]
    results = read_results(paths)
    assert [dict(r.environments[0])["processor"] for r in results] == ["left", "right"]
    assert [r.written for r in results] == ["2026-01-02T03:04:05Z"] * 2
    rows = merged_rows(results)
    assert [r.source for r in rows] == ["runs: left, 2 cores", "runs: right, 2 cores"]
    assert len({r.group for r in rows}) == 2  # plans are ranked among those of their own machine
    assert {r.label("strategy") for r in rows} == {"DP"}
    assert {r.label("n_gpus") for r in rows} == {"2"}


def test_a_merged_report_is_a_result_again(tmp_path: Path) -> None:
    first = accuracy_report(
        [run_result(tmp_path / "a.json", "left", 1.0), written(tmp_path / "b.json", four_plans())]
    )
    path = tmp_path / "merged.json"
    first.to_report().write(path)
    again = accuracy_report([path, run_result(tmp_path / "c.json", "right", 3.0)])
    assert again.overall.ours.n == first.overall.ours.n + 1
    machines = [e.get("processor") for result in again.results for e in result.environments]
    assert machines == ["left", "right"]
    assert again.results[0].kind == "merged"


def test_the_same_measurement_twice_is_refused(tmp_path: Path) -> None:
    a = written(tmp_path / "a.json", four_plans())
    b = written(tmp_path / "b.json", four_plans())
    with pytest.raises(MeasurementError, match=r"is in a\.json and in b\.json: a measurement counts once"):
        read_results([a, b])
    other = written(tmp_path / "c.json", four_plans(shift=1.5))
    assert len(merged_rows(read_results([a, other]))) == 8


def test_what_failed_on_both_machines_is_no_measurement(tmp_path: Path) -> None:
    broken = [row("x", 1.0, None), row("y", 2.0, 2.0)]
    a = written(tmp_path / "a.json", broken[:1])
    b = written(tmp_path / "b.json", broken[1:])
    assert len(merged_rows(read_results([a, b]))) == 2


@pytest.mark.parametrize(
    ("text", "what"),
    [("{}", "not a validation report"), ("nothing", "not a validation report"), (None, "No such")],
)
def test_other_files_are_refused(tmp_path: Path, text: str | None, what: str) -> None:
    path = tmp_path / "f.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputFileError, match=what):
        read_result(path)


@pytest.mark.parametrize(
    ("key", "value"), [("labels", ["gpu"]), ("labels", {"gpu": 3}), ("baseline_value", "x"), ("breakdown", 1)]
)
def test_rows_that_are_damaged_are_refused(tmp_path: Path, key: str, value: object) -> None:
    path = written(tmp_path / "r.json", four_plans())
    data = json.loads(path.read_text())
    data["rows"][1][key] = value
    path.write_text(json.dumps(data))
    with pytest.raises(InputFileError, match="make the result anew"):
        read_result(path)


@pytest.mark.parametrize("details", [{"results": 3}, {"runs": [{}]}, {"results": [{"environments": [1]}]}])
def test_details_that_are_damaged_are_refused(tmp_path: Path, details: dict[str, object]) -> None:
    with pytest.raises(InputFileError, match="make the result anew"):
        read_result(written(tmp_path / "r.json", four_plans(), **details))


def test_a_run_has_its_plan_ranks_and_no_skill_forecast() -> None:
    run = RunSpec(model=ModelSpec(model="m", name="m"), plan=Plan.parse("dp2"))
    result = RunResult(spec=run, device="cpu", step_times_s=((1.0,),), step_time_s=1.0, ranks=())
    forecast = SimpleNamespace(
        step_time_s=1.1,
        step_time_low_s=0.9,
        step_time_high_s=1.3,
        breakdown_s={"compute": 0.55, "host": 0.55},
    )
    (scored,) = score_runs([result], [forecast], no_skill_s=[0.25]).rows
    assert scored.baseline_value == 0.25
    assert scored.breakdown == {"compute": 0.5, "host": 0.5}
    assert (scored.label("plan"), scored.label("n_gpus")) == ("dp2", "2")


def test_a_result_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="holds no row"):
        read_result(written(tmp_path / "empty.json", []))
