"""The search over cuts, replicas and placements against trying them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.errors import PlanError
from costmodel.partition import Placement, Problem, Stage, StageTime, cuts, phases, placements, steps_of


@dataclass
class Additive:
    """Stages that add up over units; kinds differ in speed, reductions over nodes and transfers between
    them are dearer."""

    forward_s: Sequence[float]
    weight_s: Sequence[float]
    send: Sequence[float]
    held: Sequence[int]
    memory: float
    speed: Sequence[float]
    """By node."""

    def stage(self, start: int, stop: int, placement: Placement) -> StageTime | None:
        replicas = sum(placement)
        speed = min(s for s, p in zip(self.speed, placement, strict=True) if p)
        one_way = sum(self.forward_s[start:stop]) / replicas / speed
        spread = sum(p > 0 for p in placement)
        reduce_s = 2.0 * (replicas - 1) / replicas * sum(self.weight_s[start:stop]) * (1 + 3 * (spread > 1))
        return StageTime(forward_s=one_way, backward_s=2.0 * one_way, tail_s=reduce_s)

    def send_s(self, cut: int, sender: Placement, receiver: Placement) -> float:
        far = any((a > 0) != (b > 0) for a, b in zip(sender, receiver, strict=True))
        return self.send[cut - 1] * (4.0 if far else 1.0) / min(sum(sender), sum(receiver))

    def fits(self, start: int, stop: int, placement: Placement, in_flight: int) -> bool:
        return sum(self.held[start:stop]) * in_flight / sum(placement) <= self.memory

    def least_work_s(self, start: int) -> float:
        return 3.0 * sum(self.forward_s[start:]) / max(self.speed)


def every_pipeline(problem: Problem, n_stages: int) -> Iterator[list[Stage]]:
    """All cuts, replica counts and placements, one after the other."""

    def extend(start: int, used: Placement, stages: list[Stage]) -> Iterator[list[Stage]]:
        if len(stages) == n_stages:
            if start == problem.n_units:
                yield stages
            return
        for stop in range(start + 1, problem.n_units + 1):
            for nodes in problem.nodes_by_kind():
                for count in problem.replicas:
                    for _, placement in placements(used, problem.nodes, count, nodes=nodes):
                        taken = tuple(u + p for u, p in zip(used, placement, strict=True))
                        stage = Stage(start=start, stop=stop, placement=placement)
                        yield from extend(stop, taken, [*stages, stage])

    yield from extend(0, (0,) * len(problem.nodes), [])


def one_f_one_b(num_microbatches: int) -> Callable[[int], list[int]]:
    return lambda n: [min(num_microbatches, n - s) for s in range(n)]


def brute_force(problem: Problem, model: Additive) -> float:
    best = float("inf")
    for n_stages in range(1, problem.most_stages + 1):
        held = problem.in_flight(n_stages)
        for stages in every_pipeline(problem, n_stages):
            if all(model.fits(s.start, s.stop, s.placement, k) for s, k in zip(stages, held, strict=True)):
                times = steps_of(model, stages, blocking=problem.blocking)
                assert times is not None
                best = min(best, phases(times, problem.num_microbatches).latency_s)
    return best


@st.composite
def cases(draw: st.DrawFn) -> tuple[Problem, Additive]:
    n = draw(st.integers(1, 5))
    nodes = tuple(draw(st.lists(st.integers(1, 2), min_size=1, max_size=3)))
    m = draw(st.sampled_from([1, 2, 5, 16]))
    seconds = st.floats(0.1, 5.0)
    numbers = st.lists(seconds, min_size=n, max_size=n)
    kinds = tuple(draw(st.lists(st.integers(0, 1), min_size=len(nodes), max_size=len(nodes))))
    model = Additive(
        forward_s=draw(numbers),
        weight_s=draw(numbers),
        send=draw(st.lists(st.floats(0.0, 1.0), min_size=n, max_size=n)),
        held=draw(st.lists(st.integers(1, 5), min_size=n, max_size=n)),
        memory=draw(st.sampled_from([4.0, 8.0, 15.0, 1e9])),
        speed=[1.0 + kind for kind in kinds],
    )
    problem = Problem(
        n_units=n,
        nodes=nodes,
        num_microbatches=m,
        in_flight=one_f_one_b(m),
        replicas=(1, 2, 3),
        kinds=kinds,
        blocking=draw(st.booleans()),
    )
    return problem, model


@settings(max_examples=60, deadline=None)
@given(cases())
def test_equals_trying_them_all(case: tuple[Problem, Additive]) -> None:
    problem, model = case
    best = brute_force(problem, model)
    found = cuts(problem, model)
    assert bool(found) == (best < float("inf"))
    if found:
        assert found[0].latency_s == pytest.approx(best)
        times = steps_of(model, found[0].stages, blocking=problem.blocking)
        assert times is not None
        assert phases(times, problem.num_microbatches).latency_s == pytest.approx(best)
        held = problem.in_flight(len(found[0].stages))
        for stage, k in zip(found[0].stages, held, strict=True):
            assert model.fits(stage.start, stage.stop, stage.placement, k)


def even(n: int, **changes: object) -> Additive:
    values: dict[str, object] = {
        "forward_s": [1.0] * n,
        "weight_s": [0.0] * n,
        "send": [0.0] * n,
        "held": [1] * n,
        "memory": 1e9,
        "speed": [1.0, 1.0],
    }
    return Additive(**{**values, **changes})  # type: ignore[arg-type]


def problem_of(n: int, nodes: tuple[int, ...], **changes: object) -> Problem:
    values: dict[str, object] = {
        "n_units": n,
        "nodes": nodes,
        "num_microbatches": 64,
        "in_flight": one_f_one_b(64),
    }
    return Problem(**{**values, **changes})  # type: ignore[arg-type]


def test_a_slower_device_gets_fewer_units() -> None:
    found = cuts(problem_of(12, (1, 1), kinds=(0, 1)), even(12, speed=[1.0, 3.0]))[0]
    units = {s.placement: s.stop - s.start for s in found.stages}
    assert units == {(1, 0): 3, (0, 1): 9}


def test_memory_moves_the_cut() -> None:
    """The first stage holds two micro-batches at once: 2 x 3 units at most where memory holds 6."""
    model = even(8, memory=6.0, speed=[1.0])
    free = cuts(problem_of(8, (2,)), even(8, speed=[1.0]))[0]
    found = cuts(problem_of(8, (2,)), model)[0]
    assert [s.stop - s.start for s in free.stages] == [4, 4]
    assert [s.stop - s.start for s in found.stages] == [3, 5]
    assert found.latency_s > free.latency_s


def test_heavy_weights_are_not_replicated() -> None:
    """PipeDream's and DAPPLE's point: replicate what computes, cut before what weighs."""
    weight_s = [0.0, 0.0, 80.0, 80.0]
    model = even(4, forward_s=[3.0, 3.0, 1.0, 1.0], weight_s=weight_s, speed=[1.0])
    found = cuts(problem_of(4, (4,), replicas=(1, 2, 3)), model)[0]
    assert [s.replicas for s in found.stages] == [3, 1]
    assert [s.start for s in found.stages] == [0, 2]


def test_dearer_links_are_never_faster() -> None:
    base = even(6, send=[0.1] * 6, weight_s=[0.5] * 6)
    dear = even(6, send=[0.4] * 6, weight_s=[0.5] * 6)
    problem = problem_of(6, (2, 2), replicas=(1, 2, 4))
    assert cuts(problem, base)[0].latency_s <= cuts(problem, dear)[0].latency_s


def test_no_devices_is_a_plan_error() -> None:
    with pytest.raises(PlanError, match="at least 1"):
        problem_of(3, (0,))
