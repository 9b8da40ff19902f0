"""Explanations: differences that add up, changes that do what they say when they are made."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest

from costmodel.errors import PlanError
from costmodel.plan import Plan
from costmodel.predict import Forecaster
from planner import api
from planner.explaining import Explanation, explain_pair
from planner.whatif import scaled
from tests.planner.small import SIZES, small

A, B = "dp16.mbs1.gbs32", "dp8.pp2.mbs1.gbs32"
"""A sends all gradients between nodes, once a step; B short sequences, each of its micro-batches."""


@lru_cache(maxsize=1)
def machine() -> Forecaster:
    """Nodes joined so slowly that B wins."""
    sizes = SIZES | {"n_embd": 512}
    wide = api.forecaster("gpt2", hardware="a100-sxm4-80gb", framework="pytorch", seq_len=16, overrides=sizes)
    return scaled(wide, {"inter_link": 0.02})


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    return explain_pair(machine(), A, B, levers=["inter_link", "intra_link"])


def test_differences_add_up(explanation: Explanation) -> None:
    gap = explanation.b.step_time_s - explanation.a.step_time_s
    assert sum(b - a for _, a, b in explanation.differences_s) == pytest.approx(gap, rel=1e-6)
    sizes = [abs(b - a) for _, a, b in explanation.differences_s]
    assert sizes == sorted(sizes, reverse=True)


def test_a_change_that_is_enough_turns_the_order(explanation: Explanation) -> None:
    faster, slower = explanation.faster.plan, explanation.slower.plan
    enough = [c for c in explanation.changes if c.factor is not None and c.what != "global_batch"]
    assert enough, [c.to_dict() for c in explanation.changes]
    for change in enough:
        beyond = change.factor * (1.02 if change.factor > 1 else 1 / 1.02)
        short = change.factor / (1.02 if change.factor > 1 else 1 / 1.02)
        times = {
            f: [
                scaled(machine(), {change.what: f}).forecast(plan).prediction.step_time_s
                for plan in (faster, slower)
            ]
            for f in (beyond, short)
        }
        assert times[beyond][1] < times[beyond][0]
        assert times[short][1] > times[short][0]


def test_a_change_that_is_not_enough_says_how_near_it_comes(explanation: Explanation) -> None:
    lacking = [c for c in explanation.changes if c.factor is None and c.what != "global_batch"]
    for change in lacking:
        assert change.gap > 0
        hardware = scaled(machine(), {change.what: change.at_factor})
        times = [
            hardware.forecast(p.plan).prediction.step_time_s for p in (explanation.faster, explanation.slower)
        ]
        assert times[1] / times[0] - 1 == pytest.approx(change.gap, rel=1e-6)


def test_text_and_data(explanation: Explanation) -> None:
    data = explanation.to_dict()
    json.dumps(data)
    assert data["faster"] == str(explanation.faster.plan)
    assert 0.0 <= data["probability_a_faster"] <= 1.0
    text = explanation.text()
    for plan in (A, B):
        assert str(Plan.parse(plan)) in text
    assert "critical path of A" in text
    assert " wins once " in text


def test_the_other_way_round(explanation: Explanation) -> None:
    swapped = explain_pair(machine(), B, A, levers=["inter_link"])
    assert swapped.faster.plan == explanation.faster.plan
    assert swapped.probability == pytest.approx(1.0 - explanation.probability)
    mine = {c.what: c.factor for c in explanation.changes}
    assert {c.what: c.factor for c in swapped.changes}["inter_link"] == mine["inter_link"]


def test_a_larger_batch_turns_the_order(explanation: Explanation) -> None:
    """Gradients are sent once a step, what goes between stages with every sample."""
    (change,) = [c for c in explanation.changes if c.what == "global_batch"]
    assert change.factor in (2.0, 4.0, 8.0, 16.0)
    for factor, turned in ((change.factor, True), (change.factor / 2, False)):
        plans = [
            p.plan.with_(global_batch_size=int(32 * factor)) for p in (explanation.faster, explanation.slower)
        ]
        times = [machine().forecast(plan).prediction.step_time_s for plan in plans]
        assert (times[1] < times[0]) == turned


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [("dp2", "dp2", "name two that differ"), ("dp2", "dp4", "same gbs"), ("tp7.gbs7", "dp7", r"tp\(7\)")],
)
def test_pairs_that_do_not_compare(a: str, b: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        explain_pair(small(), a, b, levers=[])
