"""The best strategy changes with the network, and the forecast sees it: two ranks in two network namespaces,
joined by a veth pair, once as fast as it is and once held to 100 Mbit/s by a token bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrate.api import calibrate
from calibrate.hosts import Hosts
from costmodel.hardware.schema import HardwareProfile
from costmodel.hardware.store import load_profile
from costmodel.plan import Plan
from planner.validation.harness import run_specs
from planner.validation.local import LocalForecaster
from planner.validation.run_spec import ModelSpec, RunSettings
from tests.planner.validation.namespaces import NotPermitted, joined_namespaces, shape

MODEL = ModelSpec(model="tests.planner.validation.sample_models:wide_perceptron", name="wide")
CORES = "epyc-9005-core"
"""What the cores do is any machine's: the plans differ by far more, and the links are measured."""
# a step of two stages with one micro-batch computes twice as long as one of two replicas
PLANS = ("dp2.mbs320", "tp2.mbs640", "pp2.mbs640.gbs640.gpipe")
SETTINGS = RunSettings(
    warmup=1, rounds=2, steps=1, min_round_s=0.0, profile=False, memory=False, timeout_s=120.0
)


def compare(profile: HardwareProfile, hosts: Hosts) -> tuple[dict[str, float], dict[str, float]]:
    """Plan -> measured seconds, plan -> forecast seconds."""
    forecaster = LocalForecaster(MODEL, profile)
    specs, forecasts = zip(*(forecaster.spec(Plan.parse(text)) for text in PLANS), strict=True)
    results = run_specs(specs, SETTINGS, hosts=hosts)
    assert [result.failed for result in results] == [None] * len(PLANS)
    assert all(result.loss_error is not None and result.loss_error < 1e-3 for result in results)
    measured = {text: result.step_time_s or 0.0 for text, result in zip(PLANS, results, strict=True)}
    return measured, {text: f.step_time_s for text, f in zip(PLANS, forecasts, strict=True)}


def best(times_s: dict[str, float]) -> str:
    return min(times_s, key=times_s.__getitem__)


@pytest.mark.alone
@pytest.mark.distributed
@pytest.mark.slow
def test_the_winner_changes_with_the_link_and_both_are_forecast(tmp_path: Path) -> None:
    def linked(name: str, hosts: Hosts) -> HardwareProfile:
        measured = calibrate(out=tmp_path / name, budget_s=5.0, hosts=hosts, only=("collectives",))
        assert measured is not None
        return load_profile(CORES).model_copy(update={"network": measured.network})

    try:
        with joined_namespaces() as hosts:
            measured_fast, forecast_fast = compare(linked("fast.json", hosts), hosts)
            shape(hosts, "200mbit")
            measured_slow, forecast_slow = compare(linked("slow.json", hosts), hosts)
    except NotPermitted as reason:
        pytest.skip(f"no network namespaces here: {reason}")
    said = f"{measured_fast=} {forecast_fast=} {measured_slow=} {forecast_slow=}"
    assert best(measured_fast) != best(measured_slow), said
    assert best(forecast_fast) == best(measured_fast), said
    assert best(forecast_slow) == best(measured_slow), said
    # what the slow link costs replicas is forecast, not only that it costs something
    plan = PLANS[0]
    costs = measured_slow[plan] - measured_fast[plan], forecast_slow[plan] - forecast_fast[plan]
    assert 0.5 < costs[1] / costs[0] < 2.0, said
