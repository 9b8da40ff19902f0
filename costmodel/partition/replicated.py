"""The cut of a model into stages, each on one or several devices of a node or of several, with least latency.

Exact dynamic programming over (first unit, devices used per node, where the stage before lies, stages left):
the best ends of a pipeline are those that no other beats in both `flow` and `late` (see `latency`), and
whatever comes before, one of them stays the best. Devices are taken by the policies of `placing`; stages are
contiguous, may be uneven, and lie on devices of one kind each. Equals trying every cut, replica count and
placement.

Pruned without loss: whatever comes to more than the latency of a pipeline already known, M times a stage or
M times the work left over the devices left, each behind the least that the stages before it take once.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from operator import add
from typing import Protocol

from costmodel.errors import PlanError
from costmodel.partition.balanced import balanced_partition
from costmodel.partition.latency import NOTHING, Flow, StageTime, before
from costmodel.partition.placing import POLICIES, Placement, placements

__all__ = ["Cut", "Problem", "Stage", "StageModel", "cuts", "steps_of"]

_SLACK = 1.0 + 1e-9
"""Bounds give way by rounding."""


class StageModel(Protocol):
    """What stages cost. Units are numbered in forward order; stop is exclusive; times are seconds. A stage
    with more units on the same devices takes no less time."""

    def stage(self, start: int, stop: int, placement: Placement) -> StageTime | None:
        """A stage of these units on these devices for one micro-batch; None where it cannot be."""

    def send_s(self, cut: int, sender: Placement, receiver: Placement) -> float:
        """Handing what crosses before unit `cut` to the next stage, one way."""

    def fits(self, start: int, stop: int, placement: Placement, in_flight: int) -> bool:
        """Whether the stage's devices hold it with so many micro-batches in flight."""

    def least_work_s(self, start: int) -> float:
        """A lower bound of device-seconds per micro-batch of units `start` and later; 0 says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is cut and what for. `in_flight`: number of stages -> micro-batches each one holds at once."""

    n_units: int
    nodes: tuple[int, ...]
    """Devices of each node."""
    num_microbatches: int
    in_flight: Callable[[int], Sequence[int]]
    replicas: tuple[int, ...] = (1,)
    """How many devices a stage may have."""
    kinds: tuple[int, ...] = ()
    """Kind of each node's devices; empty: all are of one kind."""
    max_stages: int = 0
    """0: as many as there are units and devices."""
    n_stages: int = 0
    """Exactly so many; 0: whatever is best."""
    blocking: bool = False
    """Whether a stage waits for what it receives, activations and gradients, instead of computing beside."""
    policies: tuple[str, ...] = tuple(POLICIES)

    def __post_init__(self) -> None:
        if self.n_units < 1 or not self.nodes or min(self.nodes) < 1 or self.num_microbatches < 1:
            raise PlanError(
                f"{self.n_units} units on nodes of {list(self.nodes)} devices in {self.num_microbatches} "
                "micro-batches: each must be at least 1"
            )
        if self.kinds and len(self.kinds) != len(self.nodes):
            raise PlanError(f"{len(self.kinds)} kinds for {len(self.nodes)} nodes: give one per node")

    @property
    def n_devices(self) -> int:
        """Devices of all nodes."""
        return sum(self.nodes)

    @property
    def most_stages(self) -> int:
        """Stages that can be at most."""
        return min(self.n_units, self.n_devices, self.max_stages or self.n_units)

    def stage_counts(self) -> range:
        """Numbers of stages that are tried."""
        most = self.most_stages
        if self.n_stages:
            return range(self.n_stages, min(self.n_stages, most) + 1)
        return range(1, most + 1)

    def nodes_by_kind(self) -> list[list[int]]:
        """Nodes of each kind, by kind."""
        kinds = self.kinds or (0,) * len(self.nodes)
        return [[n for n, k in enumerate(kinds) if k == kind] for kind in sorted(set(kinds))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Units [start, stop) on the devices of `placement`, taken by `policy`."""

    start: int
    stop: int
    placement: Placement
    policy: str = ""

    @property
    def replicas(self) -> int:
        """Devices of the stage."""
        return sum(self.placement)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A pipeline and its closed-form latency in seconds."""

    latency_s: float
    stages: tuple[Stage, ...]


_Tail = tuple[Stage, "_Tail"] | None
_Front = list[tuple[Flow, float, _Tail]]
"""Flow of an end, seconds that the stage before it waits for its gradients, and its stages."""
_END: _Front = [(NOTHING, 0.0, None)]


def steps_of(model: StageModel, stages: Sequence[Stage], *, blocking: bool = False) -> list[StageTime] | None:
    """A pipeline as `latency.phases` takes it; None where a stage cannot be.

    Transfers stand between the stages, or where they block in the stages that wait for them: activations in
    the forward of the later one, gradients in the backward of the earlier one.
    """
    found: list[StageTime] = []
    for i, stage in enumerate(stages):
        time = model.stage(stage.start, stage.stop, stage.placement)
        if time is None:
            return None
        if i:
            send_s = model.send_s(stage.start, stages[i - 1].placement, stage.placement)
            if blocking:
                found[-1] = _waiting(found[-1], backward_s=send_s)
                time = _waiting(time, forward_s=send_s)
            else:
                found.append(StageTime(forward_s=send_s, backward_s=send_s))
        found.append(time)
    return found


def _waiting(time: StageTime, *, forward_s: float = 0.0, backward_s: float = 0.0) -> StageTime:
    return StageTime(
        forward_s=time.forward_s + forward_s,
        backward_s=time.backward_s + backward_s,
        tail_s=time.tail_s,
    )


def cuts(problem: Problem, model: StageModel) -> list[Cut]:
    """Pipelines, fastest first; empty where nothing fits. The first is the best of all.

    Behind it stand the regular ones (equal runs on equally many devices) and, of every number of stages, the
    best where that beats what was found before it.
    """
    regular = list(_regular(problem, model))
    least = {len(c.stages): c.latency_s for c in sorted(regular, key=lambda c: -c.latency_s)}
    found = {cut.stages: cut for cut in regular}
    bound_s = min(least.values(), default=math.inf)
    for n_stages in sorted(problem.stage_counts(), key=lambda n: least.get(n, math.inf)):
        if best := _Search(problem, model, n_stages, bound_s * _SLACK).best():
            found.setdefault(best.stages, best)
            bound_s = min(bound_s, best.latency_s)
    return sorted(found.values(), key=lambda cut: (cut.latency_s, len(cut.stages)))


def _latency(flow: Flow) -> float:
    return flow[0] + max(0.0, flow[1])


def _regular(problem: Problem, model: StageModel) -> Iterator[Cut]:
    """Pipelines with equally many devices per stage, balanced over them, by one policy each."""
    tried: set[tuple[Placement, ...]] = set()
    for each, policy in product(problem.replicas, problem.policies):
        spots = tuple(_spots(problem, each, policy))
        if not spots or spots in tried:
            continue
        tried.add(spots)
        unit_s = []
        for unit in range(problem.n_units):
            time = model.stage(unit, unit + 1, spots[0])
            unit_s.append(time.both_s if time else math.inf)
        if not all(map(math.isfinite, unit_s)):
            continue
        for n_stages in problem.stage_counts():
            if n_stages > len(spots):
                break
            starts = balanced_partition(unit_s, n_stages)
            stops = (*starts[1:], problem.n_units)
            held = problem.in_flight(n_stages)
            stages = [
                Stage(start=a, stop=b, placement=spot, policy=policy)
                for a, b, spot in zip(starts, stops, spots, strict=False)
            ]
            times = steps_of(model, stages, blocking=problem.blocking)
            fits = all(model.fits(s.start, s.stop, s.placement, k) for s, k in zip(stages, held, strict=True))
            if times is not None and fits:
                flow = NOTHING
                for time in reversed(times):
                    flow = before(time, flow, problem.num_microbatches)
                yield Cut(latency_s=_latency(flow), stages=tuple(stages))


def _spots(problem: Problem, each: int, policy: str) -> Iterator[Placement]:
    """Devices of stages of `each` devices, one stage after the other, kind by kind."""
    used = [0] * len(problem.nodes)
    for nodes in problem.nodes_by_kind():
        while found := placements(used, problem.nodes, each, nodes=nodes, policies=(policy,)):
            yield found[0][1]
            used = [u + p for u, p in zip(used, found[0][1], strict=True)]


class _Search:
    """Memoised best ends of pipelines of `n_stages` that are no slower than `bound_s`."""

    def __init__(self, problem: Problem, model: StageModel, n_stages: int, bound_s: float) -> None:
        self._held = tuple(problem.in_flight(n_stages))
        self._problem = problem
        self._model = model
        self._bound_s = bound_s
        self._work = [model.least_work_s(unit) for unit in range(problem.n_units + 1)]
        """Device-seconds of the units from each one on, at least."""
        self._widest = min(max(problem.replicas), problem.n_devices)
        self._by_kind = problem.nodes_by_kind()
        self._memo: dict[tuple[object, ...], _Front] = {}
        self._open: dict[Placement, list[tuple[str, Placement]]] = {}

    def best(self) -> Cut | None:
        """The pipeline with the least latency, or None where all are slower than the bound."""
        front = self._front(0, (0,) * len(self._problem.nodes), None, 0)
        if not front:
            return None
        flow, _, tail = min(front, key=lambda entry: _latency(entry[0]))
        stages = []
        while tail is not None:
            stage, tail = tail
            stages.append(stage)
        return Cut(latency_s=_latency(flow), stages=tuple(stages))

    def _front(self, start: int, used: Placement, sender: Placement | None, number: int) -> _Front:
        """Ends that begin at a unit with stage `number`, not beaten in both parts of their flow."""
        key = (start, used, sender, number)
        if key not in self._memo:
            self._memo[key] = _unbeaten(self._ends(start, used, sender, number))
        return self._memo[key]

    def _ahead_s(self, done: float, n_stages: int, n_devices: int) -> float:
        """The least that `n_stages` stages on so many devices take one micro-batch with work `done`.

        None may take longer than bound / M, so the work goes to as many of the widest as there can be, and
        what they cannot take to stages of one device.
        """
        if not n_stages or math.isinf(self._bound_s):
            return done / self._widest
        most = self._bound_s / self._problem.num_microbatches
        wide = (n_devices - n_stages) // (self._widest - 1) + 1 if self._widest > 1 else 0
        over = done - wide * self._widest * most
        return done / self._widest if over <= 0.0 else wide * most + over

    def _ends(
        self, start: int, used: Placement, sender: Placement | None, number: int
    ) -> Iterator[tuple[Flow, float, _Tail]]:
        problem, model, bound_s = self._problem, self._model, self._bound_s
        m, n = problem.num_microbatches, problem.n_units
        in_use = sum(used)
        done, rest = self._work[0] - self._work[start], self._work[start]
        ahead_s = self._ahead_s(done, number, in_use)
        left = problem.n_devices - in_use
        n_left = len(self._held) - number
        if left < n_left or ahead_s + m * rest / left > bound_s or m * done > bound_s * max(in_use, 1):
            return
        last = n_left == 1
        blocking = problem.blocking
        for policy, placement in self._places(used):
            send_s = 0.0 if sender is None else model.send_s(start, sender, placement)
            if ahead_s + m * (1.0 if blocking else 2.0) * send_s > bound_s:
                continue
            taken = tuple(map(add, used, placement))
            after = left - sum(placement)
            for stop in (n,) if last else self._stops(start, after, n_left):
                time = model.stage(start, stop, placement)
                if time is None:
                    continue
                if blocking and send_s:
                    time = _waiting(time, forward_s=send_s)
                both_s = time.both_s
                if ahead_s + m * both_s > bound_s:
                    break  # more units only take longer
                if not last and ahead_s + both_s + m * self._work[stop] / after > bound_s:
                    continue
                if not model.fits(start, stop, placement, self._held[number]):
                    continue
                stage = Stage(start=start, stop=stop, placement=placement, policy=policy)
                follows = _END if last else self._front(stop, taken, placement, number + 1)
                for flow, wait_s, tail in follows:
                    found = before(_waiting(time, backward_s=wait_s) if wait_s else time, flow, m)
                    if send_s and not blocking:
                        found = before(StageTime(forward_s=send_s, backward_s=send_s), found, m)
                    if ahead_s + found[0] <= bound_s:
                        yield found, send_s if blocking else 0.0, (stage, tail)

    def _stops(self, start: int, left: int, n_stages: int) -> range:
        """Where a stage of several may end: behind it there are units for the stages to come, and no more
        work than the devices left can do in time."""
        most = self._problem.n_units - n_stages + 1
        if left < n_stages - 1:
            return range(0)
        able = self._bound_s * left / self._problem.num_microbatches
        first = bisect_left(self._work, -able, key=lambda work: -work)
        return range(max(start + 1, first), most + 1)

    def _places(self, used: Placement) -> list[tuple[str, Placement]]:
        if used not in self._open:
            problem = self._problem
            self._open[used] = [
                choice
                for count in problem.replicas
                for nodes in self._by_kind
                for choice in placements(used, problem.nodes, count, nodes=nodes, policies=problem.policies)
            ]
        return self._open[used]


def _unbeaten(ends: Iterator[tuple[Flow, float, _Tail]]) -> _Front:
    """Those that no other is at most equal to in both parts of the flow and in the wait before it."""
    front: _Front = []
    for end in sorted(ends, key=lambda entry: (entry[0], entry[1])):
        (_, late), wait_s, _ = end
        if all(late < other[0][1] or wait_s < other[1] for other in front):
            front.append(end)
    return front
