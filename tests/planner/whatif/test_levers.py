"""Levers: together they hold every speed there is, and each makes nothing slower."""

from __future__ import annotations

import pytest

from costmodel.errors import UsageError
from costmodel.plan import Plan
from planner import api
from planner.whatif.levers import LEVERS, scaled
from tests.planner.small import small

PLANS = ["dp16.mbs4", "dp2.tp2.pp4.gbs16", "mbs4.zero-offload"]


def step_s(plan: str, factors: dict[str, float], framework: str = "pytorch") -> float:
    forecaster = scaled(small(framework=framework), factors)
    return forecaster.forecast(Plan.parse(plan)).prediction.step_time_s


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("framework", ["pytorch", "megatron"])
def test_all_levers_together_are_a_faster_clock(plan: str, framework: str) -> None:
    """Every time in the model is one over a speed of some lever: nothing is missed, nothing counted twice."""
    today = step_s(plan, {}, framework)
    for factor in (0.5, 3.0):
        faster = step_s(plan, dict.fromkeys(map(str, LEVERS), factor), framework)
        assert faster == pytest.approx(today / factor, rel=2e-3)


@pytest.mark.parametrize("lever", list(LEVERS))
def test_faster_is_never_slower(lever: str) -> None:
    for plan in PLANS:
        times = [step_s(plan, {lever: factor}) for factor in (0.25, 1.0, 4.0)]
        assert times[0] >= times[1] * (1 - 1e-9)
        assert times[1] >= times[2] * (1 - 1e-9)


def test_what_the_boards_power_sustains_moves_with_arithmetic() -> None:
    """Wide products of H100 are held by it: twice the rate halves them."""
    wide = {"n_layer": 1, "n_embd": 8192, "n_head": 64, "vocab_size": 512, "n_positions": 1024}
    forecaster = api.forecaster(
        "gpt2", hardware="h100-sxm5-80gb", framework="megatron", seq_len=1024, overrides=wide
    )
    plan = Plan.parse("mbs8")

    def computing_s(factor: float) -> float:
        prediction = scaled(forecaster, {"compute": factor, "memory": factor}).forecast(plan).prediction
        return prediction.breakdown_s["compute"]

    assert computing_s(2.0) < 0.55 * computing_s(1.0)


def test_a_lever_moves_what_it_names() -> None:
    assert step_s("dp16.mbs4", {"inter_link": 0.1}) > 1.2 * step_s("dp16.mbs4", {})
    assert step_s("dp8.mbs4", {"inter_link": 0.1}) == step_s("dp8.mbs4", {}), "one node"
    assert step_s("dp8.mbs4", {"intra_link": 0.1}) > step_s("dp8.mbs4", {})
    assert step_s("mbs4.zero-offload", {"offload": 0.1}) > 2 * step_s("mbs4.zero-offload", {})
    assert step_s("mbs4", {"offload": 0.1}) == step_s("mbs4", {})


def test_graphs_are_shared_and_prices_are_not() -> None:
    forecaster = small()
    forecaster.forecast(Plan.parse("tp4.mbs4"))
    other = scaled(forecaster, {"compute": 2.0})
    assert other.graphs is forecaster.graphs
    assert other.sharded(Plan.parse("tp4.mbs4")) is forecaster.sharded(Plan.parse("tp4.mbs4"))
    before = forecaster.forecast(Plan.parse("tp4.mbs4")).prediction.step_time_s
    assert other.forecast(Plan.parse("tp4.mbs4")).prediction.step_time_s < before
    assert forecaster.forecast(Plan.parse("tp4.mbs4")).prediction.step_time_s == before
    assert forecaster.profile.device.peak_flop_per_s != other.profile.device.peak_flop_per_s


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_factors_are_positive(factor: float) -> None:
    with pytest.raises(UsageError, match="positive factor"):
        scaled(small(), {"compute": factor})


def test_unknown_lever() -> None:
    with pytest.raises(UsageError, match="inter_link"):
        scaled(small(), {"warp": 2.0})
