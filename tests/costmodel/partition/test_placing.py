"""DAPPLE's three placements."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from costmodel.partition import placements


def test_the_three_policies() -> None:
    found = dict(placements((2, 0, 0), (4, 4, 4), 2))
    assert found == {"fresh-first": (0, 2, 0), "append-first": (2, 0, 0)}
    found = dict(placements((2, 2, 0), (4, 4, 4), 2))
    assert found["scatter-first"] == (1, 1, 0)
    assert dict(placements((0, 0), (4, 4), 2))["scatter-first"] == (1, 1)


def test_only_allowed_nodes() -> None:
    assert placements((0, 0), (2, 2), 2, nodes=[1]) == [("fresh-first", (0, 2))]
    assert placements((0, 0), (2, 2), 3, nodes=[1]) == []


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5), st.integers(1, 12))
def test_takes_what_was_asked_for_and_is_free(nodes: list[tuple[int, int]], count: int) -> None:
    used = [u for u, _ in nodes]
    sizes = [u + free for u, free in nodes]
    found = placements(used, sizes, count)
    assert bool(found) == (sum(sizes) - sum(used) >= count)
    for _, placement in found:
        assert sum(placement) == count
        assert all(p + u <= s for p, u, s in zip(placement, used, sizes, strict=True))
