"""The critical path of a simulated step: the chain of actions that its length consists of.

From the action that ends last back to the start: each action began when the last of what it waited for (its
own dependencies, or the action before it on its stream) had ended, so the chain has no gaps and its spans add
up to the step. Making anything else faster does not help; what is on it shortens the step until another chain
is the longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costmodel.engine import Action
    from costmodel.predict import Forecast
    from costmodel.step import StepResult

__all__ = ["CriticalPath", "Span", "critical_path", "path_of"]

_PART_OF_KIND = {
    "transfer": "pp_comm",
    "reduce": "dp_comm",
    "gather": "dp_comm",
    "optimizer": "optimizer",
    "copy": "offload",
    "update": "offload",
}
"""Kind of action -> part of the breakdown, for actions that do not say themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """`count` actions of one rank, stream and kind that follow each other on the path."""

    rank: int
    stream: str
    kind: str
    seconds: float
    count: int
    first: str
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalPath:
    """Spans in order of time, and their seconds by part, by kind of action and by pipeline rank."""

    step_time_s: float
    spans: tuple[Span, ...]
    parts_s: dict[str, float]
    kinds_s: dict[str, float]
    ranks_s: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain fields."""
        return {
            "step_time_s": self.step_time_s,
            "parts_s": self.parts_s,
            "kinds_s": self.kinds_s,
            "ranks_s": {str(rank): seconds for rank, seconds in self.ranks_s.items()},
            "spans": [
                {
                    "rank": s.rank,
                    "stream": s.stream,
                    "kind": s.kind,
                    "seconds": s.seconds,
                    "count": s.count,
                    "first": s.first,
                    "last": s.last,
                }
                for s in self.spans
            ],
        }


def path_of(step: StepResult) -> list[tuple[int, float, float]]:
    """(position in the issue list, start, end) of every action on the path, in order of time.

    Clipped to the step's window (schedules without flush); an action is in it from where the one before ends.
    """
    timeline = step.timeline
    begin, until = step.window_s
    before: list[int] = []
    newest: dict[tuple[int, str], int] = {}
    for i, action in enumerate(timeline.actions):
        lane = (action.rank, action.stream)
        before.append(newest.get(lane, -1))
        newest[lane] = i
    inside = [i for i, end in enumerate(timeline.end_s) if end <= until]
    if not inside:
        return []
    at = max(inside, key=lambda i: timeline.end_s[i])
    chain: list[tuple[int, float, float]] = []
    while True:
        start, end = timeline.start_s[at], timeline.end_s[at]
        if end <= begin:
            break
        chain.append((at, max(start, begin), end))
        causes = [*timeline.actions[at].after, *([before[at]] if before[at] >= 0 else [])]
        if start <= begin or not causes:
            break
        at = max(causes, key=lambda j: timeline.end_s[j])
    return chain[::-1]


def critical_path(forecast: Forecast) -> CriticalPath:
    """The critical path of a forecast's step. Its spans, with what the step takes beyond the simulated
    actions (the host's work once a step), add up to the step time."""
    step, step_time_s = forecast.step, forecast.prediction.step_time_s
    spans: list[Span] = []
    parts: dict[str, float] = {}
    kinds: dict[str, float] = {}
    ranks: dict[int, float] = {}
    for i, start, end in path_of(step):
        action, seconds = step.timeline.actions[i], end - start
        if seconds <= 0:
            continue
        kinds[action.kind] = kinds.get(action.kind, 0.0) + seconds
        ranks[action.rank] = ranks.get(action.rank, 0.0) + seconds
        for part, share in _shares(action).items():
            parts[part] = parts.get(part, 0.0) + seconds * share
        _append(spans, action, seconds)
    beyond = step_time_s - sum(span.seconds for span in spans)
    if beyond > 1e-9 * step_time_s:
        kinds["once a step"] = beyond
        parts["host"] = parts.get("host", 0.0) + beyond
    return CriticalPath(
        step_time_s=step_time_s,
        spans=tuple(spans),
        parts_s=_sorted(parts),
        kinds_s=_sorted(kinds),
        ranks_s=dict(sorted(ranks.items())),
    )


def _shares(action: Action) -> dict[str, float]:
    """What an action's time is spent on, as fractions."""
    total = sum(action.parts_s.values())
    if total > 0:
        return {part: seconds / total for part, seconds in action.parts_s.items()}
    return {_PART_OF_KIND.get(action.kind, "compute"): 1.0}


def _append(spans: list[Span], action: Action, seconds: float) -> None:
    last = spans[-1] if spans else None
    if last and (last.rank, last.stream, last.kind) == (action.rank, action.stream, action.kind):
        spans[-1] = Span(
            rank=last.rank,
            stream=last.stream,
            kind=last.kind,
            seconds=last.seconds + seconds,
            count=last.count + 1,
            first=last.first,
            last=action.name,
        )
        return
    spans.append(
        Span(
            rank=action.rank,
            stream=action.stream,
            kind=action.kind,
            seconds=seconds,
            count=1,
            first=action.name,
            last=action.name,
        )
    )


def _sorted(values: dict[str, float]) -> dict[str, float]:

    return dict(sorted(values.items(), key=lambda item: -item[1]))
