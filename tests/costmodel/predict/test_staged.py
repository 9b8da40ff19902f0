"""Pipelines of uneven stages: equal to plain forecasts where they are even, bounded by memory and links."""

from __future__ import annotations

from functools import lru_cache

import pytest

from costmodel.errors import InfeasibleError, PlanError
from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.partition import Stage, cuts
from costmodel.plan import Plan
from costmodel.predict import Forecaster
from costmodel.predict.pools import Interlink, Pool, StagePricer
from costmodel.predict.staged import best_pipeline, forecast_cut, micro_batches, problem_of
from costmodel.predict.throughput import fastest_stages
from costmodel.schedules import in_flight

SIZES = {"n_layer": 6, "n_embd": 512, "n_head": 8, "vocab_size": 4096, "n_positions": 128}
PLAIN = Plan.parse("dp1")


@lru_cache(maxsize=4)
def forecaster(hardware: str = "a100-sxm4-80gb") -> Forecaster:
    return Forecaster(
        source=resolve("gpt2", overrides=SIZES, seq_len=128),
        profile=load_profile(hardware),
        framework=load_framework("pytorch"),
    )


def pool(n_nodes: int, per_node: int, hardware: str = "a100-sxm4-80gb", memory: float = 0.0) -> Pool:
    return Pool(
        name=hardware,
        forecaster=forecaster(hardware),
        n_nodes=n_nodes,
        devices_per_node=per_node,
        memory_limit_bytes=memory,
    )


@pytest.mark.parametrize(("dp", "pp", "extra"), [(1, 1, ""), (4, 1, ""), (1, 3, ".gpipe"), (2, 2, ".zero1")])
def test_equal_stages_are_the_plain_forecast(dp: int, pp: int, extra: str) -> None:
    plan = Plan.parse(f"dp{dp}.pp{pp}.mbs2.gbs16{extra}")
    plain = forecaster().forecast(plan).prediction
    pricer = StagePricer(
        [pool(1, dp * pp)],
        Plan.parse(f"dp1{extra}"),
        micro_batch_size=2 * dp,
        global_batch_size=16,
    )
    sizes = [len(modules) for modules in plain.stage_modules]
    starts = [sum(sizes[:i]) for i in range(pp)]
    stages = [Stage(start=a, stop=a + n, placement=(dp,)) for a, n in zip(starts, sizes, strict=True)]
    found = forecast_cut(pricer, stages)
    assert found.step_time_s == pytest.approx(plain.step_time_s)
    assert found.step_time_high_s == pytest.approx(plain.step_time_high_s, rel=1e-2)
    assert sum(found.breakdown_s.values()) == pytest.approx(found.step_time_s, rel=1e-3)
    assert [s.memory_bytes for s in found.stages] == [m.peak_memory_bytes for m in plain.memory]


def test_is_no_slower_than_every_plan_of_equal_degrees() -> None:
    found = best_pipeline([pool(1, 4)], PLAIN, global_batch_size=16, micro_batch_size=4)
    for plan in ("dp4.mbs1.gbs16", "dp2.pp2.mbs2.gbs16", "pp4.mbs4.gbs16"):
        assert found.step_time_s <= forecaster().forecast(Plan.parse(plan)).prediction.step_time_s * 1.02


def test_closed_form_is_near_the_engine() -> None:
    for template in ("dp1", "gpipe"):
        found = best_pipeline([pool(1, 4)], Plan.parse(template), global_batch_size=32, micro_batch_size=2)
        assert found.latency_s == pytest.approx(found.step_time_s, rel=0.15)


def test_memory_is_respected_and_the_way_out_is_named() -> None:
    free = best_pipeline([pool(1, 4)], PLAIN, global_batch_size=32, micro_batch_size=4)
    most = max(s.memory_bytes for s in free.stages)
    tight = best_pipeline([pool(1, 4, memory=0.7 * most)], PLAIN, global_batch_size=32, micro_batch_size=4)
    assert all(s.memory_bytes <= 0.7 * most for s in tight.stages)
    assert tight.stages != free.stages
    with pytest.raises(InfeasibleError, match="it fits with"):
        best_pipeline([pool(1, 1, memory=0.7 * most)], PLAIN, global_batch_size=32, micro_batch_size=4)
    with pytest.raises(InfeasibleError, match="either"):
        best_pipeline([pool(1, 1, memory=1e6)], PLAIN, global_batch_size=4, micro_batch_size=4)


