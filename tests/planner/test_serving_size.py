"""Sizes of servers: the limits are kept at the rate given, and broken just above the rate found."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from statistics import NormalDist

import pytest

from costmodel.errors import InfeasibleError, UsageError
from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict.inference import InferenceForecaster
from costmodel.predict.serving import serve
from planner.serving_size import LatencyGoal, ServingSize, replica_plans, size_serving

PROMPT, OUTPUT = 128, 32
SIZES = {"n_layer": 2, "n_embd": 256, "n_head": 8, "vocab_size": 512, "n_positions": 512}
PLANS = (Plan(tp=1), Plan(tp=2))


@lru_cache(maxsize=1)
def server() -> InferenceForecaster:
    return InferenceForecaster(
        source=resolve("gpt2", overrides=SIZES, seq_len=PROMPT),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework("pytorch-bf16"),
    )


def size(goal: LatencyGoal, price: float | None = 2.0) -> ServingSize:
    return size_serving(
        {"a": server()},
        goal=goal,
        prompt_len=PROMPT,
        output_len=OUTPUT,
        prices={} if price is None else {"a": price},
        plans=PLANS,
    )


@pytest.fixture(scope="module")
def alone() -> float:
    return (
        server().generate(Plan(), batch_size=1, prompt_len=PROMPT, output_len=OUTPUT).time_per_output_token_s
    )


def test_limits_are_kept_and_the_rate_is_the_highest(alone: float) -> None:
    goal = LatencyGoal(rate_per_s=3000.0, tpot_s=2.0 * alone)
    found = size(goal)
    for replica in found.replicas:
        assert replica.n_replicas == math.ceil(goal.rate_per_s / replica.rate_per_s)
        assert replica.n_devices == replica.n_replicas * replica.plan.tp
        assert replica.usd_per_hour == pytest.approx(2.0 * replica.n_devices)
        one = server().generate(replica.plan, batch_size=1, prompt_len=PROMPT, output_len=OUTPUT)
        stretch = math.exp(NormalDist().inv_cdf(0.9) * one.log_sigma)

        def token_s(rate: float, replica=replica) -> float:  # type: ignore[no-untyped-def]
            served = serve(server(), replica.plan, prompt_len=PROMPT, output_len=OUTPUT, rate_per_s=rate)
            return served.time_per_output_token_s

        assert token_s(replica.rate_per_s) * stretch <= goal.tpot_s
        assert token_s(replica.rate_per_s * 1.01) * stretch > goal.tpot_s
    assert found.fewest.n_devices == min(r.n_devices for r in found.replicas)
    json.dumps(found.to_dict())


def test_more_rate_or_tighter_limits_need_no_fewer_devices(alone: float) -> None:
    counts = [size(LatencyGoal(rate_per_s=r, tpot_s=3 * alone)).fewest.n_devices for r in (100, 3000, 30000)]
    assert counts == sorted(counts)
    counts = [
        size(LatencyGoal(rate_per_s=3000.0, tpot_s=f * alone)).fewest.n_devices for f in (10.0, 3.0, 1.8)
    ]
    assert counts == sorted(counts)


def test_without_prices_there_is_no_cheapest(alone: float) -> None:
    assert size(LatencyGoal(rate_per_s=1.0), price=None).cheapest is None


def test_limits_that_nothing_keeps_name_the_nearest(alone: float) -> None:
    with pytest.raises(InfeasibleError, match="each further token takes") as stop:
        size(LatencyGoal(rate_per_s=1.0, tpot_s=alone / 10))
    assert stop.value.exit_code == 3
    with pytest.raises(InfeasibleError, match="first token takes"):
        size(LatencyGoal(rate_per_s=1.0, ttft_s=1e-9))


@pytest.mark.parametrize("wrong", [{"rate_per_s": 0.0}, {"rate_per_s": 1.0, "ttft_s": -1.0}])
def test_goals_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be positive"):
        LatencyGoal(**wrong)


def test_shapes_of_replicas() -> None:
    assert [str(p) for p in replica_plans(8, 2)] == ["dp1", "tp2", "tp4", "tp8", "tp8.pp2"]
