"""Figures of both forecasts by hand; which rows make a choice of a plan."""

from __future__ import annotations

import pytest

from planner.validation.accuracy.figures import figures_by, of_plan_choice, scale_of, scale_order, with_scale
from tests.planner.validation.accuracy.made import four_plans, row


def test_ours_and_no_skill_over_the_same_rows() -> None:
    overall = figures_by(of_plan_choice(four_plans()))[0]
    ours, other = overall.ours, overall.no_skill
    assert other is not None
    assert ours.mape == pytest.approx((0.1 + 0.05 / 1.05 + 0 + 0) / 4)
    assert other.mape == pytest.approx((0 + 0.05 / 1.05 + 0.5 + 0.75) / 4)
    assert ours.best_picked_fraction == 0.0
    assert ours.top1_regret == pytest.approx(0.05)
    assert ours.kendall_tau == pytest.approx(4 / 6)
    # of four tied plans any may be picked: one in four is the best
    assert other.best_picked_fraction == 0.25
    assert other.top1_regret == pytest.approx((0 + 0.05 + 1 + 3) / 4)
    assert other.kendall_tau == 0.0
    assert other.interval_coverage is None


def test_rounding_makes_no_order() -> None:
    rows = four_plans()
    shaken = [
        row(r.id, r.measured or 0, r.predicted, plan=r.label("plan"), baseline=1.0 + n * 1e-15)
        for n, r in enumerate(rows)
    ]
    other = figures_by(of_plan_choice(shaken))[0].no_skill
    assert other is not None
    assert (other.kendall_tau, other.best_picked_fraction) == (0.0, 0.25)


def test_rows_without_a_baseline_have_ours_alone() -> None:
    rows = [row("a", 1.0, 1.5), row("b", 1.0, 1.1, baseline=3.0)]
    overall = figures_by(rows)[0]
    assert overall.ours.n == 2
    assert overall.no_skill is not None
    assert (overall.no_skill.n, overall.no_skill.bias) == (1, pytest.approx(2.0))
    assert figures_by(rows[:1])[0].no_skill is None


def test_a_choice_has_four_plans_of_one_problem() -> None:
    enough = four_plans()
    same_plan = [row(f"f{n}", 1.0 + n, 1.0, plan="dp2") for n in range(4)]
    other_gpus = [row(f"p{n}", 1.0 + n, 1.0, plan=f"dp{n}", problem=str(n)) for n in range(4)]
    unplanned = [row(f"u{n}", 1.0 + n, 1.0) for n in range(4)]
    for rows, groups in ((enough, 1), (same_plan, 0), (other_gpus, 0), (unplanned, 0)):
        assert figures_by(of_plan_choice(rows))[0].ours.n_groups == groups
        assert figures_by(rows)[0].ours.n_groups == 1  # the groups that they came with


def test_scales() -> None:
    assert [scale_of(n) for n in (1, 2, 8, 9, 64, 65, 512, 4096, 4097)] == [
        *("1", "2 - 8", "2 - 8", "9 - 64", "9 - 64"),
        *("65 - 512", "65 - 512", "513 - 4,096", "over 4,096"),
    ]
    names = [scale_of(n) for n in (5000, 1, 100, 4)]
    assert sorted(names, key=scale_order) == ["1", "2 - 8", "65 - 512", "over 4,096"]
    assert with_scale([row("a", 1.0, 1.0, n_gpus=0)])[0].label("scale") == ""
    assert with_scale([row("a", 1.0, 1.0, n_gpus=16)])[0].label("scale") == "9 - 64"
