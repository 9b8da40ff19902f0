"""Nested events: every instant of a thread belongs to exactly one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.validation.kineto.events import Event, Kind
from planner.validation.kineto.nesting import nest
from planner.validation.kineto.spans import length_s, merged


def event(start: float, end: float, thread: int = 1, kind: Kind = Kind.OPERATOR) -> Event:
    return Event(kind, "aten::x", thread, start, end)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 2)), max_size=12))
def test_own_times_cover_each_thread_once(found: list[tuple[int, int, int]]) -> None:
    events = [event(start, start + length, thread) for start, length, thread in found]
    nesting = nest(events)
    assert sorted(nesting.order) == list(range(len(events)))
    for i, parent in enumerate(nesting.parent):
        if parent >= 0:
            assert nesting.order.index(parent) < nesting.order.index(i)
            assert events[parent].thread == events[i].thread
            assert events[parent].start_s <= events[i].start_s < events[parent].end_s
    for thread in (1, 2):
        mine = [i for i, e in enumerate(events) if e.thread == thread]
        covered = length_s(merged((events[i].start_s, events[i].end_s) for i in mine))
        own = sum(nesting.own_s[i] for i in mine)
        # crossing events cannot come from a call stack; what they hang over is cut off, never counted twice
        assert own <= covered + 1e-9
        roots = [i for i in mine if nesting.parent[i] < 0]
        assert own == pytest.approx(sum(events[i].duration_s for i in roots))


def test_of_equal_times_the_range_is_outside() -> None:
    nesting = nest([event(0, 5), event(0, 5, kind=Kind.MODULE), event(5, 6)])
    assert nesting.parent == (1, -1, -1)
    assert nesting.own_s == (5, 0, 1)
