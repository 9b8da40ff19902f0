"""Specs and results go through JSON unchanged; impossible ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from costmodel.errors import InputFileError, PlanError, UsageError
from costmodel.plan import Plan
from planner.validation.run_spec import Job, ModelSpec, RankResult, RunResult, RunSpec

MODEL = ModelSpec(model="gpt2", overrides={"n_layer": 2}, seq_len=16, name="tiny")
SPEC = RunSpec(
    model=MODEL,
    plan=Plan(pp=2, tp=2, micro_batch_size=1, global_batch_size=4, schedule="gpipe"),
    stage_modules=(("a", "b"), ("c",)),
    blocks=("a", "b", "c"),
    tp_styles={"a": "colwise:3"},
    optimizer="sgd",
)


def test_job_round_trips(tmp_path: Path) -> None:
    job = Job(specs=(SPEC,), world_size=4, directory=str(tmp_path))
    path = tmp_path / "job.json"
    path.write_text(job.to_json())
    assert Job.load(path) == job


def test_result_round_trips() -> None:
    result = RunResult(
        spec=SPEC,
        device="cpu",
        step_times_s=((0.1, 0.2), (0.3,)),
        step_time_s=0.2,
        ranks=(RankResult(rank=0, median_s=0.2, memory_by_kind_bytes={"parameters": 3}),),
        losses=(1.0,),
        notes=("n",),
        environment={"cores": 2},
    )
    assert RunResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="optimizer 'lion'"):
        RunSpec(model=MODEL, plan=Plan(), optimizer="lion")
    with pytest.raises(UsageError, match=r"1 stages given, but pp\(2\)"):
        RunSpec(model=MODEL, plan=Plan(pp=2, micro_batch_size=1), stage_modules=(("a",),))
    with pytest.raises(PlanError, match=r"world_size\(2\)"):
        Job(specs=(SPEC,), world_size=2, directory=str(tmp_path))
    with pytest.raises(UsageError, match="rounds=0"):
        Job(specs=(), world_size=2, directory=str(tmp_path), rounds=0)
    with pytest.raises(UsageError, match="timeout_s"):
        Job(specs=(), world_size=2, directory=str(tmp_path), timeout_s=0.0)
    broken = tmp_path / "job.json"
    broken.write_text('{"specs": [{"model": 1}]}')
    with pytest.raises(InputFileError, match="job file"):
        Job.load(broken)
