"""All figures of an accuracy report, before any of it is text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from planner.validation.accuracy.figures import (
    LABELS,
    Figures,
    figures_by,
    is_time,
    of_plan_choice,
    with_scale,
)
from planner.validation.accuracy.reasons import Reasoned, worst_of_each, worst_rows
from planner.validation.accuracy.results import Result, merged_rows, read_results
from planner.validation.accuracy.sources import with_titles
from planner.validation.scoring import Report, ScoredRow

__all__ = ["NO_SKILL", "AccuracyReport", "accuracy_report"]

NO_SKILL = (
    "the forecast without skill, half of the GPU's dense peak FLOP/s in the run's type for the FLOP of our "
    "traced graph (forward, backward, what is recomputed), times the pipeline's bubble 1 + (p - 1) / (v m)"
)
"""What the figures in brackets are of (planner.validation.baseline)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyReport:
    """Rows of all results and what they add up to; times and rates apart from memory."""

    results: tuple[Result, ...]
    times: tuple[ScoredRow, ...]
    memory: tuple[ScoredRow, ...]
    figures: tuple[Figures, ...]
    """Overall and by each of LABELS and `title`; ranking figures are of choices of a plan."""
    any_choice: tuple[Figures, ...]
    """Overall and by source, ranked in the groups that the rows came with."""
    of_memory: tuple[Figures, ...]
    worst: tuple[Reasoned, ...]
    worst_of_sources: tuple[Reasoned, ...]
    written: datetime

    def by(self, label: str) -> list[Figures]:
        """The figures of one label, or `overall`."""
        return [f for f in self.figures if f.ours.by == label]

    @property
    def overall(self) -> Figures:
        """The figures of all times and rates."""
        return self.figures[0]

    @property
    def measured_on(self) -> str:
        """Days of the forecasts and runs (UTC), or the day of the report where no result says it."""
        days = sorted(t[:10] for r in self.results if r.written for t in r.written.split(" to "))
        return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else f"{self.written:%Y-%m-%d}"

    def skipped_reasons(self) -> dict[str, int]:
        """How many rows each reason left out, most first."""
        return Report(rows=self.times, summary=()).skipped_reasons()

    def reliability(self) -> Mapping[str, Any] | None:
        """The first result's table of P(A is faster than B), where one has pairs."""
        for result in self.results:
            table = (result.details.get("reliability") or {}).get("overall")
            if table and table["n_pairs"]:
                found: Mapping[str, Any] = table
                return found
        return None

    def to_report(self) -> Report:
        """The document of `validate report --json`: all rows, and the summary without the no-skill figures;
        these, the worst rows and each result's environments are in the details."""
        reliable = self.reliability()
        return Report(
            rows=(*self.memory, *self.times),
            summary=tuple(f.ours for f in self.figures),
            details={
                "written": f"{self.written:%Y-%m-%dT%H:%M:%SZ}",
                "no_skill": NO_SKILL,
                "figures": [f.to_dict() for f in self.figures],
                "any_choice": [f.to_dict() for f in self.any_choice],
                "memory": [f.to_dict() for f in self.of_memory],
                "worst": [
                    {"id": r.row.id, "source": r.row.source, "error": r.row.error, "reason": r.reason}
                    for r in self.worst
                ],
                "results": [result.to_dict() for result in self.results],
                **({"reliability": {"overall": reliable}} if reliable else {}),
            },
        )


def accuracy_report(paths: Sequence[Path], *, now: datetime | None = None) -> AccuracyReport:
    """Read results of `validate ... --json` and add them up; `now`: the report's date (default: today's).

    Raises InputFileError where a file is no result, MeasurementError where two hold the same measurement.
    """
    results = read_results(paths)
    rows = with_titles(with_scale(merged_rows(results)))
    times = [row for row in rows if is_time(row)]
    memory = [row for row in rows if not is_time(row)]
    return AccuracyReport(
        results=tuple(results),
        times=tuple(times),
        memory=tuple(memory),
        figures=tuple(figures_by(of_plan_choice(times), (*LABELS, "title"))),
        any_choice=tuple(figures_by(times, ("source",))),
        of_memory=tuple(figures_by(memory, ("source",))) if memory else (),
        worst=tuple(worst_rows(times)),
        worst_of_sources=tuple(worst_of_each(times)),
        written=now or datetime.now(UTC),
    )
