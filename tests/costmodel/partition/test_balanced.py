"""The stage partition against brute force."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.errors import PlanError
from costmodel.partition import balanced_partition, even_partition


def bottleneck_s(unit_s: list[float], starts: tuple[int, ...]) -> float:
    """Time of the slowest stage of a partition."""
    return max(sum(unit_s[a:b]) for a, b in zip(starts, [*starts[1:], len(unit_s)], strict=True))


@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=9), st.integers(1, 9))
def test_equals_brute_force(unit_s: list[float], n_stages: int) -> None:
    n_stages = min(n_stages, len(unit_s))
    found = bottleneck_s(unit_s, balanced_partition(unit_s, n_stages))
    best = min(bottleneck_s(unit_s, (0, *cuts)) for cuts in combinations(range(1, len(unit_s)), n_stages - 1))
    assert found == pytest.approx(best)


def test_dear_cut_is_avoided() -> None:
    assert balanced_partition([1.0, 1.0, 1.0, 1.0], 2, cut_s=[0.0, 5.0, 0.0, 0.0]) in {(0, 1), (0, 3)}


def test_among_cuts_alike_later_stages_are_longer_whatever_rounding_says() -> None:
    assert balanced_partition([1.0] * 7, 4) == (0, 1, 3, 5)
    unit_s = [0.1, *[1.3] * 96, 0.7]
    for n_stages in (16, 24, 64):
        starts = balanced_partition(unit_s, n_stages)
        for factor in (1 - 1e-7, 1 + 1e-7, 1 / 3):
            assert balanced_partition([factor * s for s in unit_s], n_stages) == starts


def test_more_stages_than_units_is_a_plan_error() -> None:
    with pytest.raises(PlanError, match="at most 2 pieces"):
        balanced_partition([1.0, 1.0], 3)


def test_as_many_blocks_each_and_what_is_left_over() -> None:
    blocks = list(range(1, 11))  # after an embedding
    assert even_partition(blocks, 5, "even") == even_partition(blocks, 5, "late") == (0, 3, 5, 7, 9)
    assert even_partition(blocks, 4, "late") == (0, 3, 5, 8)  # 2, 2, 3, 3
    assert even_partition(blocks, 4, "even") == ()
    assert even_partition(blocks, 5, "balanced") == ()
    assert even_partition(blocks, 11, "late") == ()
