"""Scores against hand calculation, scipy, and their own invariances."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from costmodel.errors import InputFileError
from planner.validation.scoring import Report, ScoredRow, shares_of, summarise


def row(
    number: int,
    measured: float,
    predicted: float,
    *,
    group: str = "g",
    metric: str = "iter_time_s",
    low: float | None = None,
    high: float | None = None,
    **labels: str,
) -> ScoredRow:
    return ScoredRow(
        id=str(number),
        source="s",
        group=group,
        metric=metric,
        measured=measured,
        predicted=predicted,
        low=low,
        high=high,
        labels=labels,
    )


def test_errors_by_hand() -> None:
    rows = [row(1, 10.0, 11.0, low=9.0, high=12.0), row(2, 20.0, 15.0, low=14.0, high=16.0)]
    overall = summarise(rows)[0]
    assert overall.mape == pytest.approx((0.1 + 0.25) / 2)
    assert overall.median_ape == pytest.approx(0.175)
    assert overall.p90_ape == pytest.approx(0.1 + 0.9 * 0.15)
    assert overall.bias == pytest.approx((0.1 - 0.25) / 2)
    assert overall.interval_coverage == 0.5
    assert overall.kendall_tau == 1.0
    assert overall.top1_regret == 0.0
    assert overall.best_picked_fraction == 1.0


def test_regret_follows_the_metric_direction() -> None:
    pairs = [(100.0, 50.0), (80.0, 60.0)]
    times = [row(i, m, p, metric="iter_time_s") for i, (m, p) in enumerate(pairs)]
    rates = [row(i, m, p, metric="samples_per_s") for i, (m, p) in enumerate(pairs)]
    assert summarise(times)[0].top1_regret == pytest.approx(100 / 80 - 1)  # picked 100 s, best 80 s
    assert summarise(rates)[0].top1_regret == pytest.approx(100 / 80 - 1)  # picked 80/s, best 100/s
    assert summarise(times)[0].kendall_tau == summarise(rates)[0].kendall_tau == -1.0


def test_groups_are_ranked_apart_and_small_ones_are_left_out() -> None:
    rows = [row(i, float(i + 1), float(i + 1), group="right") for i in range(4)]
    rows += [row(i + 4, float(i + 1), float(4 - i), group="wrong") for i in range(4)]
    rows += [row(8, 1.0, 1.0, group="alone"), row(9, 1.0, 1.0, group="")]
    overall = summarise(rows, min_group=4)[0]
    assert overall.n_groups == 2
    assert overall.kendall_tau == pytest.approx(0.0)
    assert overall.top1_regret == pytest.approx((0 + 3) / 2)


def test_skipped_rows_are_counted_with_their_reason() -> None:
    rows = [
        row(1, 1.0, 1.0),
        ScoredRow(id="2", source="t", metric="iter_time_s", measured=None, skipped="no such GPU"),
        ScoredRow(id="3", source="t", metric="iter_time_s", measured=2.0, skipped="no such GPU"),
    ]
    report = Report.of(rows)
    assert (report.overall.n, report.overall.n_skipped) == (1, 2)
    assert report.skipped_reasons() == {"no such GPU": 2}
    only_skipped = report.summary[2]
    assert (only_skipped.key, only_skipped.mape, only_skipped.bias) == ("t", None, None)


@pytest.mark.parametrize(
    ("measured", "predicted", "skipped"),
    [(None, 1.0, None), (1.0, None, None), (1.0, math.nan, None), (0.0, 1.0, None), (1.0, 1.0, "")],
)
def test_a_row_needs_numbers_or_a_reason(
    measured: float | None, predicted: float | None, skipped: str | None
) -> None:
    with pytest.raises(ValueError, match="row 7"):
        ScoredRow(id="7", source="s", metric="m", measured=measured, predicted=predicted, skipped=skipped)


def test_summary_by_labels_leaves_unlabelled_rows_out() -> None:
    rows = [row(1, 1.0, 1.1, gpu="a"), row(2, 1.0, 1.2, gpu="b"), row(3, 1.0, 1.3)]
    keys = [(s.by, s.key, s.n) for s in summarise(rows, by=("gpu", "metric"))]
    assert keys == [("overall", "all", 3), ("gpu", "a", 1), ("gpu", "b", 1), ("metric", "iter_time_s", 3)]


values = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=30)


@given(values)
def test_tau_equals_scipy(pairs: list[tuple[int, int]]) -> None:
    rows = [row(i, float(m), float(p)) for i, (m, p) in enumerate(pairs)]
    ours = summarise(rows)[0].kendall_tau
    measured, predicted = np.array(pairs).T
    expected = kendalltau(measured, predicted).statistic
    if np.ptp(measured) == 0:
        assert ours is None
    elif np.ptp(predicted) == 0:
        assert ours == 0.0
    else:
        assert ours == pytest.approx(expected)


@given(values, st.floats(0.01, 100.0))
def test_scaling_all_predictions_keeps_the_ranking(pairs: list[tuple[int, int]], factor: float) -> None:
    plain = summarise([row(i, float(m), float(p)) for i, (m, p) in enumerate(pairs)])[0]
    scaled = summarise([row(i, float(m), p * factor) for i, (m, p) in enumerate(pairs)])[0]
    assert scaled.top1_regret == plain.top1_regret
    assert plain.top1_regret is not None
    assert plain.top1_regret >= 0


def test_a_perfect_prediction_has_no_error_and_no_regret() -> None:
    overall = summarise([row(i, float(i + 1), float(i + 1)) for i in range(300)])[0]
    assert (overall.mape, overall.bias, overall.kendall_tau, overall.top1_regret) == (
        0,
        0,
        pytest.approx(1),
        0,
    )


def test_report_round_trips_and_has_the_agreed_keys(tmp_path: object) -> None:
    report = Report.of([row(1, 1.0, 1.1), row(2, 2.0, 2.1)], details={"environment": {"threads": 1}})
    data = json.loads(report.to_json())
    assert list(data["rows"][0]) == [
        "id",
        "source",
        "group",
        "metric",
        "measured",
        "predicted",
        "low",
        "high",
        "skipped",
    ]
    agreed = {"by", "key", "n", "n_skipped", "mape", "median_ape", "p90_ape", "bias", "kendall_tau"}
    agreed |= {"top1_regret", "interval_coverage"}
    assert agreed <= set(data["summary"][0])
    assert Report.from_json(report.to_json()).to_dict() == report.to_dict()


def test_what_a_row_knows_beside_its_score_is_kept_where_there_is_any() -> None:
    plain = row(1, 1.0, 1.1)
    known = replace(plain, id="2", labels={"gpu": "a"}, baseline_value=2.0, breakdown={"compute": 1.0})
    back = Report.from_json(Report.of([plain, known]).to_json()).rows
    assert back == (plain, known)
    assert set(known.to_dict()) - set(plain.to_dict()) == {"labels", "baseline_value", "breakdown"}


def test_shares_add_up_to_one() -> None:
    assert shares_of({"a": 3.0, "b": 1.0, "c": 0.0}) == {"a": 0.75, "b": 0.25}
    assert shares_of({}) == {}


def test_reading_something_else_says_so() -> None:
    with pytest.raises(InputFileError, match="not a validation report"):
        Report.from_json('{"rows": 3}')
