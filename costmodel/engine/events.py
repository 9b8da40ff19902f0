"""Event simulation with rates that change: computation beside communication, links that are shared.

Every running action has work left (seconds at rate 1) and a rate; when an action begins or ends, those whose
rate it changes are brought up to date and their ends are scheduled anew.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Rates", "simulate_events"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What slows what. `compute[i]` / `comm[i]`: rank on which action i computes / communicates, -1 where it
    does not; `takes[i]`: share of that rank's device that it keeps from computation while it communicates;
    `link[i]`: the link that it shares, "" for none."""

    compute: Sequence[int]
    comm: Sequence[int]
    takes: Sequence[float]
    link: Sequence[str]
    compute_slowdown: float
    comm_slowdown: float


class _Running:
    """Running actions, their rates and the heap of their ends."""

    def __init__(self, durations: Sequence[float], rates: Rates) -> None:
        self.rates = rates
        self.durations = durations
        self.left = list(durations)
        self.since = [0.0] * len(durations)
        self.rate = [1.0] * len(durations)
        self.version = [0] * len(durations)
        self.events: list[tuple[float, int, int]] = []
        self.computing: defaultdict[int, dict[int, None]] = defaultdict(dict)
        self.communicating: defaultdict[int, dict[int, None]] = defaultdict(dict)
        self.on_link: defaultdict[str, dict[int, None]] = defaultdict(dict)
        self.slows = rates.compute_slowdown > 1.0 or rates.comm_slowdown > 1.0 or any(rates.takes)

    def begin(self, i: int, now: float) -> None:
        self.since[i] = now
        if self.durations[i] > 0:
            self._enter_or_leave(i, now, enters=True)
        self.version[i] += 1
        self.rate[i] = self._rate(i)
        heapq.heappush(self.events, (now + self.left[i] / self.rate[i], i, self.version[i]))

    def finish(self, i: int, now: float) -> None:
        self.version[i] += 1
        if self.durations[i] > 0:
            self._enter_or_leave(i, now, enters=False)

    def _enter_or_leave(self, i: int, now: float, *, enters: bool) -> None:
        rates = self.rates
        touched: list[int] = []
        if self.slows and rates.compute[i] >= 0:
            rank = rates.compute[i]
            _put(self.computing[rank], i, enters)
            touched += self.communicating[rank]
        if self.slows and rates.comm[i] >= 0:
            rank = rates.comm[i]
            _put(self.communicating[rank], i, enters)
            touched += self.computing[rank]
        if rates.link[i]:
            _put(self.on_link[rates.link[i]], i, enters)
            touched += self.on_link[rates.link[i]]
        for j in touched:
            if j != i and (rate := self._rate(j)) != self.rate[j]:
                self.left[j] = max(0.0, self.left[j] - (now - self.since[j]) * self.rate[j])
                self.since[j] = now
                self.rate[j] = rate
                self.version[j] += 1
                heapq.heappush(self.events, (now + self.left[j] / rate, j, self.version[j]))

    def _rate(self, i: int) -> float:
        rates = self.rates
        rate = 1.0
        if self.slows and rates.compute[i] >= 0 and (beside := self.communicating[rates.compute[i]]):
            # of several at a time one alone counts: they share what the link moves
            rate = (1.0 - max(rates.takes[j] for j in beside)) / rates.compute_slowdown
        if self.slows and rates.comm[i] >= 0 and self.computing[rates.comm[i]]:
            rate /= rates.comm_slowdown
        if rates.link[i]:
            rate /= max(1, len(self.on_link[rates.link[i]]))
        return rate


def _put(running: dict[int, None], i: int, enters: bool) -> None:
    if enters:
        running[i] = None
    else:
        del running[i]


def simulate_events(
    durations: Sequence[float], follows: Sequence[Sequence[int]], waits: list[int], rates: Rates
) -> tuple[list[float], list[float], int]:
    """Start and end of every action, and how many ended (fewer than all: a deadlock).

    `waits[i]` counts the predecessors of i and is counted down in place.
    """
    n = len(durations)
    start = [0.0] * n
    end = [0.0] * n
    running = _Running(durations, rates)
    done = 0
    for i in [i for i in range(n) if not waits[i]]:
        running.begin(i, 0.0)
    events = running.events
    while events:
        now, i, version = heapq.heappop(events)
        if version != running.version[i]:
            continue
        done += 1
        end[i] = now
        running.finish(i, now)
        for j in follows[i]:
            waits[j] -= 1
            if not waits[j]:
                start[j] = now
                running.begin(j, now)
    return start, end, done
