"""PipeDream's dynamic programme against trying every pipeline."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.errors import InfeasibleError, PlanError
from costmodel.partition import Level, fastest_pipeline


def level(count: int, send_s: list[float], weight_s: list[float]) -> Level:
    """Reduction: 2 (m - 1) / m of the weights' seconds on the link."""
    prefix = np.concatenate([[0.0], np.cumsum(weight_s)])
    reduce_s = lambda m: 2.0 * (m - 1) / m * (prefix[None, :] - prefix[:, None])  # noqa: E731
    return Level(count=count, send_s=send_s, reduce_s=reduce_s)


def slowest(unit_s: list[float], levels: list[Level]) -> float:
    """The least bottleneck over every split of every level's components, by plain recursion."""

    def inside(k: int, i: int, j: int) -> float:
        if k < 0:
            return sum(unit_s[i:j])
        return min(pipelines(k, i, j, levels[k].count))

    def single(k: int, i: int, j: int, m: int) -> float:
        reduce_s = levels[k].reduce_s(m)[i, j] if m > 1 else 0.0
        return max(inside(k - 1, i, j), reduce_s) / m

    def pipelines(k: int, i: int, j: int, m: int) -> Iterator[float]:
        yield single(k, i, j, m)
        for s in range(i + 1, j):
            for replicas in range(1, m):
                last = single(k, s, j, replicas)
                for ahead in pipelines(k, i, s, m - replicas):
                    yield max(ahead, levels[k].send_s[s - 1], last)

    return inside(len(levels) - 1, 0, len(unit_s))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.1, 5.0), st.floats(0.0, 3.0), st.floats(0.0, 8.0)), min_size=1, max_size=4
    ),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_equals_trying_them_all(units: list[tuple[float, float, float]], inner: int, outer: int) -> None:
    unit_s, send_s, weight_s = (list(column) for column in zip(*units, strict=True))
    levels = [
        level(inner, send_s, weight_s),
        level(outer, [5 * s for s in send_s], [5 * w for w in weight_s]),
    ]
    found = fastest_pipeline(unit_s, levels)
    assert found.step_s == pytest.approx(slowest(unit_s, levels))
    assert found.stages[0].start == 0
    assert found.stages[-1].stop == len(unit_s)
    assert all(a.stop == b.start for a, b in zip(found.stages, found.stages[1:], strict=False))


def test_all_devices_work() -> None:
    found = fastest_pipeline(
        [1.0, 1.0, 1.0], [level(2, [0.0] * 3, [0.0] * 3), level(3, [0.0] * 3, [0.0] * 3)]
    )
    assert found.step_s == pytest.approx(3.0 / 6)
    assert sum(s.replicas for s in found.stages) == 6


def test_heavy_weights_are_not_replicated() -> None:
    """VGG's shape (section 5): convolutions replicated, fully connected layers on one device."""
    found = fastest_pipeline([3.0, 3.0, 1.0, 1.0], [level(4, [0.1] * 4, [0.0, 0.0, 80.0, 80.0])])
    assert [(s.start, s.stop, s.replicas) for s in found.stages] == [(0, 2, 3), (2, 4, 1)]


def test_nothing_fits() -> None:
    with pytest.raises(InfeasibleError, match="no pipeline of 2 units"):
        fastest_pipeline([1.0, 1.0], [level(2, [0.0], [0.0] * 2)], fits=np.zeros((3, 3), dtype=bool))
    with pytest.raises(PlanError, match="at least one"):
        fastest_pipeline([1.0], [])
