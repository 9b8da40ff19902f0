"""Why one plan beats another: where their times differ, what each step hangs on, and what would turn it.

What would turn it is found by pricing both plans again on changed hardware (`planner.whatif.levers`): each
kind of speed alone is made faster and slower, by doublings up to a limit, until the order changes, and the
factor at which it does is bisected. A speed that never turns it within the limit is said to be not enough.
The same is done for the global batch, in doublings (more micro-batches hide more of a pipeline's bubble).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.errors import PlanError
from costmodel.plan import Plan
from planner.critical_path import CriticalPath, critical_path
from planner.whatif.levers import LEVERS, scaled

if TYPE_CHECKING:
    from costmodel.predict import Forecaster, Prediction

__all__ = ["Change", "Explanation", "explain_pair"]

_MOST_DOUBLINGS = 4
"""A speed is changed by up to 16 times either way."""
_MOST_BATCHES = 4
"""The batch is doubled up to 16 times."""
_TOLERANCE = 0.005
_MOST_STEPS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one thing alone would have to become for the slower plan to win.

    `factor`: of today's speed (or batch), nearest to 1; None where none within the limit is enough. `gap`:
    the slower plan's time over the faster one's, less 1, at the limit that brought it nearest.
    """

    what: str
    about: str
    factor: float | None
    gap: float
    at_factor: float
    """Where `gap` was found: at `factor`, or at the limit."""

    def to_dict(self) -> dict[str, Any]:
        """Plain fields."""
        return {
            "what": self.what,
            "about": self.about,
            "factor": self.factor,
            "gap": self.gap,
            "at_factor": self.at_factor,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why `a` is faster than `b` (or slower: `faster` and `slower` say which)."""

    a: Prediction
    b: Prediction
    probability: float
    """P(a is faster than b)."""
    differences_s: tuple[tuple[str, float, float], ...]
    """(part, seconds of a, seconds of b), largest difference first; the differences add up to that of the
    steps."""
    path_a: CriticalPath
    path_b: CriticalPath
    changes: tuple[Change, ...]
    """For the slower plan to win; those that are enough first, the smallest change first."""

    @property
    def faster(self) -> Prediction:
        """The plan with the shorter step."""
        return self.a if self.a.step_time_s <= self.b.step_time_s else self.b

    @property
    def slower(self) -> Prediction:
        """The other one."""
        return self.b if self.faster is self.a else self.a

    def to_dict(self) -> dict[str, Any]:
        """Plain fields."""
        return {
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "probability_a_faster": self.probability,
            "faster": str(self.faster.plan),
            "difference_s": self.b.step_time_s - self.a.step_time_s,
            "differences_s": [
                {"part": part, "a_s": mine, "b_s": other, "difference_s": other - mine}
                for part, mine, other in self.differences_s
            ],
            "critical_path_a": self.path_a.to_dict(),
            "critical_path_b": self.path_b.to_dict(),
            "changes": [change.to_dict() for change in self.changes],
        }

    def text(self) -> str:
        """The explanation in words and columns."""
        from planner.render import bytes_text, duration, percent

        a, b = self.a, self.b
        gap = b.step_time_s / a.step_time_s - 1.0
        lines = [
            f"A = {a.plan}: {duration(a.step_time_s)} [{duration(a.step_time_low_s)} .. "
            f"{duration(a.step_time_high_s)}], {bytes_text(a.peak_memory_bytes)}",
            f"B = {b.plan}: {duration(b.step_time_s)} [{duration(b.step_time_low_s)} .. "
            f"{duration(b.step_time_high_s)}], {bytes_text(b.peak_memory_bytes)}",
            f"B's step is {percent(abs(gap))} {'longer' if gap >= 0 else 'shorter'} than A's; "
            f"P(A is faster) = {percent(self.probability)}",
            "",
            "where the time differs (B - A):",
        ]
        lines += [
            f"  {part:<10} {duration(mine):>9} {duration(other):>9}  "
            f"{percent((other - mine) / a.step_time_s, sign=True)}"
            for part, mine, other in self.differences_s
            if mine or other
        ]
        for name, path in (("A", self.path_a), ("B", self.path_b)):
            lines += ["", f"critical path of {name}: " + _path_text(path)]
        other = "B" if self.slower is b else "A"
        lines += ["", f"for {other} to win, one thing alone:"]
        lines += [f"  {_change_text(change, other)}" for change in self.changes]
        return "\n".join(lines)


def explain_pair(
    forecaster: Forecaster,
    a: Plan | str,
    b: Plan | str,
    *,
    levers: Iterable[str] | None = None,
) -> Explanation:
    """Explain two plans of one model on one machine.

    `levers`: which speeds to vary (default: all). Raises PlanError where a plan cannot be run, where both are
    the same, or where they train different batches (their steps do not compare).
    """
    from planner.search import probability_faster

    first, second = (Plan.parse(plan) if isinstance(plan, str) else plan for plan in (a, b))
    if first == second:
        raise PlanError(f"both plans are {first}: name two that differ")
    if first.global_batch_size != second.global_batch_size:
        raise PlanError(
            f"{first} trains {first.global_batch_size} samples a step and {second} "
            f"{second.global_batch_size}: give both the same gbs to compare their steps"
        )
    forecasts = [forecaster.forecast(plan) for plan in (first, second)]
    mine, other = (forecast.prediction for forecast in forecasts)
    parts = {*mine.breakdown_s, *other.breakdown_s}
    differences = [(p, mine.breakdown_s.get(p, 0.0), other.breakdown_s.get(p, 0.0)) for p in parts]
    pair = (first, second) if mine.step_time_s <= other.step_time_s else (second, first)
    changes = [
        _turning(
            name,
            LEVERS[name].about,
            lambda factor, name=name: _log_gap(scaled(forecaster, {name: factor}), *pair),  # type: ignore[misc]
        )
        for name in map(str, LEVERS if levers is None else levers)
    ]
    changes.append(_batch(forecaster, *pair))
    return Explanation(
        a=mine,
        b=other,
        probability=probability_faster(mine, other),
        differences_s=tuple(sorted(differences, key=lambda d: (-abs(d[2] - d[1]), d[0]))),
        path_a=critical_path(forecasts[0]),
        path_b=critical_path(forecasts[1]),
        changes=tuple(sorted(changes, key=_nearness)),
    )


def _log_gap(forecaster: Forecaster, faster: Plan, slower: Plan) -> float:
    """ln(time of the slower / time of the faster)."""
    times = [forecaster.forecast(plan).prediction.step_time_s for plan in (faster, slower)]
    return math.log(times[1] / times[0])


def _turning(what: str, about: str, gap_at: Callable[[float], float]) -> Change:
    """The factor nearest to 1 at which the gap closes: doublings outwards on both sides, then bisection."""
    today = gap_at(1.0)
    nearest = (today, 1.0)
    inner = {1: 1.0, -1: 1.0}
    for doubling in range(1, _MOST_DOUBLINGS + 1):
        turned = []
        for sign in (1, -1):
            factor = 2.0 ** (sign * doubling)
            gap = gap_at(factor)
            nearest = min(nearest, (gap, factor))
            if gap < 0:
                turned.append(_bisect(gap_at, inner[sign], factor))
            inner[sign] = factor
        if turned:
            factor = min(turned, key=lambda f: abs(math.log(f)))
            return Change(what=what, about=about, factor=factor, gap=0.0, at_factor=factor)
    gap, factor = nearest
    return Change(what=what, about=about, factor=None, gap=math.expm1(gap), at_factor=factor)


def _bisect(gap_at: Callable[[float], float], open_at: float, closed_at: float) -> float:
    """The factor, between one with a gap and one without, at which it has just closed."""
    for _ in range(_MOST_STEPS):
        if max(open_at / closed_at, closed_at / open_at) <= 1.0 + _TOLERANCE:
            break
        middle = math.sqrt(open_at * closed_at)
        if gap_at(middle) < 0:
            closed_at = middle
        else:
            open_at = middle
    return closed_at


def _batch(forecaster: Forecaster, faster: Plan, slower: Plan) -> Change:
    """The global batch, doubled until the order changes."""
    about = "samples of a step"
    nearest = (_log_gap(forecaster, faster, slower), 1.0)
    for doubling in range(1, _MOST_BATCHES + 1):
        size = faster.global_batch_size * 2**doubling
        pair = (plan.with_(global_batch_size=size) for plan in (faster, slower))
        gap = _log_gap(forecaster, *pair)
        if gap < 0:
            factor = float(2**doubling)
            return Change(
                what="global_batch", about=about, factor=factor, gap=math.expm1(gap), at_factor=factor
            )
        nearest = min(nearest, (gap, float(2**doubling)))
    gap, at = nearest
    return Change(what="global_batch", about=about, factor=None, gap=math.expm1(gap), at_factor=at)


def _nearness(change: Change) -> tuple[bool, float, str]:
    if change.factor is None:
        return True, change.gap, change.what
    return False, abs(math.log(change.factor)), change.what


def _change_text(change: Change, winner: str) -> str:
    name = f"{change.what} ({change.about})"
    factor = change.factor if change.factor is not None else change.at_factor
    if change.what == "global_batch":
        amount = f"{factor:g} times as large"
    else:
        amount = f"{factor:.3g} times as fast" if factor >= 1 else f"{1 / factor:.3g} times slower"
    if change.factor is not None:
        return f"{winner} wins once {name} is {amount}"
    if factor == 1.0:
        return f"{name}: no change of it brings {winner} nearer"
    return f"{name}: not enough; {amount}, {winner} still takes {change.gap:+.1%}"


def _path_text(path: CriticalPath) -> str:
    from planner.render import percent

    parts = ", ".join(f"{part} {percent(s / path.step_time_s)}" for part, s in path.parts_s.items() if s)
    ranks = ", ".join(f"{rank}: {percent(s / path.step_time_s)}" for rank, s in path.ranks_s.items())
    return f"{parts}; by pipeline rank {ranks}"
