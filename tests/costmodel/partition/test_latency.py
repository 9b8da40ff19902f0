"""The three phases against the recursion, uniform pipelines and the event engine."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.partition import StageTime, phases
from costmodel.partition.latency import NOTHING, before
from costmodel.stage_costs import CostParts, StageCosts, UnitCosts
from costmodel.step import simulate_step

STAGES = st.lists(
    st.tuples(st.floats(0.01, 5.0), st.floats(0.01, 5.0), st.floats(0.0, 20.0)), min_size=1, max_size=6
)


@given(STAGES, st.integers(1, 20))
def test_recursion_equals_the_phases(times: list[tuple[float, float, float]], m: int) -> None:
    stages = [StageTime(forward_s=f, backward_s=b, tail_s=t) for f, b, t in times]
    flow = NOTHING
    for stage in reversed(stages):
        flow = before(stage, flow, m)
    assert flow[0] + max(0.0, flow[1]) == pytest.approx(phases(stages, m).latency_s)


@pytest.mark.parametrize(("p", "m"), [(1, 3), (2, 2), (4, 8), (3, 12)])
def test_uniform_pipeline(p: int, m: int) -> None:
    """(m + p - 1) (F + B): arXiv 1811.06965 section 2.3."""
    found = phases([StageTime(forward_s=1.0, backward_s=2.0)] * p, m)
    assert found.latency_s == pytest.approx(3.0 * (m + p - 1))


def engine_s(stages: list[StageTime], m: int) -> float:
    costs = [
        StageCosts(
            index=i,
            units=(
                UnitCosts(
                    name=str(i),
                    forward=CostParts(parts_s={"compute": s.forward_s}),
                    backward_input=CostParts(parts_s={"compute": s.backward_s}),
                    backward_weight=CostParts(),
                    parameter_bytes=0,
                ),
            ),
            send_bytes=0,
            send_s=0.0,
            optimizer_s=s.tail_s,
            state_bytes=0,
        )
        for i, s in enumerate(stages)
    ]
    return simulate_step(costs, num_microbatches=m).step_time_s


@settings(deadline=None)
@given(STAGES, st.integers(1, 12))
def test_never_above_the_engine_without_tails_inside(times: list[tuple[float, float, float]], m: int) -> None:
    """The phases leave out waits of 1F1B's fixed order: the engine's step is no shorter."""
    stages = [StageTime(forward_s=f, backward_s=b) for f, b, _ in times]
    assert phases(stages, m).latency_s <= engine_s(stages, m) * (1 + 1e-9)


def test_equals_the_engine_where_the_last_stage_paces() -> None:
    stages = [
        StageTime(forward_s=f, backward_s=2.0 * f, tail_s=t) for f, t in ((0.5, 4.0), (0.7, 0.0), (1.0, 1.0))
    ]
    assert phases(stages, 9).pivot == 2
    assert phases(stages, 9).latency_s == pytest.approx(engine_s(stages, 9))


def test_a_late_reduction_of_the_first_stage_shows() -> None:
    stages = [StageTime(forward_s=1.0, backward_s=2.0, tail_s=t) for t in (5.0, 0.0)]
    assert phases(stages, 4).latency_s == pytest.approx(3.0 * 5 + 5.0)
    hidden = [StageTime(forward_s=1.0, backward_s=2.0, tail_s=t) for t in (0.0, 2.0)]
    assert phases(hidden, 4).latency_s == pytest.approx(3.0 * 5)
