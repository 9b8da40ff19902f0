"""Sets of time, against counting unit cells."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from planner.validation.kineto.spans import intersection, length_s, merged, without

spans = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 15)).map(lambda s: (s[0], s[0] + s[1])), max_size=10
)


def cells(found: list[tuple[float, float]]) -> set[int]:
    return {i for start, end in found for i in range(int(start), int(end))}


@given(spans, spans)
def test_set_operations(first: list[tuple[float, float]], second: list[tuple[float, float]]) -> None:
    a, b = merged(first), merged(second)
    assert cells(a) == cells(first)
    assert length_s(a) == len(cells(first))
    assert cells(intersection(a, b)) == cells(a) & cells(b)
    assert cells(without(a, b)) == cells(a) - cells(b)
    for found in (a, intersection(a, b), without(a, b)):
        assert all(before[1] <= after[0] for before, after in pairwise(found))
