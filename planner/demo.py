"""The whole way by Python calls: check-up, calibration, forecast, real runs, comparison, report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costmodel.hardware.schema import HardwareProfile
    from costmodel.predict import Forecast
    from planner.checkup import Finding
    from planner.validation.scoring import Report

__all__ = ["Choice", "DemoResult", "choices", "run_demo"]

_MODELS = ("gpt2-small-validation", "resnet-small-validation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the forecast would pick for one model, and what that cost."""

    model: str
    chosen: str
    chosen_measured_s: float
    best: str
    best_measured_s: float

    @property
    def regret(self) -> float:
        """Measured step of the chosen plan over the best measured one, minus 1."""
        return self.chosen_measured_s / self.best_measured_s - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """Everything the demo found and wrote."""

    findings: Sequence[Finding]
    report: Report
    choices: Sequence[Choice]
    files: Sequence[Path]

    def to_dict(self) -> dict[str, Any]:
        """Plain fields."""
        return {
            "findings": [f.to_dict() for f in self.findings],
            "report": json.loads(self.report.to_json()),
            "choices": [
                {
                    "model": c.model,
                    "chosen": c.chosen,
                    "chosen_measured_s": c.chosen_measured_s,
                    "best": c.best,
                    "best_measured_s": c.best_measured_s,
                    "regret": c.regret,
                }
                for c in self.choices
            ],
            "files": [str(p) for p in self.files],
        }


def choices(report: Report) -> list[Choice]:
    """The predicted best of each model against its measured best."""
    found = []
    for model in sorted({r.group for r in report.rows}):
        rows = [r for r in report.rows if r.group == model and r.skipped is None]
        if not rows:
            continue
        chosen = min(rows, key=lambda r: r.predicted or 0.0)
        best = min(rows, key=lambda r: r.measured or 0.0)
        found.append(
            Choice(
                model=model,
                chosen=chosen.id.rpartition("/")[2],
                chosen_measured_s=float(chosen.measured or 0.0),
                best=best.id.rpartition("/")[2],
                best_measured_s=float(best.measured or 0.0),
            )
        )
    return found


def _pipeline_forecast(profile: HardwareProfile) -> Forecast:
    """The first model as a two-stage 1F1B pipeline."""
    from planner.validation.local import LocalForecaster
    from planner.validation.standard import standard_models, standard_plans

    entry = standard_models(_MODELS[:1])[0]
    pipeline = standard_plans(entry.global_batch_size)[-1]
    return LocalForecaster(entry.model, profile).forecaster.forecast(pipeline)


def run_demo(*, out: Path, budget_s: float = 60.0) -> DemoResult:
    """Run everything and write the files. Takes under three minutes on two cores."""
    from planner import api
    from planner.checkup import examine
    from planner.plots import scatter, write_profile_plots
    from planner.render import progress
    from planner.reporting import Page, PageTable, report_tables, write_page

    out.mkdir(parents=True, exist_ok=True)
    progress("1/4 looking at this machine")
    findings = examine()
    progress(f"2/4 calibrating for {budget_s:.0f} s")
    profile_path = out / "this-machine.json"
    profile = api.calibrate(out=profile_path, budget_s=budget_s, world_size=2, resume=False)
    assert profile is not None  # a plain call is rank 0
    progress("3/4 forecasting and running the plans of two models")
    report = api.validate_run(
        models=list(_MODELS),
        plans=None,
        hardware=str(profile_path),
        repeats=2,
        steps=3,
        out=out / "runs.json",
    )
    progress("4/4 writing plots and report")
    files = [
        profile_path,
        scatter(report, out / "predicted-vs-measured.png"),
        *write_profile_plots(profile, out),
    ]
    gantt = out / "pipeline-gantt.png"
    _pipeline_forecast(profile).write_gantt(gantt)
    files.append(gantt)
    chosen = choices(report)
    page = Page(
        title="foreshard demo: forecast beside measurement",
        lead=[
            f"{c.model}: the forecast picks {c.chosen}; measured best is {c.best}; "
            f"choosing by forecast costs {100 * c.regret:.1f} %."
            for c in chosen
        ],
        tables=[
            PageTable(
                title="this machine",
                headers=["check", "verdict", "found", "remedy"],
                rows=[[f.check, f.verdict, f.found, f.remedy] for f in findings],
            ),
            *report_tables(report),
        ],
        images=[p for p in files if p.suffix == ".png"],
    )
    files.append(write_page(page, out / "report.html"))
    return DemoResult(findings=findings, report=report, choices=chosen, files=files)
