"""The search against exhaustive evaluation with the event engine, and what it says of what it left out."""

from __future__ import annotations

import random
from functools import lru_cache

import pytest

from costmodel.errors import InfeasibleError, PlanError
from costmodel.framework import load_framework
from costmodel.graph import GraphStore
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict import Forecast, Forecaster
from planner.search import SearchOptions, search

SIZES = {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 256, "n_positions": 32}
N_PROBLEMS = 200
GRAPHS = GraphStore()


class Remembering(Forecaster):
    """Forecasts each plan once."""

    def forecast(self, plan: Plan) -> Forecast:
        known = self.__dict__.setdefault("known", {})
        if plan not in known:
            known[plan] = super().forecast(plan)
        found: Forecast = known[plan]
        return found


@lru_cache(maxsize=8)
def forecaster(framework: str = "pytorch", memory: float = 80e9) -> Forecaster:
    profile = load_profile("a100-sxm4-80gb")
    device = profile.device.model_copy(update={"memory_bytes": memory})
    return Remembering(
        source=resolve("gpt2", overrides=SIZES, seq_len=32),
        profile=profile.model_copy(update={"device": device}),
        framework=load_framework(framework),
        graphs=GRAPHS,
    )


def problem(number: int) -> tuple[Forecaster, int, int, SearchOptions]:
    rng = random.Random(number)
    framework, memory = rng.choice(
        [("pytorch", 80e9), ("megatron", 80e9), ("megatron-core", 80e9), ("pytorch", 12e6)]
    )
    return (
        forecaster(framework, memory),
        rng.choice([2, 4, 8, 16]),
        rng.choice([4, 8, 16]),
        SearchOptions(
            schedules=rng.sample(["gpipe", "1f1b", "zb-h1"], rng.choice([1, 2])),
            zero_stages=rng.sample([0, 1, 2, 3], rng.choice([1, 2])),
            recompute=rng.sample(["none", "full"], 1),
            vpp=rng.choice([(1,), (1, 2)]),
            tp=rng.choice([(1,), (1, 2), (2, 4)]),
            max_micro_batch_size=rng.choice([1, 2, 4]),
        ),
    )


def exhaustive(made: Forecaster, options: SearchOptions, n: int, batch: int) -> list[float]:
    """Step times of all plans that fit, by the event engine alone; offloaded ones where they must be."""
    from costmodel.closed_form.space import enumerate_plans
    from planner.search.space import choices_of

    space = enumerate_plans(choices_of(made, n, batch, options))
    times = []
    for row in range(len(space)):
        plan = space.plan(row)
        try:
            if space.columns["offload"][row] and made.forecast(plan.with_(flags=())).prediction.fits:
                continue
            prediction = made.forecast(plan).prediction
        except PlanError:
            continue
        if prediction.fits:
            times.append(prediction.step_time_s)
    return sorted(times)


@pytest.mark.slow
def test_equals_exhaustive_evaluation() -> None:
    skipped = infeasible = 0
    for number in range(N_PROBLEMS):
        made, n, batch, options = problem(number)
        every = exhaustive(made, options, n, batch)
        try:
            found = search(made, n_devices=n, global_batch_size=batch, options=_pruning(options), top=1)
        except InfeasibleError:
            assert not every
            infeasible += 1
            continue
        assert found.proven
        assert found.n_feasible == len(every)
        assert found.ranked[0].prediction.step_time_s == pytest.approx(every[0], rel=1e-9), number
        skipped += found.n_skipped
    assert skipped > 500, "the bounds should spare the engine work"
    assert infeasible < N_PROBLEMS // 4


def _pruning(options: SearchOptions) -> SearchOptions:
    from dataclasses import replace

    return replace(options, exhaustive_below=0)


def test_result_adds_up() -> None:
    found = search(forecaster(), n_devices=8, global_batch_size=16)
    assert found.n_considered == found.n_feasible + sum(found.n_excluded.values())
    assert found.n_feasible == found.n_skipped + len(found.ranked)
    times = [r.prediction.step_time_s for r in found.ranked]
    assert times == sorted(times)
    assert len(times) >= 12
    assert found.ranked[0].probability_best == 0.5
    document = found.to_dict(top=3)
    assert len(document["plans"]) == 3
    assert document["proven"]


