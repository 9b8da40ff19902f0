"""The one report of every `validate` command: rows of measured against predicted, and what they add up to.

A row's error is (predicted - measured) / measured. Ranking figures are taken inside the groups that the
rows name (`group`, say one model at one GPU count and batch): Kendall's tau-b and the regret of picking
the predicted best are means over the groups with at least `min_group` rows of one metric. Predictions that
are equal but for rounding are ties: the pick is then any of them, at the mean of their regrets.

>>> rows = [
...     ScoredRow(id="1", source="s", group="g", metric="step_time_s", measured=1.0, predicted=1.1),
...     ScoredRow(id="2", source="s", group="g", metric="step_time_s", measured=2.0, predicted=1.0),
... ]
>>> overall = summarise(rows)[0]
>>> round(overall.mape, 3), overall.kendall_tau, overall.top1_regret
(0.3, -1.0, 1.0)
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from costmodel.errors import InputFileError
from costmodel.files import write_whole

__all__ = [
    "HIGHER_IS_BETTER",
    "Report",
    "ScoredRow",
    "SummaryRow",
    "is_higher_better",
    "shares_of",
    "summarise",
]

HIGHER_IS_BETTER = (
    "tokens_per_s",
    "samples_per_s",
    "tflops",
    "mfu",
    "hfu",
    "bus_bandwidth",
    "algorithm_bandwidth",
    "throughput",
)
"""Beginnings of the metrics where more is better; every other metric is a time or a size."""
_TIE = 1e-9
"""Relative difference below which two predictions are one: sums of the same terms in another order."""


def is_higher_better(metric: str) -> bool:
    """Whether the best row of a group is the largest (throughputs) or the smallest (times, bytes)."""
    return metric.startswith(HIGHER_IS_BETTER)


def shares_of(parts: Mapping[str, float]) -> dict[str, float]:
    """Share of each part in their sum; parts that take nothing are left out."""
    total = sum(parts.values())
    return {name: value / total for name, value in parts.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRow:
    """One measured figure beside its prediction, both in the row's own metric and unit.

    Either `predicted` is given or `skipped` says why it is not. `low`, `high`: the 90 % interval.
    `labels` are further things to summarise by (gpu, kind, model, strategy), `baseline_value` what the
    forecast without skill says in the same metric (see planner.validation.baseline), `breakdown` the shares
    of the forecast's parts: in the JSON rows where there are any. `loadings`, the prediction's errors by
    factor over its time (see costmodel.predict.uncertainty), stay out of them.
    """

    id: str
    source: str
    metric: str
    measured: float | None
    predicted: float | None = None
    group: str = ""
    low: float | None = None
    high: float | None = None
    skipped: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    baseline_value: float | None = None
    breakdown: Mapping[str, float] = field(default_factory=dict)
    loadings: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.skipped is None:
            for name in ("measured", "predicted"):
                value = getattr(self, name)
                if value is None or not math.isfinite(value):
                    raise ValueError(
                        f"row {self.id}: {name}={value}; a row that is not skipped needs a number"
                    )
            if self.measured is not None and self.measured <= 0:
                raise ValueError(f"row {self.id}: measured={self.measured} must be positive, or skip the row")
        elif not self.skipped:
            raise ValueError(f"row {self.id}: skipped must say why")

    @property
    def error(self) -> float:
        """Signed relative error, predicted / measured - 1. ValueError on a skipped row."""
        if self.skipped is not None or self.measured is None or self.predicted is None:
            raise ValueError(f"row {self.id} is skipped ({self.skipped}) and has no error")
        return self.predicted / self.measured - 1.0

    def label(self, by: str) -> str:
        """The value to group by: `source`, `metric`, `group`, or a label ("" where the row has none)."""
        if by in ("source", "metric", "group"):
            return str(getattr(self, by))
        return self.labels.get(by, "")

    def to_dict(self) -> dict[str, Any]:
        """The row as `validate --json` prints it."""
        keys = ("id", "source", "group", "metric", "measured", "predicted", "low", "high", "skipped")
        further = ("baseline_value", "labels", "breakdown")
        found = {key: getattr(self, key) for key in keys}
        return found | {key: value for key in further if (value := getattr(self, key))}


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """What the rows with `by` = `key` add up to; errors are fractions of the measured value.

    `n` counts scored rows, `n_skipped` those with a reason instead. Figures that the rows do not support
    are None (no scored row; no group large enough to rank; no row with an interval).
    """

    by: str
    key: str
    n: int
    n_skipped: int
    mape: float | None
    median_ape: float | None
    p90_ape: float | None
    bias: float | None
    """Mean of predicted / measured - 1."""
    kendall_tau: float | None
    """Mean tau-b over ranked groups."""
    top1_regret: float | None
    """Mean over ranked groups of (measured cost of the predicted best) / (measured best) - 1."""
    interval_coverage: float | None
    """Share of the rows with an interval whose measured value lies in it."""
    best_picked_fraction: float | None = None
    """Share of ranked groups where the predicted best is the measured best."""
    n_groups: int = 0
    """Ranked groups."""


def summarise(
    rows: Sequence[ScoredRow], by: Iterable[str] = ("source",), *, min_group: int = 2
) -> list[SummaryRow]:
    """Overall first, then each value of each label in `by` (sorted; rows without the label left out)."""
    summary = [_summary_row("overall", "all", rows, min_group)]
    for name in by:
        parts: dict[str, list[ScoredRow]] = defaultdict(list)
        for row in rows:
            if label := row.label(name):
                parts[label].append(row)
        summary += [_summary_row(name, key, parts[key], min_group) for key in sorted(parts)]
    return summary


def _summary_row(by: str, key: str, rows: Sequence[ScoredRow], min_group: int) -> SummaryRow:
    scored = [row for row in rows if row.skipped is None]
    errors = np.array([row.error for row in scored])
    absolute = np.abs(errors)
    with_interval = [row for row in scored if row.low is not None and row.high is not None]
    inside = [row.low <= row.measured <= row.high for row in with_interval]  # type: ignore[operator]
    taus, regrets, picked = _ranking(scored, min_group)
    return SummaryRow(
        by=by,
        key=key,
        n=len(scored),
        n_skipped=len(rows) - len(scored),
        mape=_mean(absolute),
        median_ape=float(np.median(absolute)) if scored else None,
        p90_ape=float(np.quantile(absolute, 0.9)) if scored else None,
        bias=_mean(errors),
        kendall_tau=_mean(taus),
        top1_regret=_mean(regrets),
        interval_coverage=_mean(inside),
        best_picked_fraction=_mean(picked),
        n_groups=len(regrets),
    )


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _ranking(scored: Sequence[ScoredRow], min_group: int) -> tuple[list[float], list[float], list[float]]:
    """Tau, regret and share of hits of each group of one metric with at least `min_group` rows."""
    groups: dict[tuple[str, str], list[ScoredRow]] = defaultdict(list)
    for row in scored:
        if row.group:
            groups[row.group, row.metric].append(row)
    taus: list[float] = []
    regrets: list[float] = []
    picked: list[float] = []
    for (_, metric), members in groups.items():
        if len(members) < max(2, min_group):
            continue
        measured = np.array([row.measured for row in members], dtype=np.float64)
        predicted = np.array([row.predicted for row in members], dtype=np.float64)
        if is_higher_better(metric):  # costs from here on: less is better
            measured, predicted = 1.0 / measured, 1.0 / np.maximum(predicted, 1e-300)
        picks = measured[predicted <= predicted.min() * (1.0 + _TIE)]
        regrets.append(float(picks.mean() / measured.min() - 1.0))
        picked.append(float((picks == measured.min()).mean()))
        tau = _tau_b(measured, predicted)
        if tau is not None:
            taus.append(tau)
    return taus, regrets, picked


def _tau_b(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float | None:
    """Kendall's tau-b; None where the measured values are all equal, 0 where only the predicted ones are."""
    if np.ptp(x) == 0:
        return None
    y = _tied(y)
    if np.ptp(y) == 0:
        return 0.0
    if len(x) <= 200:
        sign_x = np.sign(x[:, None] - x[None, :])
        sign_y = np.sign(y[:, None] - y[None, :])
        scale = math.sqrt(float((sign_x != 0).sum()) * float((sign_y != 0).sum()))
        return float((sign_x * sign_y).sum() / scale)
    from scipy.stats import kendalltau

    return float(kendalltau(x, y).statistic)


