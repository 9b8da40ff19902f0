"""The engine against networkx's longest path, and its own rules."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.engine import Action, run
from costmodel.errors import PlanError


@st.composite
def programs(draw: st.DrawFn) -> list[Action]:
    n = draw(st.integers(1, 25))
    actions = []
    for i in range(n):
        after = draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else []
        actions.append(
            Action(
                rank=draw(st.integers(0, 2)),
                stream=draw(st.sampled_from(["compute", "data", "pipeline"])),
                duration_s=draw(st.floats(0.0, 5.0)),
                name=f"a{i}",
                after=tuple(after),
            )
        )
    return actions


def _critical_path_s(actions: list[Action]) -> float:
    graph = nx.DiGraph()
    last: dict[tuple[int, str], int] = {}
    for i, action in enumerate(actions):
        graph.add_edge("start", i, weight=0.0)
        for j in (*action.after, *([last[key]] if (key := (action.rank, action.stream)) in last else [])):
            graph.add_edge(j, i, weight=actions[j].duration_s)
        graph.add_edge(i, "end", weight=action.duration_s)
        last[action.rank, action.stream] = i
    return float(nx.dag_longest_path_length(graph))


@given(programs())
def test_makespan_is_the_critical_path(actions: list[Action]) -> None:
    assert run(actions).makespan_s == pytest.approx(_critical_path_s(actions), abs=1e-9)


@given(programs(), st.floats(0.1, 10.0))
def test_scaling_durations_scales_the_makespan(actions: list[Action], factor: float) -> None:
    scaled = [Action(a.rank, a.stream, a.duration_s * factor, a.name, a.after) for a in actions]
    assert run(scaled).makespan_s == pytest.approx(factor * run(actions).makespan_s, rel=1e-9, abs=1e-9)


@settings(max_examples=60)
@given(programs(), st.floats(1.0, 3.0))
def test_slowdown_lies_between_none_and_all(actions: list[Action], slowdown: float) -> None:
    plain = run(actions).makespan_s
    slowed = run(actions, compute_slowdown=slowdown).makespan_s
    assert plain - 1e-9 <= slowed <= slowdown * plain + 1e-9


def test_slowdown_stretches_the_overlapped_part_only() -> None:
    actions = [Action(0, "compute", 2.0, "work"), Action(0, "data", 1.0, "transfer")]
    # while the transfer runs (1 s) half as much is done: 0.5 s of work, the other 1.5 s at full speed
    assert run(actions, compute_slowdown=2.0).makespan_s == pytest.approx(2.5)


def test_transfers_between_two_ranks_slow_nothing() -> None:
    actions = [Action(0, "compute", 2.0, "work"), Action(0, "pipeline forward 1", 1.0, "send")]
    assert run(actions, compute_slowdown=2.0, comm_slowdown=3.0).end_s == [2.0, 1.0]


def test_unequal_ranks() -> None:
    actions = [Action(0, "compute", 2.0), Action(1, "compute", 2.0)]
    assert run(actions, speed={1: 0.5}).end_s == [2.0, 4.0]


def test_deadlock_names_who_waits() -> None:
    actions = [
        Action(0, "compute", 1.0, "first", after=(1,)),
        Action(1, "compute", 1.0, "second", after=(0,)),
    ]
    with pytest.raises(PlanError, match=r"first .*second"):
        run(actions)