def test_front_holds_no_plan_that_another_beats_twice() -> None:
    front = search(forecaster(), n_devices=8, global_batch_size=16).pareto
    for a in front:
        assert not any(
            b.step_time_s < a.step_time_s and b.peak_memory_bytes < a.peak_memory_bytes for b in front
        )
    assert min(p.peak_memory_bytes for p in front) < front[0].peak_memory_bytes or len(front) == 1


def test_experts_are_tried_whole_where_one_degree_is_asked_for() -> None:
    from planner.search.space import choices_of

    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 128}
    made = Forecaster(
        source=resolve("mixtral-8x7b", overrides={**sizes, "num_local_experts": 4}, seq_len=16),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework("megatron-core"),
    )
    for degrees, whole in (((4,), True), ((1,), False), (None, True)):
        assert choices_of(made, 8, 8, SearchOptions(ep=degrees)).whole_experts == whole


def test_standing_of_a_plan() -> None:
    found = search(forecaster(), n_devices=8, global_batch_size=16)
    best, last = found.ranked[0].prediction, found.ranked[-1].prediction
    assert found.with_standing(best).standing.fraction <= 0.05  # type: ignore[union-attr]
    standing = found.with_standing(last).standing
    assert standing is not None
    assert standing.n_faster > 0
    assert "feasible plans are faster" in standing.text(best)
    first = found.with_standing(best).standing
    assert first is not None
    assert "times as long" in first.text(last)


def test_standing_of_a_plan_that_does_not_fit() -> None:
    tight = forecaster("pytorch", 12e6)
    found = search(tight, n_devices=2, global_batch_size=32)
    space = found.space
    assert space is not None
    row = next(i for i in range(len(space)) if 12e6 < space.memory_bytes[i] < float("inf"))
    large = tight.forecast(space.plan(row)).prediction
    standing = found.with_standing(large).standing
    assert standing is not None
    estimates = space.estimate_s[space.memory_bytes <= 12e6]
    assert standing.n_faster == (estimates < large.step_time_s).sum()


def test_nothing_fits_says_what_would() -> None:
    tight = forecaster("pytorch", 7e6)
    with pytest.raises(InfeasibleError, match=r"fits with .*devices"):
        search(
            tight,
            n_devices=2,
            global_batch_size=64,
            options=SearchOptions(recompute=("none",), tp=(1,), offload=("none",), max_micro_batch_size=64),
        )


def test_the_host_takes_over_what_does_not_fit() -> None:
    found = search(
        forecaster("pytorch", 7e6),
        n_devices=2,
        global_batch_size=64,
        options=SearchOptions(recompute=("none",), tp=(1,)),
    )
    assert all("zero-" in str(r.prediction.plan) for r in found.ranked)
    assert found.ranked[0].prediction.peak_memory_bytes <= 7e6


def test_impossible_degrees_are_named() -> None:
    with pytest.raises(InfeasibleError, match="dp does not divide the global batch"):
        search(forecaster(), n_devices=16, global_batch_size=1, options=SearchOptions(tp=(1,), vpp=(1,)))


def test_what_the_engine_refuses_is_counted_with_its_reason() -> None:
    class Refusing(Remembering):
        def forecast(self, plan: Plan) -> Forecast:
            if plan.zero_stage == 0:
                raise PlanError("whole states: refused")
            return super().forecast(plan)

    made = forecaster().on()
    made.__class__ = Refusing
    made.__dict__.pop("known", None)
    found = search(made, n_devices=8, global_batch_size=16)
    assert found.n_excluded["whole states"] > 0
    assert found.n_considered == found.n_feasible + sum(found.n_excluded.values())
    assert found.n_feasible == found.n_skipped + len(found.ranked)
    assert all(r.prediction.plan.zero_stage for r in found.ranked)