def _tied(y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`y` with values that differ by rounding alone made equal to the least of them."""
    order = np.argsort(y, kind="stable")
    steps = np.diff(y[order], prepend=y[order[0]]) > _TIE * np.abs(y[order])
    first = np.maximum.accumulate(np.where(steps, np.arange(len(y)), 0))
    result = np.empty_like(y)
    result[order] = y[order][first]
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Rows, their summary, and what else a command has to say (`details`: further top-level JSON keys)."""

    rows: tuple[ScoredRow, ...]
    summary: tuple[SummaryRow, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taken := {"rows", "summary"} & set(self.details):
            raise ValueError(f"details may not hold {sorted(taken)}")

    @classmethod
    def of(
        cls,
        rows: Sequence[ScoredRow],
        *,
        by: Iterable[str] = ("source",),
        min_group: int = 2,
        details: Mapping[str, Any] | None = None,
    ) -> Self:
        """The report of some rows, summarised overall and by the labels in `by`."""
        summary = summarise(rows, by, min_group=min_group)
        return cls(rows=tuple(rows), summary=tuple(summary), details=details or {})

    @property
    def overall(self) -> SummaryRow:
        """The summary of all rows."""
        return self.summary[0]

    def skipped_reasons(self) -> dict[str, int]:
        """How many rows each reason left out, most first."""
        counts: dict[str, int] = defaultdict(int)
        for row in self.rows:
            if row.skipped is not None:
                counts[row.skipped] += 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data: `rows`, `summary`, then the details."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "summary": [asdict(row) for row in self.summary],
            **self.details,
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """The report as JSON. Numbers that are not finite are a defect and raise ValueError."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def write(self, path: Path) -> None:
        """Write the JSON; the file is either the old or the new one, never half of it."""
        write_whole(path, self.to_json(indent=1) + "\n")

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a report back. Raises InputFileError on anything else."""
        try:
            data = json.loads(text)
            rows = tuple(ScoredRow(**row) for row in data.pop("rows"))
            summary = tuple(SummaryRow(**row) for row in data.pop("summary"))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputFileError(
                f"not a validation report: {error}; it has 'rows' and 'summary' as `validate --json` prints"
            ) from error
        return cls(rows=rows, summary=summary, details=data)
