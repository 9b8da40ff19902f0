"""Answers with kept keys and values: real gloo ranks say the same tokens as one device, beside a forecast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from costmodel.errors import PlanError, UsageError
from costmodel.hardware.store import load_profile
from costmodel.plan import Plan
from planner.validation.answers import answer_plans, validate_answers
from planner.validation.local import LocalForecaster, validate_local
from planner.validation.run_spec import ModelSpec, RunSettings, RunSpec
from planner.validation.standard import StandardModel
from planner.validation.strategies.answering import build_answerer, check_answerable

TINY = ModelSpec(
    model="gpt2",
    seq_len=32,
    overrides={"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 128, "n_positions": 64},
    name="tiny",
)
GROUPED = ModelSpec(
    model="llama-2-7b",
    seq_len=32,
    overrides={
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
    },
    name="grouped",
)
FAST = RunSettings(rounds=1, steps=1, min_round_s=0.0, profile=False, timeout_s=30.0)


@pytest.mark.distributed
@pytest.mark.slow
def test_ranks_answer_as_one_device_does_and_are_scored(tmp_path: Path) -> None:
    profile = load_profile("epyc-9005-core")
    report = validate_answers(
        [StandardModel(model=model, global_batch_size=4) for model in (TINY, GROUPED)],
        plans=None,
        profile=profile,
        prompt_len=16,
        output_len=5,
        settings=FAST,
        local_of=lambda model: LocalForecaster(model, profile),
        out=tmp_path / "answers.json",
    )
    runs = report.details["runs"]
    assert [run["plan"] for run in runs] == [str(plan) for plan in answer_plans(4)] * 2
    for run in runs:
        assert run["failed"] is None
        assert run["loss_error"] < 1e-4  # the mean log-likelihood of the tokens it chose
        assert 0.0 < run["ranks"][0]["first_token_s"] < run["step_time_s"]
        assert run["ranks"][0]["peak_memory_bytes"] > 0
    assert all(row.skipped is None for row in report.rows)
    metrics = [row.metric for row in report.rows]
    assert metrics.count("time_to_first_token_s") == metrics.count("time_per_output_token_s") == 6
    whole = {r.id: r for r in report.rows}["tiny/dp2.mbs2"]
    parts = [r for r in report.rows if r.id.startswith("tiny/dp2.mbs2 time")]
    assert whole.predicted == pytest.approx((parts[0].predicted or 0.0) + 4 * (parts[1].predicted or 0.0))
    assert (tmp_path / "answers.json").exists()


def test_what_cannot_answer_says_why() -> None:
    image = ModelSpec(model="mlp-mnist", name="image")
    for model, length, why in ((TINY, 40, "take a shorter prompt"), (image, 4, "cannot answer")):
        spec = RunSpec(model=model, plan=Plan(micro_batch_size=1), prompt_len=length, output_len=2)
        with pytest.raises(UsageError, match=why):
            build_answerer(spec, None, torch.device("cpu"), replica=0)


@pytest.mark.parametrize("plan", ["pp2.mbs4", "dp2.zero3.mbs2", "mbs2.gbs4", "mbs4.full"])
def test_plans_without_a_real_answer_are_refused(plan: str) -> None:
    with pytest.raises(PlanError, match="answer"):
        check_answerable(Plan.parse(plan))


def test_lengths_go_together() -> None:
    with pytest.raises(UsageError, match="both positive"):
        RunSpec(model=TINY, plan=Plan(), prompt_len=4)
    with pytest.raises(UsageError, match="go together"):
        validate_local(models=None, plans=None, hardware="epyc-9005-core", prompt_len=4)


def test_a_bucket_cap_reaches_run_and_forecast() -> None:
    profile = load_profile("epyc-9005-core")
    plain = LocalForecaster(TINY, profile)
    capped = LocalForecaster(TINY, profile, bucket_cap_mb=0.01)
    plan = Plan(dp=2, micro_batch_size=2)
    run, forecast = capped.spec(plan)
    assert run.bucket_cap_mb == 0.01
    # many small all-reduces instead of one
    assert forecast.breakdown_s["dp_comm"] > plain.spec(plan)[1].breakdown_s["dp_comm"]


@pytest.mark.parametrize(("cap_mb", "length"), [(0.0, None), (1.0, 4)])
def test_bucket_caps_are_positive_and_of_gradients(cap_mb: float, length: int | None) -> None:
    with pytest.raises(UsageError, match="--bucket-mb"):
        validate_local(
            models=None,
            plans=None,
            hardware="epyc-9005-core",
            bucket_cap_mb=cap_mb,
            prompt_len=length,
            output_len=length,
        )
