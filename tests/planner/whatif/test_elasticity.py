"""Elasticities: Euler's theorem, a toy that only computes, agreement with the change itself."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from costmodel.plan import Plan
from planner import api
from planner.search import probability_faster
from planner.whatif import LEVERS, arc_elasticities, elasticities, scaled
from planner.whatif.elasticity import log_ratio_sigma
from tests.planner.small import small


def test_they_add_up_to_minus_one() -> None:
    found = elasticities(small(), Plan.parse("dp2.tp2.pp4.gbs16"))
    assert {e.what for e in found} == set(LEVERS)
    assert sum(e.value for e in found) == pytest.approx(-1.0, abs=5e-3)
    assert all(e.value <= 1e-9 for e in found), "nothing gets slower with more"
    assert all(e.low <= e.value <= e.high for e in found)
    assert [e.value for e in found] == sorted(e.value for e in found)


def test_a_toy_that_only_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_of_one_product.py").write_text(
        "import torch\n\n\ndef build():\n"
        "    wide = [torch.nn.Linear(65536, 65536, bias=False) for _ in range(3)]\n"
        "    return torch.nn.Sequential(*wide), (torch.randn(262144, 65536),)\n"
    )
    monkeypatch.chdir(tmp_path)
    toy = api.forecaster(
        "toy_of_one_product:build", hardware="a100-sxm4-80gb", framework="pytorch-bf16", optimizer="sgd"
    )
    by_name = {e.what: e.value for e in elasticities(toy, Plan.parse("mbs262144"))}
    assert by_name["compute"] == pytest.approx(-1.0, abs=0.03)
    assert sum(abs(value) for name, value in by_name.items() if name != "compute") < 0.03


def test_they_predict_a_small_change() -> None:
    plan = Plan.parse("dp16.mbs4")
    today = small().forecast(plan).prediction.step_time_s
    for e in elasticities(small(), plan, levers=["compute", "inter_link"]):
        faster = scaled(small(), {e.what: 1.05}).forecast(plan).prediction.step_time_s
        assert math.log(faster / today) == pytest.approx(e.value * math.log(1.05), abs=2e-3)


def test_arcs_of_gpus_and_batch() -> None:
    def search(forecaster, n, batch):  # type: ignore[no-untyped-def]
        return forecaster.forecast(Plan(dp=n, micro_batch_size=batch // n)).prediction

    best = search(small(), 4, 64)
    gpus, batch = arc_elasticities(small(), best, search)
    other = search(small(), 8, 64)
    assert gpus.value == pytest.approx(math.log2(other.step_time_s / best.step_time_s))
    assert -1.0 < gpus.value < 0.0, "twice the GPUs do not halve a step that communicates"
    assert batch.value < 0.0, "a larger batch costs less per sample"
    assert gpus.low < gpus.value < gpus.high
    reason = arc_elasticities(small(), search(small(), 64, 64), search)[0].reason
    assert "must be at least 1" in reason


def test_spread_of_a_ratio_is_that_of_the_probability() -> None:
    a, b = (small().forecast(Plan.parse(plan)).prediction for plan in ("dp8.mbs4", "tp2.dp4.mbs8"))
    sigma = log_ratio_sigma(a, b)
    z = math.log(b.step_time_s / a.step_time_s) / sigma
    assert probability_faster(a, b) == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2)), abs=1e-6)
