"""Why a row is far off, as far as the rows themselves tell.

All errors here are ln(forecast time / measured time), whatever the metric. In this order, each where the rows
show it:

  repeats    the same configuration was measured with times that differ as much
  cohort     rows like it (of its source, or within it of its GPU, model, ... or two of these) err the same
             way: the median of the others takes away at least half of its error
  part       in its source the error goes with the share of one part of the forecast (rank correlation)
  alone      the other plans of the same problem, or its source's other rows, are right: this one stands alone

What follows is what the forecast is made of, whose operators price it, and what its interval said.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from planner.render import percent
from planner.validation.reliability import PLAN, PROBLEM
from planner.validation.scoring import ScoredRow, is_higher_better

__all__ = ["Reasoned", "log_time_error", "worst_of_each", "worst_rows"]

_COHORT = 4
"""Fewer others show no habit."""
_TAKES_AWAY = 0.5
"""Share of a row's error that a cohort's median has to take away to be its reason."""
_NARROWER = 0.1
"""How much more of the error a narrower cohort has to take away to be named instead of a wider one."""
_SAME_WAY = 0.75
"""Share of a cohort that has to err in the row's direction."""
_CORRELATED = 0.5
_ENOUGH_FOR_CORRELATION = 12
_P_VALUE = 0.01
_LABELS = ("gpu", "family", "framework", "dtype", "task", "strategy", "n_gpus", "model")
_COHORTS: tuple[tuple[str, ...], ...] = ((), *combinations(_LABELS, 1), *combinations(_LABELS, 2))
"""What rows of a source may have in common, wide cohorts first."""
_WORDS = {"n_gpus": "GPU count", "dtype": "type", "strategy": "parallelism", "gpu": "GPU"}
_Cohort = tuple[str, tuple[tuple[str, str], ...]]
"""Source, and what else its rows have in common."""
_PARTS = {
    "tp_comm": "tensor-parallel communication",
    "cp_comm": "context-parallel communication",
    "ep_comm": "expert communication",
    "dp_comm": "data-parallel communication",
    "pp_comm": "transfers between stages",
    "compute": "computing",
    "recompute": "recomputation",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoned:
    """A row and why it is off."""

    row: ScoredRow
    reason: str


def log_time_error(row: ScoredRow) -> float:
    """ln(forecast time / measured time); a rate counts as its inverse."""
    ratio = math.log(max(row.error + 1.0, 1e-12))
    return -ratio if is_higher_better(row.metric) else ratio


def worst_rows(rows: Sequence[ScoredRow], n: int = 10) -> list[Reasoned]:
    """The `n` rows that are furthest off as a factor, too long or too short alike, with their reasons."""
    reasons = _Reasons(rows)
    return [Reasoned(row=row, reason=reasons.of(row)) for row in reasons.by_size()[:n]]


def worst_of_each(rows: Sequence[ScoredRow], by: str = "source") -> list[Reasoned]:
    """The worst row of each value of a label, the worst of all first."""
    reasons = _Reasons(rows)
    found: dict[str, ScoredRow] = {}
    for row in reasons.by_size():
        found.setdefault(row.label(by), row)
    return [Reasoned(row=row, reason=reasons.of(row)) for row in found.values()]


class _Reasons:
    """Reasons of any of these rows."""

    def __init__(self, rows: Sequence[ScoredRow]) -> None:
        self.rows = [row for row in rows if row.skipped is None]
        self.errors = np.array([log_time_error(row) for row in self.rows])
        self.number = {id(row): n for n, row in enumerate(self.rows)}
        self.cohorts: dict[_Cohort, list[int]] = defaultdict(list)
        self.problems: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for n, row in enumerate(self.rows):
            for labels in _COHORTS:
                if key := _cohort_key(row, labels):
                    self.cohorts[key].append(n)
            if row.group:
                self.problems[row.group, row.label(PROBLEM), row.metric].append(n)

    def by_size(self) -> list[ScoredRow]:
        return [self.rows[n] for n in np.argsort(-np.abs(self.errors), kind="stable")]

    def of(self, row: ScoredRow) -> str:
        """Main reason, then what the forecast is made of and said of itself."""
        n = self.number[id(row)]
        found: list[Callable[[int], str | None]] = [self._repeats, self._cohort, self._part, self._alone]
        main = next((reason for why in found if (reason := why(n))), None)
        parts = [main or "its source has too few other rows to tell", _made_of(row), _priced_by(row)]
        return "; ".join(part for part in (*parts, _interval(row)) if part) + "."

    def _repeats(self, n: int) -> str | None:
        row = self.rows[n]
        same = [
            m
            for m in self.problems.get((row.group, row.label(PROBLEM), row.metric), [])
            if row.label(PLAN) and self.rows[m].label(PLAN) == row.label(PLAN)
        ]
        values = [self.rows[m].measured or math.nan for m in same]
        if len(values) < 2:
            return None
        spread = math.log(max(values) / min(values))
        if spread < _TAKES_AWAY * abs(self.errors[n]):
            return None
        return (
            f"measured {len(values)} times as far as the table tells, "
            f"{min(values):.4g} to {max(values):.4g} {row.metric}"
        )

    def _cohort(self, n: int) -> str | None:
        row, error = self.rows[n], self.errors[n]
        best: tuple[float, str] = (_TAKES_AWAY - _NARROWER, "")
        for labels in _COHORTS:
            key = _cohort_key(row, labels)
            others = [m for m in self.cohorts.get(key, []) if m != n] if key else []
            if len(others) < _COHORT:
                continue
            errors = self.errors[others]
            median = float(np.median(errors))
            takes_away = 1.0 - abs(error - median) / abs(error) if error else 0.0
            same_way = float(np.mean(np.sign(errors) == np.sign(error)))
            if same_way >= _SAME_WAY and takes_away >= best[0] + _NARROWER:
                best = takes_away, _cohort_text(row, labels, len(others), median)
        return best[1] or None

    def _part(self, n: int) -> str | None:
        from scipy.stats import spearmanr

        row = self.rows[n]
        mine = [m for m in self.cohorts[row.source, ()] if self.rows[m].breakdown]
        if not row.breakdown or len(mine) < _ENOUGH_FOR_CORRELATION:
            return None
        best: tuple[float, str] = (_CORRELATED, "")
        for part, share in row.breakdown.items():
            shares = np.array([self.rows[m].breakdown.get(part, 0.0) for m in mine])
            if np.ptp(shares) == 0 or share < float(np.median(shares)):
                continue
            result = spearmanr(shares, self.errors[mine])
            rho = float(result.statistic)
            if result.pvalue < _P_VALUE and rho * self.errors[n] > 0 and abs(rho) > best[0]:
                way = "long" if rho > 0 else "short"
                text = (
                    f"in its source forecasts are the more too {way} the larger the share of "
                    f"{_part_name(part)} (rank correlation {rho:+.2f} over {len(mine)} rows); "
                    f"here it is {percent(share)}"
                )
                best = abs(rho), text
        return best[1] or None

    def _alone(self, n: int) -> str | None:
        row = self.rows[n]
        rivals = [m for m in self.problems.get((row.group, row.label(PROBLEM), row.metric), []) if m != n]
        whole = [m for m in self.cohorts[row.source, ()] if m != n]
        for others, name in (
            (rivals, "other plans of the same problem"),
            (whole, "other rows of its source"),
        ):
            if len(others) >= _COHORT:
                median = float(np.median(self.errors[others]))
                off = percent(math.expm1(median), sign=True)
                return f"it stands alone: the {len(others)} {name} are off by {off} in time in the median"
        return None


def _cohort_key(row: ScoredRow, labels: tuple[str, ...]) -> _Cohort | None:
    """The row's cohort by these labels; None where it lacks one of them."""
    values = tuple(row.label(label) for label in labels)
    return (row.source, tuple(zip(labels, values, strict=True))) if all(values) else None


def _cohort_text(row: ScoredRow, labels: tuple[str, ...], n: int, median: float) -> str:
    off = f"{percent(math.expm1(median), sign=True)} in time in the median"
    if not labels:
        return f"its source errs as a whole: the {n} other rows are off by {off}"
    what = " and ".join(f"{_WORDS.get(label, label)} {row.label(label)}" for label in labels)
    return f"{row.source}'s rows of {what} err together: the {n} others are off by {off}"


def _part_name(part: str) -> str:
    return _PARTS.get(part, part)


def _made_of(row: ScoredRow) -> str:
    largest = _largest(row.breakdown)
    return f"the forecast is {largest}" if largest else ""


def _largest(breakdown: Mapping[str, float], least: float = 0.15) -> str:
    """The parts that make up at least `least` of the forecast, largest first."""
    parts = sorted(breakdown.items(), key=lambda item: -item[1])
    return ", ".join(f"{percent(share)} {_part_name(name)}" for name, share in parts[:3] if share >= least)


def _priced_by(row: ScoredRow) -> str:
    measured, gpu = row.label("operators_of"), row.label("gpu")
    if gpu == "unknown":
        return "the source does not name the GPU"
    if measured and gpu and measured != gpu:
        return f"its GPU's products were not measured ({measured} restated for it)"
    return ""


def _interval(row: ScoredRow) -> str:
    if row.low is None or row.high is None or row.measured is None or row.low <= 0:
        return "no interval"
    width = math.sqrt(row.high / row.low)
    inside = row.low <= row.measured <= row.high
    said = f"a factor of {width:.2f} either way"
    return f"inside its 90 % interval, {said}" if inside else f"outside its 90 % interval ({said})"
