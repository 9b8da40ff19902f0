"""What a choice hangs on: the weights are the derivatives of the forecast."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path

import pytest

from calibrate.benchmarks.base import Bench
from calibrate.benchmarks.exact import exact_case
from calibrate.wanted import CONSTANT, Wanted
from costmodel.errors import InfeasibleError, InputFileError
from costmodel.hardware.kinds import COLLECTIVE_KINDS
from costmodel.plan import Plan
from costmodel.predict import Forecaster, Prediction
from planner.deciding import list_for
from planner.problem import Problem, read_plan_file
from planner.wanted import contenders_of, wanted_list

PROBLEM = Problem(
    model="mlp-mnist",
    hardware="epyc-core",
    n_devices=2,
    global_batch_size=64,
    overrides=("width=256", "depth=4"),
)
PLANS = ("dp2.mbs32", "dp2.mbs32.zero3", "tp2.mbs64", "pp2.mbs16.gbs64")


@lru_cache(maxsize=1)
def forecaster() -> Forecaster:
    return PROBLEM.forecaster()


@lru_cache(maxsize=1)
def predictions() -> tuple[Prediction, ...]:
    return tuple(forecaster().forecast(Plan.parse(text)).prediction for text in PLANS)


@lru_cache(maxsize=1)
def wanted() -> Wanted:
    return wanted_list(forecaster(), predictions())


def test_a_machine_twice_as_slow_makes_every_step_twice_as_long() -> None:
    """Steps are sums and maxima of item times: the weights of what scales with time add up to one."""
    scaling = [i for i in wanted().items if i.variant not in ("overlap", "contention_s_per_byte")]
    for place in range(len(PLANS)):
        assert sum(i.weights[place] for i in scaling) == pytest.approx(1.0, abs=0.1)


def test_an_operator_s_weight_is_its_share() -> None:
    gemms = {i.name: i for i in wanted().items if i.kind == "gemm"}
    largest = max(gemms.values(), key=lambda i: i.weights[0])
    fit = [f for f in forecaster().profile.operators if f.kind == "gemm" and f.variant == largest.variant]
    slower = forecaster().profile.model_copy(
        update={
            "operators": tuple(
                f.model_copy(update={"log_offset": 0.1}) if f in fit else f
                for f in forecaster().profile.operators
            )
        }
    )
    before = predictions()[0].step_time_s
    after = forecaster().on(profile=slower).forecast(Plan.parse(PLANS[0])).prediction.step_time_s
    together = sum(i.weights[0] for i in gemms.values() if i.variant == largest.variant)
    assert math.log(after / before) / 0.1 == pytest.approx(together, rel=0.15)


def test_only_what_a_plan_runs_weighs_on_it() -> None:
    gathers = [i.weights for i in wanted().items if i.kind == "all_gather"]
    assert sum(w[0] for w in gathers) == 0.0  # DDP gathers nothing
    assert sum(w[1] for w in gathers) > 0.0
    constants = {i.variant: i.weights for i in wanted().items if i.kind == CONSTANT}
    assert constants["ddp_bucket_s"][0] > 0.0
    assert constants["ddp_bucket_s"][2] == pytest.approx(0.0, abs=1e-9)
    assert constants["fsdp_unit_s"][1] > constants["fsdp_unit_s"][0]


def test_nearly_all_of_a_step_can_be_measured() -> None:
    import torch

    bench = Bench(torch.device("cpu"), cache_bytes=1 << 20, flop_per_s=1e11, bytes_per_s=1e10, largest_s=1e-3)
    operators = [i for i in wanted().items if i.kind not in (CONSTANT, *COLLECTIVE_KINDS)]
    able = [
        i
        for i in operators
        if exact_case(bench, i.kind, i.variant, i.dtype, i.dims, images=i.images) is not None
    ]
    for place in range(len(PLANS)):
        known, all_ = (sum(i.weights[place] for i in group) for group in (able, operators))
        assert known > 0.9 * all_


def test_contenders_are_those_that_may_win() -> None:
    found = contenders_of(predictions())
    times = [p.step_time_s for p in found]
    assert times == sorted(times)
    assert 2 <= len(found) <= len(PLANS)
    assert times[0] == min(p.step_time_s for p in predictions())


def test_the_list_of_a_problem() -> None:
    found = list_for(forecaster(), [Plan.parse(p) for p in PLANS])
    assert found.wanted.contenders == tuple(str(p.plan) for p in found.contenders)
    with pytest.raises(InfeasibleError, match="at least two"):
        list_for(forecaster(), [Plan.parse(PLANS[0])])


def test_a_plan_file_says_what_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    written = {"problem": PROBLEM.to_dict(), "plans": [p.to_dict() for p in predictions()]}
    path.write_text(json.dumps(written))
    read = read_plan_file(path)
    assert read.problem == PROBLEM
    assert read.plans == tuple(p.plan for p in predictions())
    # without the problem the names in the plans do not give the same model: width and depth are missing
    path.write_text(json.dumps({"plans": written["plans"]}))
    with pytest.raises(InputFileError, match="does not say what was asked"):
        read_plan_file(path)
    for broken in ("", "[]", '{"plans": []}', '{"plans": [{"plan": "dp0", "step_time_s": 1}]}'):
        path.write_text(broken)
        with pytest.raises(InputFileError, match="not a list of plans"):
            read_plan_file(path)
    with pytest.raises(InputFileError, match="not a list of plans"):
        read_plan_file(tmp_path / "missing.json")
