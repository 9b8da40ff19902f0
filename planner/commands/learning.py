"""`foreshard hardware learn`: measured runs correct a profile, in a layer that can be taken off."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.commands.options import Json

if TYPE_CHECKING:
    from costmodel.hardware.learnt import Learnt
    from planner.learning.check import HeldBack

__all__ = ["command", "learnt_dict", "show_learnt"]

_SHOWN = 12


def command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files of `validate run` (--out or --json), or tables of measured runs (.csv, .csv.gz)."
        ),
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", "-P", help="The profile to correct: a shipped name or a file.")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Where the corrected profile goes.")] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="Only table rows whose source or id holds this text.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Hold half of the models and rank counts back in turn; score before, after."
        ),
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take what was learnt off again.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.")] = False,
    json: Json = False,
) -> None:
    """Correct a profile by whole measured runs: operators, links, host and step, as far as the runs tell."""
    from planner import api
    from planner.render import percent, print_json, print_table, progress

    found = api.learn_hardware(
        runs or [], profile=profile, out=out, source=source, check=check, undo=undo, force=force
    )
    if json:
        learnt = found.profile.learnt
        print_json(
            {
                "profile": found.profile.name,
                "out": None if out is None else str(out),
                "learnt": None if learnt is None else learnt_dict(learnt),
                "skipped": found.skipped,
                "held_back": None if found.held_back is None else _held_back_dict(found.held_back),
            }
        )
        return
    if found.profile.learnt is not None:
        show_learnt(found.profile.learnt)
    if found.skipped:
        print_table(
            ["not learnt from because", "runs"], [[reason, str(n)] for reason, n in found.skipped.items()]
        )
    if (held := found.held_back) is not None:
        print_table(
            ["held-back runs", "n", "MAPE", "median", "bias", "coverage", "mean interval high / low"],
            [
                [
                    name,
                    str(report.overall.n),
                    percent(report.overall.mape),
                    percent(report.overall.median_ape),
                    percent(report.overall.bias, sign=True),
                    percent(report.overall.interval_coverage),
                    f"{ratio:.2f}",
                ]
                for name, report, ratio in (
                    ("as fitted", held.before, held.before_ratio),
                    ("after learning from the others", held.after, held.after_ratio),
                )
            ],
        )
    if out is not None:
        progress(f"wrote {out}")


def learnt_dict(learnt: Learnt) -> dict[str, Any]:
    """The layer as `--json` prints it: factors on time, and their width as a fraction (one sigma)."""
    return {
        "terms": [
            {
                "name": term.name,
                "prior_log_sigma": term.prior_log_sigma,
                "log_shift": term.log_shift,
                "log_sigma": term.log_sigma,
            }
            for term in learnt.terms
        ],
        "residual_log_sigma": learnt.residual_log_sigma,
        "model_log_sigma": learnt.model_log_sigma,
        "runs": [run.model_dump() for run in learnt.runs],
    }


def show_learnt(learnt: Learnt) -> None:
    """Terms with prior and posterior, and the runs that taught most."""
    from math import exp

    from planner.render import percent, print_table

    print_table(
        ["term", "time before", "time now"],
        [
            [
                term.name,
                f"x 1 +- {percent(term.prior_log_sigma)}",
                f"x {exp(term.log_shift):.3f} +- {percent(term.log_sigma)}",
            ]
            for term in learnt.terms
        ],
        title=f"learnt from {len(learnt.runs)} runs (factors on time, one standard deviation)",
    )
    print_table(
        ["framework", "spread of single runs", "of models"],
        [
            [name, percent(sigma), percent(learnt.model_log_sigma.get(name))]
            for name, sigma in learnt.residual_log_sigma.items()
        ],
    )
    most = sorted(learnt.runs, key=lambda run: -run.bits)[:_SHOWN]
    print_table(
        ["run", "error before", "error now", "bits"],
        [
            [
                run.label,
                percent(run.error_before, sign=True),
                percent(run.error_after, sign=True),
                f"{run.bits:.2f}",
            ]
            for run in most
        ],
        title="runs that taught most (bits: what would be missing without the run)",
    )


def _held_back_dict(held: HeldBack) -> dict[str, Any]:
    return {
        "before": held.before.to_dict() | {"mean_interval_ratio": held.before_ratio},
        "after": held.after.to_dict() | {"mean_interval_ratio": held.after_ratio},
    }
