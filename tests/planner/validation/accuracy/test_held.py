"""A fixed set of published rows whose accuracy must not fall (data/accuracy_rows.csv and its bounds)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.validation.accuracy.report import AccuracyReport, accuracy_report
from planner.validation.published.score import validate_published

DATA = Path(__file__).parents[1] / "data"
BOUNDS: dict[str, Any] = json.loads((DATA / "accuracy_bounds.json").read_text())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> AccuracyReport:
    path = tmp_path_factory.mktemp("held") / "held.json"
    validate_published(DATA / "accuracy_rows.csv").write(path)
    return accuracy_report([path])


def test_every_row_is_forecast_and_has_a_no_skill_forecast(report: AccuracyReport) -> None:
    assert report.skipped_reasons() == {}
    assert report.overall.no_skill is not None
    assert report.overall.no_skill.n == report.overall.ours.n
    assert {f.ours.key for f in report.by("source")} == set(BOUNDS["mean_error"])


@pytest.mark.parametrize("source", sorted(BOUNDS["mean_error"]))
def test_errors_have_not_grown(report: AccuracyReport, source: str) -> None:
    bound = BOUNDS["mean_error"][source]
    (found,) = (f.ours.mape for f in report.by("source") if f.ours.key == source)
    assert found is not None
    assert found <= bound["most"], f"{source}: {found:.3f}, was {bound['seen']} when the bound was set"


def test_plans_are_still_chosen_well(report: AccuracyReport) -> None:
    bounds, ours = BOUNDS["choosing_a_plan"], report.overall.ours
    assert ours.n_groups == bounds["groups"]
    assert ours.top1_regret is not None
    assert ours.top1_regret <= bounds["regret"]["most"]
    assert ours.kendall_tau is not None
    assert ours.kendall_tau >= bounds["tau"]["least"]


def test_the_model_adds_to_no_skill(report: AccuracyReport) -> None:
    ours, other = report.overall.ours, report.overall.no_skill
    assert other is not None
    assert None not in (ours.mape, other.mape, ours.top1_regret, other.top1_regret)
    assert (ours.mape or 0) < 0.5 * (other.mape or 0)
    assert (ours.top1_regret or 0) < 0.5 * (other.top1_regret or 0)


def test_table_one_of_sc21_is_near_half_of_peak(report: AccuracyReport) -> None:
    """Those runs reach 44 to 52 % of the peak (table 1), so its no-skill forecast is a near miss: it is not a
    straw man."""
    (figures,) = (f for f in report.by("source") if f.ours.key == "sc21")
    assert figures.no_skill is not None
    assert figures.no_skill.mape is not None
    assert figures.no_skill.mape < 0.15
