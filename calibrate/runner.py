"""Rounds over all cases until the time is up: each round visits every case once.

Visits of one case lie a round apart, so a slow spell of the machine touches many cases once, not one case
wholly; cases of several visits have those of the first round at equal distances. A case is left out of
later rounds once its confidence interval is narrow. The first round is always finished: a profile lacks
precision before it lacks a kind.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibrate.benchmarks.base import Bench, Case, load_benchmarks
from calibrate.drift import YARDSTICK
from calibrate.journal import Journal, Visit
from calibrate.timing import Agree, Timed, time_case, time_together

__all__ = ["ALONE", "TOGETHER", "CasePair", "Runner", "chosen_benchmarks", "settled"]

TOGETHER = "together"
"""Every rank runs the operator at once, as in a plan."""
ALONE = "alone"
"""Rank 0 runs it, the others wait."""
_NARROW = 0.01
"""Half-width of the 90 % confidence interval of the median, as a fraction, that ends a case."""
_ENOUGH_VISITS = 4
_YARDSTICK_EVERY = 30
"""Visits between two yardsticks: about half a second."""
_LONG_S = 0.25
"""A call as long as this has one visit in the first round."""
_SKIPPED = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CasePair:
    """A case, and whether every rank runs it at once or rank 0 alone."""

    case: Case
    setting: str

    @property
    def key(self) -> str:
        """The case's name in the journal."""
        return _visit(self, Timed(time_s=1.0, spread=0.0, n=0, timing="")).key


