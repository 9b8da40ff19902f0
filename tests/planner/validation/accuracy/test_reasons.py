"""The reasons follow from the rows: rows made to err in one known way get that reason and no other."""

from __future__ import annotations

import math

import pytest

from planner.validation.accuracy.reasons import log_time_error, worst_of_each, worst_rows
from planner.validation.scoring import ScoredRow
from tests.planner.validation.accuracy.made import row


def right(n: int, **labels: str) -> list[ScoredRow]:
    """Rows that are right within 2 %."""
    return [row(f"right-{i}", 1.0, 1.0 + 0.02 * (-1) ** i, group=f"r{i}", **labels) for i in range(n)]


def reason(rows: list[ScoredRow]) -> str:
    return worst_rows(rows)[0].reason


def test_rates_err_the_other_way() -> None:
    assert log_time_error(row("a", 1.0, 2.0)) == pytest.approx(math.log(2))
    assert log_time_error(row("a", 1.0, 2.0, metric="samples_per_s")) == pytest.approx(-math.log(2))


def test_worst_first_too_long_or_too_short_alike() -> None:
    rows = [row("half", 1.0, 0.4), row("twice", 1.0, 2.0), row("good", 1.0, 1.1)]
    assert [w.row.id for w in worst_rows(rows, 2)] == ["half", "twice"]
    other = [row("other", 1.0, 1.2, source="t")]
    assert [w.row.id for w in worst_of_each([*rows, *other])] == ["half", "other"]


def test_a_source_that_errs_as_a_whole() -> None:
    rows = [row(f"x{i}", 1.0, 0.5 + 0.01 * i, group=str(i)) for i in range(6)]
    assert "errs as a whole: the 5 other rows are off by -47.0 %" in reason(rows)


def test_a_cohort_inside_a_source() -> None:
    wrong = [row(f"w{i}", 1.0, 0.5 - 0.01 * i, group=str(i), gpu="new") for i in range(6)]
    found = reason([*wrong, *right(12)])
    assert found.startswith("s's rows of GPU new err together: the 5 others are off by -52.0 %")


def test_a_cohort_of_two_labels_is_named_only_where_one_does_not_do() -> None:
    rows = right(8, gpu="old", dtype="fp8") + right(8, gpu="new", dtype="bf16")
    rows += [row(f"w{i}", 1.0, 2.0 + 0.01 * i, group=str(i), gpu="new", dtype="fp8") for i in range(5)]
    assert "rows of GPU new and type fp8 err together: the 4 others are off by +101.5 %" in reason(rows)


def test_errors_that_go_with_a_part() -> None:
    rows = []
    for i in range(20):
        share = i / 25
        parts = {"host": share, "compute": 1.0 - share}
        # too short where the host's share is small, too long where it is large: no cohort errs one way
        rows.append(
            row(f"h{i}", 1.0, 0.8 * math.exp(0.9 * share), group=str(i), model=f"m{i}", breakdown=parts)
        )
    found = reason(rows)
    assert "the more too long the larger the share of host (rank correlation +1.00 over 20 rows)" in found
    assert "here it is 76.0 %" in found


def test_one_that_stands_alone() -> None:
    found = reason([row("odd", 1.0, 0.4), *right(9)])
    assert "it stands alone: the 9 other rows of its source are off by" in found
    rivals = [row(f"p{i}", 1.0, 1.01, plan=f"dp{i + 2}") for i in range(4)]
    found = reason([row("odd", 1.0, 0.4, plan="dp1"), *rivals])
    assert "the 4 other plans of the same problem are off by +1.0 %" in found


def test_a_measurement_that_differs_from_its_repeat() -> None:
    rows = [row("a", 1.0, 2.0, plan="dp2"), row("b", 2.1, 2.0, plan="dp2"), *right(9)]
    assert reason(rows).startswith("measured 2 times as far as the table tells, 1 to 2.1 iter_time_s")


def test_what_the_forecast_says_of_itself() -> None:
    parts = {"host": 0.6, "compute": 0.3, "bubble": 0.1}
    outside = row("a", 1.0, 0.4, breakdown=parts, operators_of="H100")
    found = reason([outside])
    assert "too few other rows to tell" in found
    assert "the forecast is 60.0 % host, 30.0 % computing;" in found
    assert "its GPU's products were not measured (H100 restated for it)" in found
    assert "outside its 90 % interval" in found
    assert "inside its 90 % interval" in reason([row("b", 1.0, 1.05)])
    assert "does not name the GPU" in reason([row("c", 1.0, 1.05, gpu="unknown")])
