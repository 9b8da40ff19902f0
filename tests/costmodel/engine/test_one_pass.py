"""One pass over a list of actions against the event simulation, and shares that collectives take."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.engine import Action, run
from costmodel.engine.events import Rates, simulate_events
from costmodel.engine.one_pass import communicates, longest_paths, slowed_paths


@st.composite
def programs(draw: st.DrawFn) -> list[Action]:
    """Ranks that compute and reduce what they have computed, as gradient buckets are."""
    actions: list[Action] = []
    for _ in range(draw(st.integers(1, 20))):
        rank = draw(st.integers(0, 1))
        stream = draw(st.sampled_from(["compute", "compute", "data gather", "data reduce", "pipeline"]))
        after = draw(st.lists(st.integers(0, len(actions) - 1), max_size=2)) if actions else []
        takes = draw(st.sampled_from([0.0, 0.25, 0.5])) if communicates(stream) else 0.0
        seconds = draw(st.floats(0.0, 4.0))
        actions.append(Action(rank, stream, seconds, after=tuple(set(after)), takes=takes))
    return actions


def _by_events(actions: list[Action]) -> tuple[list[float], list[float]]:
    follows: list[list[int]] = [[] for _ in actions]
    waits = [0] * len(actions)
    last: dict[tuple[int, str], int] = {}
    for i, action in enumerate(actions):
        before = {*action.after, *([last[lane]] if (lane := (action.rank, action.stream)) in last else [])}
        for j in before:
            follows[j].append(i)
        waits[i] = len(before)
        last[lane] = i
    rates = Rates(
        compute=[a.rank if a.stream == "compute" else -1 for a in actions],
        comm=[a.rank if communicates(a.stream) else -1 for a in actions],
        takes=[a.takes for a in actions],
        link=[""] * len(actions),
        compute_slowdown=1.0,
        comm_slowdown=1.0,
    )
    start, end, done = simulate_events([a.duration_s for a in actions], follows, waits, rates)
    assert done == len(actions)
    return start, end


@settings(max_examples=300)
@given(programs())
def test_one_pass_is_the_event_simulation(actions: list[Action]) -> None:
    durations = [a.duration_s for a in actions]
    start, end = _by_events(actions)
    if (found := slowed_paths(actions, durations)) is not None:
        assert found[0] == pytest.approx(start, abs=1e-9)
        assert found[1] == pytest.approx(end, abs=1e-9)
    assert run(actions).end_s == pytest.approx(end, abs=1e-9)


@given(programs())
def test_without_shares_both_passes_are_longest_paths(actions: list[Action]) -> None:
    plain = [a._replace(takes=0.0) for a in actions]
    durations = [a.duration_s for a in plain]
    assert slowed_paths(plain, durations) == longest_paths(plain, durations)


def test_a_collective_takes_its_share_while_it_runs() -> None:
    bucket = Action(0, "compute", 1.0)
    actions = [
        bucket,
        Action(0, "data reduce", 1.0, after=(0,), takes=0.25),
        Action(0, "compute", 2.0),
    ]
    # one second at three quarters of the speed leaves 1.25 s
    assert run(actions).end_s == [1.0, 2.0, 3.25]
    both = [*actions, Action(0, "data gather", 1.0, after=(0,), takes=0.5)]
    # of two at a time the larger share counts; the gather is listed after work that it slows
    assert run(both).end_s[2] == pytest.approx(3.5)


def test_a_collective_beside_earlier_work_is_left_to_the_event_simulation() -> None:
    actions = [Action(0, "compute", 2.0), Action(0, "data gather", 1.0, takes=0.5)]
    assert slowed_paths(actions, [2.0, 1.0]) is None
    assert run(actions).end_s == [2.5, 1.0]
