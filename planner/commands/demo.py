"""`foreshard demo`: the whole way on this machine in under three minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.commands.options import Json

__all__ = ["command"]


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder for profile, plots and report.")] = Path(
        "foreshard-out"
    ),
    budget: Annotated[float, typer.Option("--budget-s", help="Seconds for calibration.")] = 60.0,
    json: Json = False,
) -> None:
    """Measure this machine, rank plans of two real models, run them for real, compare.

    Writes the profile, plots and one HTML report into the folder.
    """
    from planner.commands.reports import show_report
    from planner.demo import run_demo
    from planner.render import duration, percent, print_json, print_table, progress

    result = run_demo(out=out, budget_s=budget)
    if json:
        print_json(result.to_dict())
        return
    print_table(
        ["check", "verdict", "found", "remedy"],
        [[f.check, f.verdict, f.found, f.remedy] for f in result.findings],
        title="this machine",
    )
    show_report(result.report)
    print_table(
        ["model", "chosen plan", "its measured step", "best measured plan", "regret"],
        [
            [c.model, c.chosen, duration(c.chosen_measured_s), c.best, percent(c.regret)]
            for c in result.choices
        ],
        title="which plan the forecast chooses, and what that costs against the best one measured",
    )
    for path in result.files:
        progress(f"wrote {path}")
