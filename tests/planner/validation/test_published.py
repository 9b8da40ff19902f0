"""Published runs: a few rows whose accuracy must not fall, and rows that cannot be forecast."""

from __future__ import annotations

from pathlib import Path

import pytest

from costmodel.errors import InputFileError
from planner.validation.published import score
from planner.validation.published.memory import METRIC
from planner.validation.published.score import validate_published
from planner.validation.scoring import Report, ScoredRow

ROWS = Path(__file__).parent / "data" / "published_rows.csv"


@pytest.fixture(scope="module")
def report() -> Report:
    return validate_published(ROWS)


def row(report: Report, name: str) -> ScoredRow:
    return next(r for r in report.rows if r.id == name and r.metric != METRIC)


def error(report: Report, name: str) -> float:
    found = row(report, name)
    assert found.predicted is not None
    assert found.measured is not None
    return found.predicted / found.measured - 1.0


@pytest.mark.parametrize(
    ("name", "bound"),
    [("sc21-1", 0.06), ("sc21-5", 0.06), ("sc21-6", 0.08), ("ft-1", 0.12), ("rn50-1", 0.35)],
)
def test_accuracy_has_not_fallen(report: Report, name: str, bound: float) -> None:
    assert abs(error(report, name)) <= bound


def test_the_interval_holds_the_forecast(report: Report) -> None:
    for scored in report.rows:
        if scored.predicted is not None:
            assert scored.low is not None
            assert scored.high is not None
            assert scored.low < scored.predicted < scored.high


def test_memory_has_rows_and_a_summary_of_its_own(report: Report) -> None:
    memory = [r for r in report.rows if r.metric == METRIC]
    assert [r.id for r in memory] == ["mcore-1", "mcore-2"]
    assert all(abs(r.error) <= 0.04 for r in memory)
    assert report.rows[: len(memory)] == tuple(memory)
    assert report.overall.n == 7
    of_memory = {part.key: part for part in report.summary if part.by == "memory source"}
    assert of_memory["mcore"].n == 2


def test_no_row_is_skipped_without_a_reason(report: Report) -> None:
    assert len([r for r in report.rows if r.metric != METRIC]) == 9
    assert row(report, "silent-1").skipped == "the source does not say the batch"
    assert "none of train, forward, prefill, decode" in str(row(report, "unknown-1").skipped)


@pytest.mark.slow
def test_shares_of_several_processes_come_back_in_order(
    report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = tmp_path / "few.csv"
    names = ("silent-1", "mcore-2", "rn50-1", "unknown-1")
    head, *lines = ROWS.read_text().splitlines()
    few.write_text("\n".join([head, *(line for line in lines if line.startswith(names))]) + "\n")
    monkeypatch.setattr(score, "_ROWS_WORTH_WORKERS", 1)
    monkeypatch.setattr(score, "usable_cores", lambda: 2)
    alone = [r for r in report.rows if r.id in names]
    assert len({r.id for r in alone}) == len(names)
    assert list(validate_published(few).rows) == alone


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "runs.csv"
    empty.write_text(ROWS.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputFileError, match="holds no row"):
        validate_published(empty)
