"""The reliability table: even where measurements follow the model, uneven where it is too sure."""

from __future__ import annotations

import math

import numpy as np
import pytest

from planner.validation.reliability import PLAN, PROBLEM, pairs_of, reliability
from planner.validation.scoring import ScoredRow


def a_row(number: int, group: int, predicted: float, measured: float, **changes: object) -> ScoredRow:
    fields: dict[str, object] = {
        "id": str(number),
        "source": "made",
        "group": str(group),
        "metric": "iter_time_s",
        "measured": measured,
        "predicted": predicted,
        "labels": {PLAN: str(number), PROBLEM: "one"},
        "loadings": {"shared": 0.3, f"own {number}": 0.1},
    }
    return ScoredRow(**{**fields, **changes})  # type: ignore[arg-type]


def drawn(spread: float, n_groups: int = 600) -> list[ScoredRow]:
    """Three plans a group whose measurements differ from their predictions by `spread` of what they say."""
    rng = np.random.default_rng(3)
    rows = []
    for group in range(n_groups):
        shared = 0.3 * rng.standard_normal()
        for plan in range(3):
            predicted = math.exp(0.15 * rng.standard_normal())
            measured = predicted * math.exp(shared + spread * 0.1 * rng.standard_normal())
            rows.append(a_row(3 * group + plan, group, predicted, measured))
    return rows


def test_measurements_that_follow_the_model_are_calibrated() -> None:
    table = reliability(drawn(1.0))["overall"]
    assert table["n_pairs"] == 1800
    assert table["largest_gap"] < 0.06
    assert sum(b["n"] for b in table["bins"]) == 3600


def test_too_sure_shows() -> None:
    assert reliability(drawn(3.0))["overall"]["largest_gap"] > 0.1
    assert reliability(drawn(0.2))["overall"]["largest_gap"] > 0.1


def test_pairs_of_one_problem_only() -> None:
    rows = [
        a_row(1, 1, 1.0, 1.0),
        a_row(2, 1, 2.0, 2.0),
        a_row(3, 1, 2.0, 2.0, labels={PLAN: "1", PROBLEM: "one"}),  # the plan of row 1
        a_row(4, 1, 1.0, 3.0, labels={PLAN: "9", PROBLEM: "another"}),
        a_row(5, 2, 1.0, 3.0),
        a_row(6, 1, 1.0, 3.0, loadings={}),
        a_row(7, 1, 1.0, 2.0, skipped="no"),
    ]
    assert [(p.shorter, p.probability > 0.5) for p in pairs_of(rows)] == [(True, True)]
    assert reliability([])["overall"]["largest_gap"] is None


def test_of_throughputs_the_larger_is_the_faster() -> None:
    rows = [a_row(n, 1, float(n), float(n), metric="tokens_per_s") for n in (1, 2)]
    (pair,) = pairs_of(rows)
    assert not pair.shorter
    assert pair.probability < 0.5
    times = [a_row(n, 1, 1.0 / n, 1.0 / n) for n in (1, 2)]
    assert pairs_of(times)[0].probability == pytest.approx(pair.probability)
