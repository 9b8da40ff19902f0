"""Where the steps of one rank went: kernels, communication, bubble, optimizer, copies, host.

The parts cover the steps without overlap. On a CPU the rank's own threads compute; communication counts
where they run no operator while something is in flight. With an accelerator the device computes;
communication counts where none but communication kernels run, host is what is left idle. Of the exposed
point-to-point time, what goes beyond the shortest transfer of that kind and size seen on any rank is waiting
for the other stage: bubble.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from planner.validation.kineto.attribution import OPTIMIZER, Attribution, step_at
from planner.validation.kineto.events import Event, Kind, RankTrace, is_host_copy, is_point_to_point
from planner.validation.kineto.operators import Call, DeviceWork
from planner.validation.kineto.spans import Spans, intersection, length_s, merged, without

__all__ = ["PARTS", "Activity", "Collective", "activity_of", "shortest_transfers"]

PARTS = ("kernel", "communication", "bubble", "optimizer", "copy", "host")
"""What a step is made of; the parts add up to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """Collectives of one name on one stream (or host thread), all steps; times include waiting."""

    name: str
    stream: int
    n: int
    total_s: float
    shortest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """One rank's mean step in seconds. `parts_s` has the keys of PARTS and adds up to `step_s`."""

    n_steps: int
    step_s: float
    parts_s: Mapping[str, float]
    communication_s: float
    """In which anything was in flight, hidden behind computation or not."""
    overlapped_s: float
    """Of it, behind computation or the optimizer."""
    idle_s: float
    """In which nothing that the profiler records ran: no operator, no kernel, nothing in flight."""
    collectives: tuple[Collective, ...]

    @property
    def overlap_fraction(self) -> float | None:
        """Share of the communication that is hidden; None where there is none."""
        return self.overlapped_s / self.communication_s if self.communication_s else None

    def to_dict(self) -> dict[str, Any]:
        """As `validate trace --json` prints it."""
        return {**asdict(self), "overlap_fraction": self.overlap_fraction}


def _in_flight(trace: RankTrace, work: Iterable[DeviceWork]) -> list[Event]:
    """Collectives with their waits: kernels where the device communicates, else the host's records."""
    kernels = [item.event for item in work if item.communication]
    return kernels or list(trace.in_flight)


def _receives(events: Iterable[Event]) -> list[Event]:
    """Point-to-point records that wait for the other side: a record of sending alone does not."""
    return [e for e in events if is_point_to_point(e.name) and "recv" in e.name.lower()]


def shortest_transfers(
    ranks: Sequence[tuple[RankTrace, Sequence[DeviceWork]]],
) -> dict[tuple[str, tuple[Any, ...]], float]:
    """(name, shapes) of point-to-point transfers -> seconds of the shortest one on any rank: the one whose
    other side was ready."""
    shortest: dict[tuple[str, tuple[Any, ...]], float] = {}
    for trace, work in ranks:
        for event in _receives(_in_flight(trace, work)):
            key = (event.name, event.shapes)
            shortest[key] = min(event.duration_s, shortest.get(key, event.duration_s))
    return shortest


def activity_of(
    trace: RankTrace,
    found: Attribution,
    calls: Sequence[Call],
    work: Sequence[DeviceWork],
    shortest_s: Mapping[tuple[str, tuple[Any, ...]], float],
) -> Activity:
    """The mean step of one rank; `shortest_s` as `shortest_transfers` finds it."""
    flying = _in_flight(trace, work)
    if trace.on_device:
        end_s = max([found.steps[-1][1], *(item.event.end_s for item in work)])
        steps = merged([*found.steps, (found.steps[-1][0], end_s)])
        updates = _spans(item.event for item in work if item.phase == OPTIMIZER and not item.communication)
        computing = _spans(
            item.event
            for item in work
            if not item.communication and item.phase != OPTIMIZER and not is_host_copy(item.event)
        )
        moving = _spans(item.event for item in work if is_host_copy(item.event))
        busy = _spans(item.event for item in work)
    else:
        steps = merged(found.steps)
        updates = merged(
            (trace.host[i].start_s, trace.host[i].end_s)
            for i in found.nesting.order
            if trace.host[i].kind is Kind.RANGE and found.phase[i] == OPTIMIZER
        )
        own = _own_threads(trace, found)
        computing = merged(
            (call.start_s, call.end_s)
            for call in calls
            if not call.communication and trace.host[call.event].thread in own
        )
        computing, moving = without(computing, updates), []
        flying += [trace.host[call.event] for call in calls if call.communication]
        busy = _spans(e for e in (*trace.host, *flying) if e.kind in (Kind.OPERATOR, Kind.COLLECTIVE))
    updates = without(intersection(updates, steps), computing)
    computing = intersection(computing, steps)
    working = merged([*computing, *updates])
    airborne = intersection(_spans(flying), steps)
    exposed = without(airborne, working)
    waiting = without(
        intersection(_spans(e for e in flying if is_point_to_point(e.name)), exposed),
        _spans(e for e in flying if not is_point_to_point(e.name)),
    )
    counted = Counter((e.name, e.shapes) for e in _receives(flying) if step_at(steps, e.end_s) >= 0)
    transfers_s = sum(n * shortest_s.get(key, 0.0) for key, n in counted.items())
    bubble_s = max(0.0, length_s(waiting) - transfers_s)
    moved = without(intersection(moving, steps), merged([*working, *airborne]))
    n, total_s = len(found.steps), length_s(steps)
    parts_s = {
        "kernel": length_s(computing),
        "communication": length_s(exposed) - bubble_s,
        "bubble": bubble_s,
        "optimizer": length_s(updates),
        "copy": length_s(moved),
    }
    parts_s["host"] = total_s - sum(parts_s.values())
    return Activity(
        n_steps=n,
        step_s=total_s / n,
        parts_s={name: parts_s[name] / n for name in PARTS},
        communication_s=length_s(airborne) / n,
        overlapped_s=length_s(intersection(airborne, working)) / n,
        idle_s=length_s(without(steps, busy)) / n,
        collectives=_collectives(e for e in _in_flight(trace, work) if step_at(steps, e.start_s) >= 0),
    )


def _spans(events: Iterable[Event]) -> Spans:
    return merged((e.start_s, e.end_s) for e in events)


def _own_threads(trace: RankTrace, found: Attribution) -> set[int]:
    """Threads that run the model: those with module ranges, steps or backward nodes. What communication
    threads copy is communication."""
    own = {
        e.thread
        for i, e in enumerate(trace.host)
        if found.node[i] or e.kind is Kind.MODULE or (e.kind is Kind.RANGE and not found.communication[i])
    }
    return own or {e.thread for e in trace.host}


def _collectives(flying: Iterable[Event]) -> tuple[Collective, ...]:
    groups: dict[tuple[str, int], list[float]] = defaultdict(list)
    for event in flying:
        groups[event.name, event.thread].append(event.duration_s)
    return tuple(
        Collective(name=name, stream=stream, n=len(times), total_s=sum(times), shortest_s=min(times))
        for (name, stream), times in sorted(groups.items())
    )
