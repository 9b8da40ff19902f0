"""Files of `validate run` as runs to learn from: both of its forms, and what is left out for which reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from costmodel.errors import InputFileError
from costmodel.hardware.schema import HardwareProfile
from costmodel.hardware.store import load_profile
from costmodel.plan import Plan
from planner.learning.runs import read_learning_runs
from planner.validation.harness import save_results, score_runs
from planner.validation.run_spec import ModelSpec, RankResult, RunResult, RunSpec

SAMPLE = ModelSpec(model="tests.planner.validation.sample_models:perceptron", name="perceptron")


@pytest.fixture(scope="module")
def profile() -> HardwareProfile:
    found = load_profile("epyc-9005-core")
    return found.model_copy(update={"yardstick_s": {"alone": 0.005, "together": 0.005}})


def result(plan: str, *, yardstick_s: float = 0.005, threads: int = 1) -> RunResult:
    return RunResult(
        spec=RunSpec(model=SAMPLE, plan=Plan.parse(plan)),
        device="cpu",
        step_times_s=((0.010, 0.012), (0.011, 0.011)),
        step_time_s=0.011,
        spread_fraction=0.1,
        ranks=(RankResult(rank=0, median_s=0.011, yardstick_s=yardstick_s),),
        environment={"threads_per_rank": threads},
    )


def test_both_forms_of_a_result_are_the_same_runs(tmp_path: Path, profile: HardwareProfile) -> None:
    results = [result("mbs8"), result("dp2.mbs4")]
    kept, printed = tmp_path / "kept.json", tmp_path / "printed.json"
    save_results(results, kept)
    printed.write_text(score_runs(results, ["none", "none"]).to_json())
    first, skipped = read_learning_runs(profile, [kept])
    second, _ = read_learning_runs(profile, [printed])
    assert not skipped
    assert [run.fingerprint for run in first] == [run.fingerprint for run in second]
    assert [run.label for run in first] == ["perceptron/mbs8", "perceptron/dp2.mbs4"]
    assert [run.group for run in first] == ["perceptron/1", "perceptron/2"]
    assert first[0].step_time_s == pytest.approx(0.011)
    assert 0 < first[0].log_sigma < 0.1


def test_times_are_those_of_the_machine_as_it_was_calibrated(
    tmp_path: Path, profile: HardwareProfile
) -> None:
    path = tmp_path / "runs.json"
    save_results([result("mbs8", yardstick_s=0.010)], path)  # the machine ran at half its speed
    runs, _ = read_learning_runs(profile, [path])
    assert runs[0].step_time_s == pytest.approx(0.0055)


def test_what_cannot_teach_is_left_out_with_its_reason(tmp_path: Path, profile: HardwareProfile) -> None:
    path = tmp_path / "runs.json"
    threads = profile.environment.threads
    assert threads
    failed = replace(result("mbs8"), failed="out of memory", step_time_s=None)
    on_gpu = replace(result("mbs8"), device="cuda")
    other = result("mbs8", threads=threads + 3)
    save_results([result("mbs8", threads=threads), failed, on_gpu, other], path)
    runs, skipped = read_learning_runs(profile, [path])
    assert len(runs) == 1
    assert sorted(skipped.values()) == [1, 1, 1]
    for said in ("out of memory", "cuda", f"{threads + 3} threads"):
        assert any(said in reason for reason in skipped)
    save_results([failed], path)
    with pytest.raises(InputFileError, match="out of memory"):
        read_learning_runs(profile, [path])
    path.write_text(json.dumps({"rows": []}))
    with pytest.raises(InputFileError, match="validate run"):
        read_learning_runs(profile, [path])
