"""The critical path covers the step without gaps, and is the longest path of the actions' graph."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import pytest

from costmodel.plan import Plan
from costmodel.predict import Forecast
from planner.critical_path import critical_path, path_of
from tests.planner.small import small

PLANS = [
    "mbs4",
    "dp8.mbs4",
    "dp4.mbs4.zero3",
    "tp2.mbs4",
    "pp4.gbs8",
    "dp2.pp2.gbs16.gpipe",
    "pp2.vpp2.gbs8.interleaved",
]


def forecast(plan: str) -> Forecast:
    return small().forecast(Plan.parse(plan))


@pytest.mark.parametrize("plan", PLANS)
def test_it_covers_the_step(plan: str) -> None:
    found = forecast(plan)
    path = critical_path(found)
    step_s = found.prediction.step_time_s
    for total in (path.parts_s, path.kinds_s):
        assert sum(total.values()) == pytest.approx(step_s, rel=1e-9)
    chain = path_of(found.step)
    assert chain[0][1] == 0.0
    assert all(end == pytest.approx(start) for (_, _, end), (_, start, _) in pairwise(chain))
    assert sum(path.ranks_s.values()) == pytest.approx(sum(span.seconds for span in path.spans))
    assert all(a != b for a, b in pairwise((s.rank, s.stream, s.kind) for s in path.spans))


@pytest.mark.parametrize("plan", ["pp4.gbs8", "dp8.mbs4", "pp2.vpp2.gbs8.interleaved"])
def test_it_is_the_longest_path(plan: str) -> None:
    """networkx finds no longer chain of durations (where communication slows nothing down)."""
    step = forecast(plan).step
    actions = step.timeline.actions
    durations = [end - start for start, end in zip(step.timeline.start_s, step.timeline.end_s, strict=True)]
    graph = nx.DiGraph()
    newest: dict[tuple[int, str], int] = {}
    for i, action in enumerate(actions):
        graph.add_edge("start", i, weight=durations[i])
        for j in (
            *action.after,
            *([newest[lane]] if (lane := (action.rank, action.stream)) in newest else []),
        ):
            graph.add_edge(j, i, weight=durations[i])
        newest[lane] = i
    longest = nx.dag_longest_path_length(graph, weight="weight")
    assert sum(end - start for _, start, end in path_of(step)) == pytest.approx(longest, rel=1e-9)


def test_a_pipeline_waits_for_its_slowest_rank() -> None:
    path = critical_path(forecast("pp4.gbs64"))
    assert max(path.ranks_s.values()) > 0.5 * path.step_time_s
    assert "transfer" in path.kinds_s


def test_steps_without_a_flush_keep_to_their_window() -> None:
    found = forecast("pp2.gbs8.pipedream")
    path = critical_path(found)
    assert sum(path.parts_s.values()) == pytest.approx(found.prediction.step_time_s, rel=1e-6)
