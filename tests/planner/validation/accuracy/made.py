"""Results made up for the tests of the accuracy report: rows whose figures follow by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.validation.scoring import Report, ScoredRow

PROBLEM = {"problem": "one", "gpu": "A100", "family": "gpt", "model": "small"}


def row(
    name: str,
    measured: float,
    predicted: float | None,
    *,
    source: str = "s",
    group: str = "g",
    plan: str = "",
    n_gpus: int = 8,
    baseline: float | None = None,
    metric: str = "iter_time_s",
    breakdown: dict[str, float] | None = None,
    **labels: str,
) -> ScoredRow:
    """A row that is skipped where nothing is predicted."""
    given = {**PROBLEM, "n_gpus": str(n_gpus), **({"plan": plan} if plan else {}), **labels}
    return ScoredRow(
        id=name,
        source=source,
        group=group,
        metric=metric,
        measured=measured,
        predicted=predicted,
        low=None if predicted is None else 0.9 * predicted,
        high=None if predicted is None else 1.1 * predicted,
        skipped="nobody knows" if predicted is None else None,
        labels=given,
        baseline_value=baseline,
        breakdown=breakdown or {},
    )


def four_plans(source: str = "s", *, shift: float = 1.0) -> list[ScoredRow]:
    """Four plans of one problem; ours has the first two in the wrong order, the no-skill one all tied."""
    times = ((1.0, 1.1), (1.05, 1.0), (2.0, 2.0), (4.0, 4.0))
    return [
        row(f"{source}-{n}", m * shift, p * shift, source=source, plan=f"dp{n + 1}", baseline=1.0)
        for n, (m, p) in enumerate(times)
    ]


def written(path: Path, rows: list[ScoredRow], **details: Any) -> Path:
    """The file of `--json` that has these rows."""
    Report.of(rows, details=details).write(path)
    return path


def run_result(path: Path, processor: str, seconds: float) -> Path:
    """What `validate run --json` prints of one run, on a machine with this processor."""
    environment = {
        "processor": processor,
        "cores": 2,
        "time": "2026-01-02T03:04:05Z",
        "versions": {"torch": "2"},
    }
    run = {"id": "gpt/dp2.mbs1", "plan": "dp2.mbs1", "n_ranks": 2, "environment": environment}
    scored = ScoredRow(
        id="gpt/dp2.mbs1",
        source="run",
        group="gpt/gbs2",
        metric="step_time_s",
        measured=seconds,
        predicted=1.0,
        labels={"model": "gpt", "strategy": "ddp"},
        baseline_value=0.5,
    )
    return written(path, [scored], runs=[run])