def chosen_benchmarks(only: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the benchmarks to run. Raises UsageError on one that is not there."""
    registry = load_benchmarks()
    if only:
        for name in only:
            registry[name]
        return tuple(dict.fromkeys(only))
    return tuple(str(name) for name in registry)


def settled(times_s: Sequence[float]) -> bool:
    """Whether the median of a case's visits is known well enough.

    Half-width 1.65 * 1.25 * s / sqrt(n) of the median under a normal distribution, s from the mean
    absolute deviation.
    """
    n = len(times_s)
    if n < _ENOUGH_VISITS:
        return False
    middle = statistics.median(times_s)
    deviation = 1.25 * statistics.fmean(abs(t - middle) for t in times_s)
    return 1.65 * 1.25 * deviation / math.sqrt(n) <= _NARROW * middle


class Runner:
    """Visits cases on all ranks in step; rank 0 holds the journal.

    `visits`: case key -> times of earlier visits, the same on every rank. `deadline`: time.monotonic() of
    rank 0 at which measuring ends.
    """

    def __init__(
        self,
        bench: Bench,
        *,
        agree: Agree,
        journal: Journal | None,
        visits: Mapping[str, Sequence[float]],
        deadline: float,
        slice_s: float,
    ) -> None:
        self.bench = bench
        self.agree = agree
        self.journal = journal
        self.times = {key: list(values) for key, values in visits.items()}
        self.deadline = deadline
        self.slice_s = slice_s
        self._gauges: list[CasePair] = []
        self._since = 0

    def run(self, names: Sequence[str], *, most_rounds: int = 1000) -> int:
        """Rounds over the cases of `names`; returns how many were begun."""
        pairs = self._pairs([name for name in names if name != YARDSTICK])
        self._gauges = self._pairs([name for name in names if name == YARDSTICK])
        if not pairs:
            pairs, self._gauges = self._gauges, []
        keys = {id(pair): pair.key for pair in pairs}
        for number in range(most_rounds):
            begun = False
            for pair, most in _round_of(pairs, number):
                key = keys[id(pair)]
                if len(self.times.get(key, ())) >= most or self._done(key):
                    continue
                if number == 0 and self.times.get(key, (0.0,))[-1] > _LONG_S:
                    continue  # transfers over a slow link, say: the first round must end
                begun = True
                over = self._visit(pair, key, short=number == 0)
                over = self._gauge() or over
                if over and number > 0:
                    return number + 1
            if not begun and number >= _ENOUGH_VISITS and all(self._done(key) for key in keys.values()):
                return number
            if self._late():
                return number + 1
        return most_rounds

    def _gauge(self) -> bool:
        """Now and then visit the yardstick, in every round alike; returns whether the deadline has passed."""
        self._since += 1
        if self._since < _YARDSTICK_EVERY or not self._gauges:
            return False
        self._since = 0
        over = [self._visit(pair, pair.key, short=True) for pair in self._gauges]
        return any(over)

    def _pairs(self, names: Sequence[str]) -> list[CasePair]:
        pairs = []
        for name in names:
            cases = load_benchmarks()[name](self.bench)
            pairs += [CasePair(case=case, setting=TOGETHER) for case in cases]
            if self.bench.world_size > 1 and name not in ("host", "memory"):
                local = [case for case in cases if not case.n_ranks]
                pairs += [CasePair(case=case, setting=ALONE) for case in _few(local)]
        return pairs

    def _done(self, key: str) -> bool:
        times = self.times.get(key, [])
        return any(t == _SKIPPED for t in times) or settled(times)

    def _late(self) -> bool:
        """Rank 0's clock decides."""
        return self.agree([time.monotonic() - self.deadline])[0][0] >= 0.0

    def _visit(self, pair: CasePair, key: str, *, short: bool) -> bool:
        """Measure, agree, write down. Returns whether rank 0's deadline has passed."""
        slice_s = self.slice_s * (0.5 if short else 1.0)
        timed, note = self._measure(pair, slice_s)
        rows = self.agree(
            [
                timed.time_s if timed else _SKIPPED,
                timed.spread if timed else 0.0,
                float(timed.n if timed else 0),
                time.monotonic() - self.deadline,
            ]
        )
        n = pair.case.n_ranks
        took_part = rows[:1] if pair.setting == ALONE else rows[: self.bench.members(n) if n else None]
        if any(row[0] < 0 for row in took_part):
            self.times.setdefault(key, []).append(_SKIPPED)
            if self.journal is not None:
                missing = Timed(time_s=math.nan, spread=0.0, n=0, timing="none")
                self.journal.append(_visit(pair, missing, note=note or "another rank could not run it"))
        else:
            merged = Timed(
                time_s=statistics.fmean(row[0] for row in took_part),
                spread=statistics.fmean(row[1] for row in took_part),
                n=int(sum(row[2] for row in took_part)),
                timing=timed.timing if timed else "",
            )
            self.times.setdefault(key, []).append(merged.time_s)
            if self.journal is not None:
                waiting = max(row[0] for row in took_part) / merged.time_s - 1.0
                self.journal.append(_visit(pair, merged, waiting=0.0 if pair.case.n_ranks else waiting))
        return rows[0][3] >= 0.0

    def _measure(self, pair: CasePair, slice_s: float) -> tuple[Timed | None, str]:
        if pair.setting == ALONE and self.bench.rank > 0:
            return None, ""
        if pair.case.n_ranks and self.bench.rank >= self.bench.members(pair.case.n_ranks):
            return None, ""
        try:
            if pair.case.n_ranks:
                return time_together(pair.case, self.bench, slice_s=slice_s, agree=self._agree_in(pair)), ""
            return time_case(pair.case, self.bench, slice_s=slice_s), ""
        except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
            if pair.case.n_ranks:
                raise  # ranks are out of step now: nothing measured after this could be trusted
            return None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

    def _agree_in(self, pair: CasePair) -> Agree:
        """Agreement among the ranks that take part."""
        from calibrate.ranks import agree_over

        n = pair.case.n_ranks
        if self.bench.members(n) == self.bench.world_size:
            return self.agree
        return agree_over(self.bench.groups[n], n, device=self.bench.device)


def _round_of(pairs: Sequence[CasePair], number: int) -> list[tuple[CasePair, int]]:
    """What a round visits in turn, and how many visits of it there are afterwards: the first round has the
    cases of several visits in as many places, equally far apart; later rounds have every case once."""
    if number > 0:
        return [(pair, pair.case.visits + number) for pair in pairs]
    places = [
        ((visit + at / len(pairs)) / pair.case.visits, pair, visit + 1)
        for at, pair in enumerate(pairs)
        for visit in range(pair.case.visits)
    ]
    return [(pair, visit) for _, pair, visit in sorted(places, key=lambda place: place[0])]


def _few(cases: Sequence[Case]) -> list[Case]:
    """Four of the larger cases of a benchmark, where a step spends its time, to compare alone/together."""
    if not cases:
        return []
    ordered = sorted(cases, key=lambda case: math.prod(max(1, size) for size in case.dims.values()))
    positions = {round(f * (len(ordered) - 1)) for f in (0.55, 0.7, 0.85, 1.0)}
    return [ordered[i] for i in sorted(positions)]


def _visit(pair: CasePair, timed: Timed, *, note: str = "", waiting: float = 0.0) -> Visit:
    case = pair.case
    return Visit(
        kind=case.kind,
        variant=case.variant,
        dtype=case.dtype,
        dims=case.dims,
        timing=timed.timing,
        setting=pair.setting,
        time_s=timed.time_s,
        spread=timed.spread,
        n=timed.n,
        note=note,
        waiting=waiting,
    )
