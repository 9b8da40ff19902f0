"""Terms add up to the breakdown, and crossovers lie where the terms are equal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.stage_costs import BREAKDOWN_PARTS
from planner.whatif.terms import TERMS, bisected, interpolated, largest, terms_s


@given(st.lists(st.floats(0, 10), min_size=len(BREAKDOWN_PARTS), max_size=len(BREAKDOWN_PARTS)))
def test_terms_hold_every_part_once(seconds: list[float]) -> None:
    breakdown = dict(zip(BREAKDOWN_PARTS, seconds, strict=True))
    terms = terms_s(breakdown)
    assert sum(terms.values()) == pytest.approx(sum(seconds))
    assert terms[largest(breakdown)] == max(terms.values())
    assert sorted(part for parts in TERMS.values() for part in parts) == sorted(BREAKDOWN_PARTS)


@given(st.floats(0.01, 100), st.floats(-2, -0.2), st.floats(0.2, 2))
def test_power_laws_cross_where_they_are_equal(at: float, falling: float, rising: float) -> None:
    def parts(x: float) -> dict[str, float]:
        return {"compute": (x / at) ** falling, "dp_comm": (x / at) ** rising}

    (crossing,) = interpolated("gpus", [(x, parts(x)) for x in (at / 8, at / 2, at * 3)])
    assert (crossing.before, crossing.after) == ("compute", "communication")
    assert crossing.at == pytest.approx(at, rel=1e-6)
    (found,) = bisected("inter_link", at / 50, at * 20, parts)
    assert found.at == pytest.approx(at, rel=0.006)


def test_a_term_in_between_is_found() -> None:
    def parts(x: float) -> dict[str, float]:
        return {"compute": x, "bubble": 1 / x, "host": 1.5 if 0.5 < x < 2.0 else 0.0}

    found = bisected("compute", 0.01, 100.0, parts)
    assert [(c.before, c.after) for c in found] == [("bubble", "host"), ("host", "compute")]
    assert [c.at for c in found] == pytest.approx([0.5 * (1 / 0.75), 1.5], rel=0.35)


def test_none_where_the_largest_stays() -> None:
    points = [(1.0, {"compute": 2.0, "bubble": 1.0}), (2.0, {"compute": 1.0, "bubble": 0.9})]
    assert interpolated("gpus", points) == ()
    assert bisected("compute", 1.0, 2.0, lambda x: {"compute": 3 - x, "bubble": 0.5}) == ()


def test_a_term_that_starts_at_zero_is_taken_as_linear() -> None:
    points = [(1.0, {"compute": 1.0}), (4.0, {"compute": 1.0, "bubble": 2.0})]
    (crossing,) = interpolated("gpus", points)
    assert crossing.at == pytest.approx(2.0), "half way on a log axis"
