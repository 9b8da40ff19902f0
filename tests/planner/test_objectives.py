"""Objectives against their formulas; the non-dominated set against brute force."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from costmodel.errors import UsageError
from costmodel.plan import Plan
from planner.objectives import (
    Terms,
    best,
    log_sigma,
    non_dominated,
    pareto,
    probability_within,
    training_time_s,
    values,
)
from planner.power import energy_j, power_model
from planner.search import pareto_front
from tests.planner.small import small

PLANS = (
    "dp4.mbs4",
    "dp4.mbs4.zero1",
    "dp4.mbs4.zero3",
    "tp4.mbs16",
    "dp2.tp2.mbs8",
    "pp4.gbs16",
    "dp2.mbs8",
    "mbs16",
)
TERMS = Terms(tokens=1e9, usd_per_hour=2.0, board_w=400.0)


@pytest.fixture(scope="module")
def predictions():  # type: ignore[no-untyped-def]
    return [small().forecast(Plan.parse(plan)).prediction for plan in PLANS]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3).flatmap(
        lambda k: arrays(
            np.float64, st.tuples(st.integers(0, 40), st.just(k)), elements=st.integers(0, 5).map(float)
        )
    )
)
def test_non_dominated_is_what_brute_force_finds(table: np.ndarray) -> None:
    expected = [not any((other <= row).all() and (other < row).any() for other in table) for row in table]
    assert non_dominated(table).tolist() == expected


def test_two_objectives_are_the_front_of_the_search(predictions) -> None:  # type: ignore[no-untyped-def]
    mine = pareto(predictions, ["step_time", "memory"])
    assert [p.plan for p in mine] == [p.plan for p in pareto_front(predictions)]


def test_any_three(predictions) -> None:  # type: ignore[no-untyped-def]
    names = ["cost", "time", "memory"]
    front = pareto(predictions, names, TERMS)
    assert {best(predictions, name, TERMS).plan for name in names} <= {p.plan for p in front}
    for p in front:
        mine = values([p], names, TERMS)[0]
        others = values(predictions, names, TERMS)
        assert not ((others <= mine).all(axis=1) & (others < mine).any(axis=1)).any()


def test_formulas(predictions) -> None:  # type: ignore[no-untyped-def]
    p = predictions[0]
    time_s = 1e9 / p.tokens_per_s
    assert training_time_s(p, TERMS) == pytest.approx(time_s)
    assert training_time_s(p, replace(TERMS, goodput_fraction=0.5)) == pytest.approx(2 * time_s)
    samples = Terms(samples=1e9 / 64)
    assert training_time_s(p, samples) == pytest.approx(time_s), "64 tokens a sample"
    assert values([p], ["cost"], TERMS)[0, 0] == pytest.approx(4 * 2.0 * time_s / 3600)
    assert values([p], ["throughput"], TERMS)[0, 0] == pytest.approx(-p.tokens_per_s)
    assert values([p], ["gpus", "memory"], TERMS)[0].tolist() == [4.0, float(p.peak_memory_bytes)]


def test_energy_lies_between_waiting_and_computing(predictions) -> None:  # type: ignore[no-untyped-def]
    model = power_model()
    for p in predictions:
        n = p.plan.world_size
        joules = energy_j(p.breakdown_s, n_devices=n, board_w=400.0, pue=1.0)
        watts = joules / p.step_time_s / n / 400.0
        above_node = watts - model.node_fraction.value
        rounding = 1e-9
        least, most = model.waiting_fraction.value - rounding, model.computing_fraction.value + rounding
        assert least <= above_node <= most
        assert energy_j(p.breakdown_s, n_devices=n, board_w=400.0) == pytest.approx(joules * model.pue.value)
        total = values([p], ["energy"], replace(TERMS, pue=1.0))[0, 0]
        assert total == pytest.approx(joules * 1e9 / p.tokens_per_s / p.step_time_s)
    computing = energy_j({"compute": 1.0}, n_devices=8, board_w=700.0, pue=1.0)
    assert computing == pytest.approx(0.76 * 10.2e3, rel=0.01), "the measured 8 x H100 node"


def test_probabilities() -> None:
    assert probability_within(10.0, 10.0, 0.3) == pytest.approx(0.5)
    assert probability_within(10.0, 10.0 * math.exp(0.3 * 1.6448536), 0.3) == pytest.approx(0.95)
    assert [probability_within(2.0, limit, 0.0) for limit in (1.0, 2.0, 3.0)] == [0.0, 1.0, 1.0]
    rising = [probability_within(10.0, limit, 0.2) for limit in (5, 8, 10, 12, 20)]
    assert rising == sorted(rising)


def test_spread_of_an_objective(predictions) -> None:  # type: ignore[no-untyped-def]
    p = predictions[0]
    assert p.step_time_s * math.exp(1.6448536 * log_sigma(p)) == pytest.approx(p.step_time_high_s)
    assert log_sigma(p, "energy") > log_sigma(p)
    assert log_sigma(p, "memory") == 0.0


def test_terms_of_several_devices(predictions) -> None:  # type: ignore[no-untyped-def]
    dear = replace(TERMS, usd_per_hour=200.0)
    pair = predictions[:2]
    assert best(pair, "cost", [dear, TERMS]) is pair[1]
    assert best(pair, "cost", [TERMS, dear]) is pair[0]


@pytest.mark.parametrize(
    ("names", "terms", "message"),
    [
        (["speed"], TERMS, "throughput"),
        (["time"], Terms(), "--tokens or --samples"),
        (["cost"], Terms(tokens=1.0), "--price"),
        (["energy"], Terms(tokens=1.0), "power_w"),
        (["time", "time"], TERMS, "each once"),
        ([], TERMS, "one or more"),
    ],
)
def test_what_is_missing_is_said(predictions, names, terms, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        pareto(predictions, names, terms)


@pytest.mark.parametrize(
    "wrong", [{"tokens": 0.0}, {"samples": -1.0}, {"tokens": 1.0, "samples": 1.0}, {"goodput_fraction": 0.0}]
)
def test_terms_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Terms(**wrong)
    with pytest.raises(UsageError, match="at least 1"):
        energy_j({"compute": 1.0}, n_devices=1, board_w=1.0, pue=0.9)
