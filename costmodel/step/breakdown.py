"""Where a step's time went: busy parts, waits by what was waited for, memory held over time."""

from __future__ import annotations

from collections.abc import Sequence

from costmodel.engine import Run
from costmodel.stage_costs import BREAKDOWN_PARTS

__all__ = ["activation_curve", "breakdown"]

_WAIT_PART = {
    "reduce": "dp_comm",
    "gather": "dp_comm",
    "transfer": "pp_comm",
    "copy": "offload",
    "update": "offload",
}


def breakdown(
    timeline: Run, n_ranks: int, window_s: tuple[float, float]
) -> tuple[dict[str, float], tuple[float, ...]]:
    """Per part the mean over ranks of the time inside the window, and each rank's busy time.

    A rank's time is its compute stream's work and waits. A wait is followed back along what ended last
    before it: the part in which a collective, transfer or copy ran is that one's, the part in which another
    rank computed is bubble. The parts add up to the window's length.
    """
    walker = _Walker(timeline, window_s)
    busy = [0.0] * n_ranks
    free_at = [0.0] * n_ranks
    newest = [-1] * n_ranks
    totals = walker.totals
    for i, (action, start, end) in enumerate(
        zip(timeline.actions, timeline.start_s, timeline.end_s, strict=True)
    ):
        rank = action.rank
        if newest[rank] < 0 or end > timeline.end_s[newest[rank]]:
            newest[rank] = i
        if action.stream != "compute":
            continue
        if start > free_at[rank]:
            walker.wait(i, free_at[rank], start)
        inside = walker.inside(start, end)
        if inside > 0 and action.parts_s:
            scale = inside / sum(action.parts_s.values())
            for part, seconds in action.parts_s.items():
                totals[part] += seconds * scale
        else:
            totals["compute"] += inside
        busy[rank] += inside
        free_at[rank] = end
    until = window_s[1]
    for rank in range(n_ranks):
        tail = free_at[rank]
        if newest[rank] >= 0 and (end := timeline.end_s[newest[rank]]) > tail:
            walker.span(newest[rank], tail, end)
            walker.wait(newest[rank], tail, timeline.start_s[newest[rank]])
            tail = end
        totals["bubble"] += walker.inside(tail, until)
    return {part: seconds / n_ranks for part, seconds in totals.items()}, tuple(busy)


class _Walker:
    """Follows waits back along the actions that caused them and sums them up by part."""

    def __init__(self, timeline: Run, window_s: tuple[float, float]) -> None:
        self._timeline = timeline
        self._window_s = window_s
        self.totals = dict.fromkeys(BREAKDOWN_PARTS, 0.0)
        self._before: list[int] = []
        """The action before each one on its stream, -1 for the first."""
        last: dict[tuple[int, str], int] = {}
        for i, action in enumerate(timeline.actions):
            lane = (action.rank, action.stream)
            self._before.append(last.get(lane, -1))
            last[lane] = i

    def inside(self, start: float, end: float) -> float:
        """How much of a span lies in the window."""
        return max(0.0, min(end, self._window_s[1]) - max(start, self._window_s[0]))

    def span(self, i: int, start: float, end: float) -> bool:
        """Count the part of a span in which action i ran; True where it covers all that is left."""
        began = max(start, self._timeline.start_s[i])
        action = self._timeline.actions[i]
        part = _WAIT_PART.get(action.kind, "bubble") if action.stream != "compute" else "bubble"
        if part == "bubble":
            began = start
        self.totals[part] += self.inside(began, end)
        return began <= start

    def wait(self, i: int, start: float, end: float) -> None:
        """Count the span before action i in which its rank waited."""
        ends, actions = self._timeline.end_s, self._timeline.actions
        while end > start:
            before, blocker = self._before[i], -1
            for j in actions[i].after:
                if blocker < 0 or ends[j] > ends[blocker]:
                    blocker = j
            if before >= 0 and (blocker < 0 or ends[before] > ends[blocker]):
                blocker = before
            if blocker < 0 or ends[blocker] <= start:
                self.totals["bubble"] += self.inside(start, end)
                return
            if self.span(blocker, start, end):
                return
            end = self._timeline.start_s[blocker]
            i = blocker


def activation_curve(timeline: Run, rank: int) -> list[tuple[float, int]]:
    """(time in s, activation bytes held from then on) of one rank, in order of time."""
    held = 0
    curve: list[tuple[float, int]] = [(0.0, 0)]
    for i, action in enumerate(timeline.actions):
        if action.rank != rank or not action.holds_bytes:
            continue
        held += action.holds_bytes
        times: Sequence[float] = timeline.start_s if action.holds_bytes > 0 else timeline.end_s
        curve.append((times[i], held))
    return curve
