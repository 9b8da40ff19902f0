"""Results of `validate ... --json`, of one or several machines, as rows of one report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from costmodel.errors import InputFileError, MeasurementError
from costmodel.plan import Plan
from planner.validation.published.labels import parallelism_of
from planner.validation.reliability import PLAN
from planner.validation.scoring import Report, ScoredRow

__all__ = ["Result", "machine_of", "merged_rows", "read_result", "read_results"]

_RUN = "run"
"""`source` of a row of `validate run`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One file's rows, ready to stand beside other machines' rows, and where they come from."""

    file: str
    kind: str
    """'runs here', 'table' (published runs), or 'merged' (an earlier report)."""
    rows: tuple[ScoredRow, ...]
    environments: tuple[Mapping[str, Any], ...]
    """Machine and software: one of the forecast, or those of the measured runs (times of each left out)."""
    written: str
    """First and last time that the file's environments say, UTC; '' where they say none."""
    details: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """What a merged report keeps of the file: all but the rows."""
        return {
            "file": self.file,
            "kind": self.kind,
            "n_rows": len(self.rows),
            "written": self.written,
            "environments": [dict(e) for e in self.environments],
        }


def read_results(paths: Sequence[Path]) -> list[Result]:
    """Every file's result. Raises InputFileError where one is no result, MeasurementError where two hold the
    same measurement, which would count twice."""
    results = [read_result(path) for path in paths]
    seen: dict[tuple[str, str, str, float], str] = {}
    for result in results:
        mine = {(r.source, r.id, r.metric, r.measured) for r in result.rows if r.measured is not None}
        for key in sorted(mine, key=str):
            if key in seen:
                raise MeasurementError(
                    f"row {key[1]!r} of source {key[0]!r} ({key[2]} {key[3]}) is in {seen[key]} and in "
                    f"{result.file}: a measurement counts once; leave one of the files out"
                )
        seen |= dict.fromkeys(mine, result.file)
    return results


def merged_rows(results: Sequence[Result]) -> list[ScoredRow]:
    """The rows of all results, in order."""
    return [row for result in results for row in result.rows]


def read_result(path: Path) -> Result:
    """Read one file. Raises InputFileError where it is none of `validate --json`, or holds no row."""
    try:
        report = Report.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path}: {error}; give a file of `validate published --json`") from error
    except InputFileError as error:
        raise InputFileError(
            f"{path}: {error} (a file of `validate run --out` holds runs without forecasts: keep what --json "
            "prints)"
        ) from error
    if not report.rows:
        raise InputFileError(f"{path}: holds no row, so there is nothing to report")
    try:
        return _of_report(path, report)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputFileError(
            f"{path}: its rows or what stands beside them are not as this version writes them ({error!r}); "
            "make the result anew"
        ) from error


def _of_report(path: Path, report: Report) -> Result:
    for row in report.rows:
        numbers = [*row.breakdown.values(), 0.0 if row.baseline_value is None else row.baseline_value]
        texts = all(isinstance(value, str) for value in row.labels.values())
        if not texts or not all(math.isfinite(value) for value in numbers):
            raise ValueError(f"row {row.id}: labels are texts, baseline_value and breakdown finite numbers")
    details = report.details
    if "results" in details:
        kept = [e for result in details["results"] for e in result["environments"]]
        times = [t for result in details["results"] for t in str(result["written"]).split(" to ")]
        return _result(path, "merged", report.rows, kept, times, details)
    if "runs" in details:
        return _of_runs(path, report)
    environment = details.get("environment")
    return _result(path, "table", report.rows, [environment] if environment else [], [], details)


def _result(
    path: Path,
    kind: str,
    rows: Sequence[ScoredRow],
    environments: Sequence[Mapping[str, Any]],
    times: Sequence[str],
    details: Mapping[str, Any],
) -> Result:
    found = sorted({t for t in (*times, *(str(e.get("time", "")) for e in environments)) if t})
    different: list[Mapping[str, Any]] = []
    for environment in environments:
        lasting = {k: v for k, v in environment.items() if k not in ("time", "load_average_1min")}
        if lasting not in different:
            different.append(lasting)
    return Result(
        file=path.name,
        kind=kind,
        rows=tuple(rows),
        environments=tuple(different),
        written=" to ".join(dict.fromkeys((found[0], found[-1]))) if found else "",
        details=details,
    )


def _of_runs(path: Path, report: Report) -> Result:
    """Runs that were measured: each row is labelled with its machine, plan and ranks, and ranked among the
    runs of its own file only."""
    known = {run["id"]: run for run in report.details["runs"]}
    rows = []
    for row in report.rows:
        run = known.get(row.id, known.get(row.id.partition("#")[0], {}))
        machine = machine_of(run.get("environment") or {})
        further = {"gpu": machine, "task": "train", PLAN: run.get("plan"), "n_gpus": run.get("n_ranks")}
        labels = dict(row.labels) | {k: str(v) for k, v in further.items() if v}
        if PLAN in labels:  # in the words of published rows, so that both stand in one table
            labels["strategy"] = parallelism_of(Plan.parse(labels[PLAN]))
        source = f"runs: {machine}" if row.source == _RUN else row.source
        rows.append(replace(row, source=source, group=f"{path.name}: {row.group}", labels=labels))
    environments = [run["environment"] for run in report.details["runs"] if run.get("environment")]
    return _result(path, "runs here", rows, environments, [], report.details)


def machine_of(environment: Mapping[str, Any]) -> str:
    """A machine in words: its GPU or processor, and cores."""
    name = environment.get("gpu") or environment.get("processor")
    if not name:
        return "unnamed machine"
    cores = environment.get("cores")
    if environment.get("gpu") or not cores:
        return str(name)
    return f"{name}, {cores} core" + ("s" if cores != 1 else "")
