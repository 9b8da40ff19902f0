"""Real runs of tiny models on two gloo ranks: all strategies compute what one device computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from costmodel.errors import InputFileError, PlanError
from costmodel.hardware.store import load_profile
from costmodel.plan import Plan
from planner.validation import harness, launch
from planner.validation.harness import (
    PlannedRun,
    bubble_fraction,
    load_results,
    run_planned,
    run_specs,
    save_results,
    score_planned,
    score_runs,
    strategy_of,
)
from planner.validation.local import LocalForecaster
from planner.validation.run_spec import ModelSpec, RankResult, RunResult, RunSettings, RunSpec
from planner.validation.strategies.compose import check_runnable

SAMPLES = "tests.planner.validation.sample_models"
FAST = RunSettings(rounds=1, steps=1, min_round_s=0.0, profile=False, memory=False, timeout_s=30.0)


@dataclass(frozen=True)
class Forecast:
    step_time_s: float
    step_time_low_s: float
    step_time_high_s: float


def spec(name: str, plan: Plan, **styles: str) -> RunSpec:
    return RunSpec(
        model=ModelSpec(model=f"{SAMPLES}:{name}", name=name),
        plan=plan,
        tp_styles={path.replace("_", "."): style for path, style in styles.items()},
    )


def perceptron_specs() -> list[RunSpec]:
    columns = {"0": "colwise", "2": "rowwise", "4": "colwise", "6": "rowwise"}
    pipeline = Plan(pp=2, micro_batch_size=2, global_batch_size=8)
    return [
        spec("perceptron", Plan(micro_batch_size=8)),
        spec("perceptron", Plan(micro_batch_size=4, global_batch_size=8, recompute="full")),
        spec("perceptron", Plan(dp=2, micro_batch_size=4)),
        spec("perceptron", Plan(dp=2, micro_batch_size=2, global_batch_size=8)),
        spec("perceptron", Plan(dp=2, micro_batch_size=4, zero_stage=1)),
        spec("perceptron", Plan(dp=2, micro_batch_size=4, zero_stage=2)),
        spec("perceptron", Plan(dp=2, micro_batch_size=2, global_batch_size=8, zero_stage=3)),
        spec("perceptron", Plan(tp=2, micro_batch_size=8), **columns),
        spec("perceptron", pipeline),
        spec("perceptron", pipeline.with_(schedule="gpipe")),
        spec("perceptron", pipeline.with_(schedule="zb")),
        spec("perceptron", pipeline.with_(vpp=2)),
        spec("perceptron", pipeline.with_(vpp=2, schedule="zbv")),
        spec("unused_branch", Plan(dp=2, micro_batch_size=2, global_batch_size=8)),
        spec("unused_branch", Plan(dp=2, micro_batch_size=4, zero_stage=1, recompute="full")),
        spec("unused_branch", Plan(dp=2, micro_batch_size=4, zero_stage=3)),
        spec("unused_branch", pipeline),
    ]


@pytest.mark.distributed
def test_every_strategy_trains_like_one_device(tmp_path: Path) -> None:
    specs = perceptron_specs()
    specs.append(spec("perceptron", Plan(tp=2, micro_batch_size=8)))  # no styles: cannot be built
    results = run_specs(specs, FAST, directory=tmp_path)
    failed = results.pop()
    assert failed.failed is not None
    assert "tp_styles" in failed.failed
    for result in results:
        assert result.failed is None, (str(result.spec.plan), result.failed)
        assert result.loss_error is not None
        assert result.loss_error < 1e-5, str(result.spec.plan)
        assert len(result.reference_losses) == 2
        assert result.losses[0] != result.losses[1], "the optimizer must have moved the weights"
        assert len(result.ranks) == result.spec.plan.world_size
        assert result.step_time_s is not None
        assert result.step_time_s > 0
        assert len(result.step_times_s) == FAST.rounds
        assert result.environment["threads_per_rank"] == 1
        bubble = bubble_fraction(result)
        assert (bubble is None) == (result.spec.plan.pp == 1)
        assert bubble is None or 0.0 < bubble < 1.0
    path = tmp_path / "runs.json"
    save_results(results, path)
    assert load_results(path, path) == results * 2


@pytest.mark.distributed
@pytest.mark.slow
def test_rounds_go_on_while_times_are_not_known(tmp_path: Path) -> None:
    specs = [spec("perceptron", Plan(micro_batch_size=8)), spec("perceptron", Plan(dp=2, micro_batch_size=4))]
    results = run_specs(specs, replace(FAST, rounds=2, seconds_per_plan=1.5), directory=tmp_path)
    assert all(len(result.step_times_s) > 2 for result in results)


@pytest.mark.distributed
@pytest.mark.slow
def test_layers_that_dtensor_does_not_split_and_skips_over_stages(tmp_path: Path) -> None:
    pipeline = Plan(pp=2, micro_batch_size=2, global_batch_size=4)
    attention = {f"blocks.{i}.qkv": "colwise:3" for i in range(3)}
    attention |= {f"blocks.{i}.out": "rowwise" for i in range(3)}
    convolution = {f"{i}.up": "colwise" for i in range(2)} | {f"{i}.norm": "channels" for i in range(2)}
    convolution |= {f"{i}.down": "rowwise" for i in range(2)}
    specs = [
        spec("conv_net", Plan(tp=2, micro_batch_size=4), **convolution),
        spec("conv_net", pipeline),
        spec("mixed", Plan(tp=2, micro_batch_size=4), **attention),
        spec("mixed", pipeline),
        spec("tied", pipeline),
        spec("tied", pipeline.with_(vpp=2, schedule="zbv", micro_batch_size=1)),
    ]
    measured = RunSettings(rounds=1, steps=1, min_round_s=0.0, profile=True, memory=True)
    for result in run_specs(specs, measured, directory=tmp_path):
        assert result.failed is None, (result.spec.id, result.failed)
        assert result.loss_error is not None
        assert result.loss_error < 1e-5, result.spec.id
        for rank in result.ranks:
            assert rank.peak_memory_bytes is not None
            assert rank.peak_memory_bytes > rank.memory_by_kind_bytes["parameters"] > 0
            assert rank.communication_s is not None
            assert rank.communication_s > 0


@pytest.mark.distributed
@pytest.mark.slow
def test_hybrids_on_four_ranks(tmp_path: Path) -> None:
    columns = {"0": "colwise", "2": "rowwise", "4": "colwise", "6": "rowwise"}
    specs = [
        spec("perceptron", Plan(dp=2, tp=2, micro_batch_size=4), **columns),
        spec("perceptron", Plan(dp=2, tp=2, micro_batch_size=4, zero_stage=3), **columns),
        spec("perceptron", Plan(dp=2, pp=2, micro_batch_size=2, global_batch_size=8)),
        spec("perceptron", Plan(dp=2, pp=2, micro_batch_size=2, global_batch_size=8, zero_stage=3)),
        spec("perceptron", Plan(tp=2, pp=2, micro_batch_size=4, global_batch_size=8), **columns),
        spec("perceptron", Plan(dp=4, micro_batch_size=2, zero_stage=3, dp_shard=2)),
    ]
    for result in run_specs(specs, FAST, directory=tmp_path):
        assert result.failed is None, (str(result.spec.plan), result.failed)
        assert result.loss_error is not None
        assert result.loss_error < 1e-5, str(result.spec.plan)


@pytest.mark.distributed
def test_a_plan_whose_rank_dies_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    plans = [
        Plan(micro_batch_size=4),
        Plan(dp=2, micro_batch_size=2, zero_stage=3),
        Plan(dp=2, micro_batch_size=1, global_batch_size=4),
    ]
    heard: list[str] = []
    results = run_specs(
        [spec("dies_for_two", plan) for plan in plans], FAST, directory=tmp_path, progress=heard.append
    )
    assert [result.failed is None for result in results] == [True, False, True]
    assert "rank 1" in (results[1].failed or "")
    assert "SIGKILL" in (results[1].failed or "") or "exit code" in (results[1].failed or "")
    assert any("dies_for_two/dp2.mbs2.zero3 failed" in line for line in heard)
    forecast = Forecast(1.0, 0.9, 1.1)
    rows = score_runs(results, [forecast] * 3).rows
    assert [row.predicted for row in rows] == [1.0, None, 1.0]


@pytest.mark.distributed
def test_ranks_that_never_start_fail_every_plan_of_their_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.sys, "executable", "/bin/false")
    results = run_specs(perceptron_specs()[:2], FAST, directory=tmp_path)
    assert ["exit code 1" in (result.failed or "") for result in results] == [True, True]


def test_plans_without_a_forecast_are_rows_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = perceptron_specs()[:3]
    forecast = Forecast(1.1, 0.9, 1.3)
    planned = [
        PlannedRun(spec=first, forecast=forecast, no_skill_s=2.0),
        PlannedRun(spec=second, forecast=PlanError("tp(3) does not divide")),
        PlannedRun(spec=third, forecast=forecast, no_skill_s=2.0),
    ]

    def run(specs: list[RunSpec], settings: RunSettings, **others: object) -> list[RunResult]:
        assert specs == [first, third]
        return [result_of(one, 1.0) for one in specs]

    monkeypatch.setattr(harness, "run_specs", run)
    results = run_planned(planned, FAST)
    rows = score_planned(planned, results).rows
    assert [row.measured for row in rows] == [1.0, None, 1.0]
    assert rows[1].skipped == "not forecast: tp(3) does not divide"
    assert [row.baseline_value for row in rows] == [2.0, None, 2.0]
    with pytest.raises(PlanError, match="does not divide"):
        run_planned(planned[1:2], FAST)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["gbs8", "gbs16"])
def test_memory_of_replicas_and_shards(tmp_path: Path, schedule: str) -> None:
    """DDP's buckets, the optimizer's shares, what FSDP2 gathers and reduces unit by unit."""
    sizes = {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 2048, "n_positions": 64}
    local = LocalForecaster(
        ModelSpec(model="gpt2", name="gpt2", seq_len=64, overrides=sizes), load_profile("epyc-9005-core")
    )
    runs = [local.spec(Plan.parse(f"dp2.mbs4.{schedule}.zero{stage}")) for stage in range(4)]
    measured = RunSettings(rounds=1, steps=1, min_round_s=0.0, profile=False, memory=True, timeout_s=30.0)
    results = run_specs([run for run, _ in runs], measured, directory=tmp_path)
    for result, (_, prediction) in zip(results, runs, strict=True):
        assert result.failed is None, result.failed
        real = result.ranks[0].peak_memory_bytes
        assert prediction.memory[0].allocated_bytes == pytest.approx(real, rel=0.01), str(result.spec.plan)


@pytest.mark.distributed
@pytest.mark.slow
def test_replicas_of_stages_have_room_for_what_no_gradient_reaches(tmp_path: Path) -> None:
    """As replicas of a whole model have: DDP is told of it, and reduces zeros."""
    profile = load_profile("epyc-9005-core")
    assert profile.network is not None
    network = profile.network.model_copy(update={"ranks_per_node": 4})
    model = ModelSpec(model=f"{SAMPLES}:unused_branch", name="unused_branch")
    local = LocalForecaster(model, profile.model_copy(update={"network": network}))
    run, prediction = local.spec(Plan.parse("dp2.pp2.mbs2.gbs8"))
    measured = RunSettings(rounds=1, steps=1, min_round_s=0.0, profile=False, memory=True, timeout_s=30.0)
    (result,) = run_specs([run], measured, directory=tmp_path)
    assert result.failed is None, result.failed
    assert result.loss_error is not None
    assert result.loss_error < 1e-5
    for stage in (0, 1):
        real = result.ranks[2 * stage].peak_memory_bytes
        assert prediction.memory[stage].allocated_bytes == pytest.approx(real, rel=0.05)


def result_of(run: RunSpec, seconds: float, error: float = 0.0) -> RunResult:
    return RunResult(
        spec=run,
        device="cpu",
        step_times_s=((seconds,),),
        step_time_s=seconds,
        spread_fraction=0.01,
        ranks=(RankResult(rank=0, median_s=seconds),),
        loss_error=error,
    )


def test_scores_say_why_a_run_does_not_count() -> None:
    specs = perceptron_specs()[:3]
    results = [
        result_of(specs[0], 1.0),
        result_of(specs[1], 2.0, error=0.5),
        RunResult(spec=specs[2], device="cpu", failed="rank 0: no"),
    ]
    forecast = Forecast(1.1, 0.9, 1.3)
    report = score_runs(results, [forecast, forecast, forecast])
    assert report.overall.n == 1
    assert report.overall.mape == pytest.approx(0.1)
    assert report.overall.interval_coverage == 1.0
    reasons = [row.skipped for row in report.rows]
    assert reasons[0] is None
    assert "differ from single-device" in (reasons[1] or "")
    assert reasons[2] == "rank 0: no"
    detail = report.to_dict()["runs"][0]
    assert {"environment", "n_ranks", "repeats", "spread_fraction"} <= set(detail)


@pytest.mark.parametrize(
    ("plan", "name"),
    [
        (Plan(), "single"),
        (Plan(dp=2), "ddp"),
        (Plan(dp=2, zero_stage=3), "fsdp"),
        (Plan(dp=4, zero_stage=3, dp_shard=2), "hsdp"),
        (Plan(dp=2, tp=2), "ddp x tp"),
        (Plan(pp=2, vpp=2, micro_batch_size=1, global_batch_size=4), "pp-1f1b-v2"),
    ],
)
def test_strategy_names(plan: Plan, name: str) -> None:
    assert strategy_of(spec("perceptron", plan)) == name


@pytest.mark.parametrize(
    "plan",
    [
        Plan(cp=2),
        Plan(dp=2, ep=2),
        Plan(tp=2, sequence_parallel=True),
        Plan(recompute="selective"),
        Plan(flags=("offload",)),
    ],
)
def test_nothing_of_a_plan_is_left_out_silently(plan: Plan) -> None:
    with pytest.raises(PlanError, match="no real run"):
        check_runnable(plan)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 99, "runs": []}', '{"format": 1, "runs": [{}]}'])
def test_run_files_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "runs.json"
    path.write_text(text)
    with pytest.raises(InputFileError, match=r"runs\.json"):
        load_results(path)


def test_predictions_are_restated_for_the_speed_of_the_machine() -> None:
    """The yardstick took 20 % longer beside the runs than when the profile was measured."""

    def measured(plan: Plan, step_time_s: float, yardstick_s: float) -> RunResult:
        ranks = tuple(
            RankResult(rank=r, median_s=step_time_s, yardstick_s=yardstick_s) for r in range(plan.world_size)
        )
        return RunResult(spec=spec("perceptron", plan), device="cpu", step_time_s=step_time_s, ranks=ranks)

    results = [
        measured(Plan(dp=2, micro_batch_size=4), 1.2, 0.010),
        measured(Plan(tp=2, micro_batch_size=8), 2.4, 0.014),  # took turns with the first: one figure, 0.012
        measured(Plan(micro_batch_size=8), 3.0, 0.009),
    ]
    forecasts = [Forecast(t, 0.9 * t, 1.1 * t) for t in (1.0, 2.0, 3.0)]
    report = score_runs(results, forecasts, yardstick_s={"together": 0.010, "alone": 0.009})
    assert [row.error for row in report.rows] == pytest.approx([0.0, 0.0, 0.0])
    assert report.rows[0].high == pytest.approx(1.1 * 1.2)
    assert report.details["as_calibrated"]["mape"] == pytest.approx((1 / 6 + 1 / 6) / 3)
    plain = score_runs(results, forecasts)
    assert plain.rows[0].predicted == 1.0
