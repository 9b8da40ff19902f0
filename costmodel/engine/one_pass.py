"""Start and end of actions in one pass over a list in which each comes after what it depends on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from costmodel.engine.core import Action

__all__ = ["communicates", "longest_paths", "slowed_paths"]

_Times = tuple[list[float], list[float]]
"""Start and end of every action, seconds."""

_COMMUNICATING = ("tensor", "data")
"""Streams whose kernels take multiprocessors and memory bandwidth from computation. Copies do not, nor do
transfers from one rank to another, which reduce nothing: between two gloo ranks they were there after 0.0 to
0.1 ms (median; 64 KiB to 1 MiB) beside computation on both, no later than alone."""


def communicates(stream: str) -> bool:
    """Whether a stream's actions slow the computation of their rank, and it them."""
    return stream.startswith(_COMMUNICATING)


def longest_paths(actions: Sequence[Action], durations: Sequence[float]) -> _Times | None:
    """Times where nothing slows anything; None where an action is listed before what it depends on."""
    start: list[float] = []
    end: list[float] = []
    free: dict[tuple[int, str], float] = {}
    ended = free.get
    for i, (rank, stream, _, _, after, _, _, _, _, _) in enumerate(actions):
        lane = (rank, stream)
        begin = ended(lane, 0.0)
        for j in after:
            if j >= i:
                return None
            finish = end[j]
            if finish > begin:
                begin = finish
        start.append(begin)
        free[lane] = begin = begin + durations[i]
        end.append(begin)
    return start, end


def slowed_paths(actions: Sequence[Action], durations: Sequence[float]) -> _Times | None:
    """Times where collectives take a share of their rank's device from computation; None where an action is
    listed before what it depends on, or a collective starts beside computation listed before it, whose end
    would have to be known again."""
    start: list[float] = []
    end: list[float] = []
    free: dict[tuple[int, str], float] = {}
    computed: dict[int, float] = {}
    taking: defaultdict[int, list[tuple[float, float, float]]] = defaultdict(list)
    for i, action in enumerate(actions):
        lane = (action.rank, action.stream)
        begin = free.get(lane, 0.0)
        for j in action.after:
            if j >= i:
                return None
            begin = max(begin, end[j])
        finish = begin + durations[i]
        if action.stream == "compute":
            if beside := taking[action.rank]:
                beside[:] = [span for span in beside if span[1] > begin]
                finish = _slowed_end(begin, durations[i], beside)
            computed[action.rank] = finish
        elif action.takes and durations[i] > 0 and communicates(action.stream):
            if begin < computed.get(action.rank, 0.0):
                return None
            taking[action.rank].append((begin, finish, action.takes))
        start.append(begin)
        free[lane] = finish
        end.append(finish)
    return start, end


def _slowed_end(begin: float, work_s: float, beside: Sequence[tuple[float, float, float]]) -> float:
    """When work that begins then ends; `beside`: (start, end, share taken) of collectives. Of several at a
    time one alone counts."""
    now, left = begin, work_s
    while left > 0.0:
        rate = 1.0 - max((share for since, until, share in beside if since <= now < until), default=0.0)
        changes = min((t for span in beside for t in span[:2] if t > now), default=None)
        if changes is None or left <= (changes - now) * rate:
            return now + left / rate
        left -= (changes - now) * rate
        now = changes
    return now
