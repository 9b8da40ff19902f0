"""Which event lies inside which on a host thread, and the time that is an event's own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from planner.validation.kineto.events import Event, Kind

__all__ = ["Nesting", "nest"]

_OUTERMOST = (Kind.RANGE, Kind.MODULE, Kind.OPERATOR, Kind.LAUNCH)
"""Of events with equal times the earlier kind is the outer one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nesting:
    """`parent`: position of the enclosing event, -1 outside all. `own_s`: seconds in no event inside.

    `order`: positions by thread and time, every event after the one that encloses it.
    """

    parent: tuple[int, ...]
    own_s: tuple[float, ...]
    order: tuple[int, ...]

    def children(self) -> dict[int, list[int]]:
        """Position -> positions directly inside it, in order of time; -1: those outside all."""
        found: dict[int, list[int]] = defaultdict(list)
        for i in self.order:
            found[self.parent[i]].append(i)
        return found


def nest(events: Sequence[Event]) -> Nesting:
    """Nest the events of each thread. An event that ends after the one it began in (by the rounding of
    times) counts up to that one's end, so that no instant belongs to two events."""
    parent = [-1] * len(events)
    own_s = [event.duration_s for event in events]
    end_s = [event.end_s for event in events]
    threads: dict[int, list[int]] = defaultdict(list)
    for i, event in enumerate(events):
        threads[event.thread].append(i)
    order: list[int] = []
    for members in threads.values():
        members.sort(key=lambda i: (events[i].start_s, -events[i].end_s, _OUTERMOST.index(events[i].kind), i))
        open_events: list[int] = []
        for i in members:
            start_s = events[i].start_s
            while open_events and end_s[open_events[-1]] <= start_s:
                open_events.pop()
            if open_events:
                outer = open_events[-1]
                parent[i] = outer
                end_s[i] = min(end_s[i], end_s[outer])
                own_s[i] = end_s[i] - start_s
                own_s[outer] -= own_s[i]
            open_events.append(i)
        order += members
    # a child's time was taken off before its own children's: what is left cannot be negative
    return Nesting(parent=tuple(parent), own_s=tuple(max(0.0, s) for s in own_s), order=tuple(order))