def test_a_slower_group_gets_fewer_layers() -> None:
    pools = [pool(1, 1), pool(1, 1, "t4")]
    pricer = StagePricer(pools, PLAIN, micro_batch_size=2, global_batch_size=32)
    best = next(c for c in cuts(problem_of(pricer), pricer) if len(c.stages) == 2)
    units = {pricer.spot(s.placement)[0]: s.stop - s.start for s in best.stages}
    assert units[0] > units[1] >= 1
    found = forecast_cut(pricer, best.stages)
    assert {s.hardware for s in found.stages} == {"A100-SXM4-80GB", "T4"}
    alone = forecast_cut(
        StagePricer(pools[:1], PLAIN, micro_batch_size=2, global_batch_size=32),
        [Stage(start=0, stop=pricer.n_units, placement=(1,))],
    )
    slow = forecast_cut(
        StagePricer(pools[1:], PLAIN, micro_batch_size=2, global_batch_size=32),
        [Stage(start=0, stop=pricer.n_units, placement=(1,))],
    )
    assert alone.step_time_s < slow.step_time_s


def test_faster_links_are_never_worse() -> None:
    pools = [pool(1, 2), pool(1, 2, "t4")]
    before = 0.0
    for rate in (1e12, 1e10, 1e9, 1e8):
        links = {frozenset((0, 1)): Interlink(bytes_per_s=rate, latency_s=1e-5)}
        pricer = StagePricer(pools, PLAIN, micro_batch_size=2, global_batch_size=16, links=links)
        latency_s = cuts(problem_of(pricer), pricer)[0].latency_s
        assert latency_s >= before
        before = latency_s


def test_throughput_uses_all_devices_and_keeps_pace() -> None:
    found = fastest_stages(pool(1, 4), PLAIN, global_batch_size=32, micro_batch_size=4)
    assert found.n_devices_used == 4
    slowest = max(s.forward_s + s.backward_s for s in found.stages)
    assert found.step_time_s >= 8 * slowest * 0.99


def test_planned_stages_of_a_plan() -> None:
    for plan in ("pp3.gbs12", "dp2.pp2.gbs16.gpipe"):
        plain, planned = (
            forecaster().forecast(Plan.parse(plan + word)).prediction for word in ("", ".planned-stages")
        )
        assert len(planned.stage_modules) == len(plain.stage_modules)
        assert planned.step_time_s <= plain.step_time_s
    with pytest.raises(PlanError, match="one stage per rank"):
        forecaster().forecast(Plan.parse("pp2.vpp2.gbs8.interleaved.planned-stages"))


def test_planned_stages_move_for_memory() -> None:
    """A device that holds no balanced first stage gets a shorter one."""
    plan = Plan.parse("pp2.mbs8.gbs64")
    plain = forecaster().forecast(plan).prediction
    assert plain.memory[0].peak_memory_bytes > plain.memory[1].peak_memory_bytes
    limit = 0.95 * plain.memory[0].peak_memory_bytes
    profile = forecaster().profile
    small = profile.model_copy(update={"device": profile.device.model_copy(update={"memory_bytes": limit})})
    lean = Forecaster(source=forecaster().source, profile=small, framework=forecaster().framework)
    assert not lean.forecast(plan).prediction.fits
    planned = lean.forecast(plan.with_(flags=("planned-stages",))).prediction
    assert planned.fits
    assert len(planned.stage_modules[0]) < len(plain.stage_modules[0])
    smaller = profile.model_copy(update={"device": profile.device.model_copy(update={"memory_bytes": 1e6})})
    none = Forecaster(source=forecaster().source, profile=smaller, framework=forecaster().framework)
    with pytest.raises(InfeasibleError, match="recompute=full"):
        none.forecast(plan.with_(flags=("planned-stages",)))


@pytest.mark.parametrize("template", ["dp1.zero3", "pp2.chimera", "pp2.vpp2.interleaved"])
def test_templates_that_stages_cannot_follow(template: str) -> None:
    with pytest.raises(PlanError, match="uneven stages"):
        best_pipeline([pool(1, 2)], Plan.parse(template), global_batch_size=4)


def test_micro_batches_in_flight_and_worth_trying() -> None:
    assert in_flight("1f1b", 3, 8) == (3, 2, 1)
    assert in_flight("gpipe", 2, 5) == (5, 5)
    assert in_flight("dapple-b", 3, 8) == (5, 3, 1)
    assert micro_batches(12, 4) == [1, 2, 4]
    assert micro_batches(8, 1) == [1, 2]
