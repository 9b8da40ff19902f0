"""`foreshard validate trace`: profiler traces of real steps beside the forecast of those steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.commands.options import Framework, Hardware, Json, Overrides, Seq, TrustRemoteCode

if TYPE_CHECKING:
    from planner.validation.scoring import Report, ScoredRow

__all__ = ["command"]

_MOST = 12


def command(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Chrome traces of PyTorch's profiler (.json, .json.gz), one per rank, or a folder."
        ),
    ],
    hardware: Hardware,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="What ran; default: what the trace says (`validate run --trace`)."
        ),
    ] = None,
    plan: Annotated[
        str | None, typer.Option("--plan", "-p", help="How it ran; default: what the trace says.")
    ] = None,
    seq: Seq = None,
    set_: Overrides = None,
    framework: Framework = "pytorch",
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", help="Default: what the trace says, else adamw.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Compare profiler traces with the forecast by part of the step, operator kind and module, and say where
    the forecast is off."""
    from planner.validation.kineto.score import validate_trace

    report = validate_trace(
        files,
        hardware=hardware,
        model=model,
        plan=plan,
        seq_len=seq,
        overrides=set_,
        framework=framework,
        optimizer=optimizer,
        trust_remote_code=trust_remote_code,
    )
    if json:
        print(report.to_json())
    else:
        _show(report)


def _show(report: Report) -> None:
    from planner.render import duration, percent, print_table

    details = report.details
    for problem in details["problems"]:
        print(f"problem: {problem}")
    for note in details["notes"]:
        print(f"note: {note}")
    ranks = details["ranks"]
    print_table(
        ["rank", "steps", "step", "kernel", "communication", "bubble", "optimizer", "copy", "host", "hidden"],
        [
            [
                str(rank["rank"]),
                str(rank["n_steps"]),
                duration(rank["step_s"]),
                *(duration(rank["parts_s"][p]) for p in ("kernel", "communication", "bubble", "optimizer")),
                *(duration(rank["parts_s"][p]) for p in ("copy", "host")),
                percent(rank["overlap_fraction"]),
            ]
            for rank in ranks
        ],
        title=f"measured: {details['model']} as {details['plan']}; steps by {details['steps_by']}; hidden: "
        "share of communication behind computation",
    )
    verdict = details["verdict"]
    _table(
        "part of the step", verdict["parts"], "difference: predicted - measured; they add up to the step's"
    )
    for table, title in (("kind", "operator kinds"), ("module", "modules")):
        rows = [row for row in report.rows if row.label("table") == table and row.skipped is None]
        _table(
            title,
            _largest(rows, table)[:_MOST],
            "kernel time (on a CPU the operators' own); largest error first",
        )
    skipped = [row for row in report.rows if row.skipped is not None and row.label("table") != "part"]
    skipped.sort(key=lambda row: -max(row.measured or 0.0, row.predicted or 0.0))
    if skipped:
        print_table(
            ["not compared", "measured", "predicted", "because"],
            [
                [row.id, duration(row.measured), duration(row.predicted), str(row.skipped)]
                for row in skipped[:_MOST]
            ],
            title=f"{len(skipped)} rows on one side only",
        )
    step = report.rows[0]
    inside = "inside" if verdict["within_interval"] else "outside"
    print(
        f"step: measured {duration(step.measured)}, predicted {duration(step.predicted)} "
        f"({percent(verdict['step_error'], sign=True)}, {inside} its 90 % interval {duration(step.low)} .. "
        f"{duration(step.high)}) on {details['hardware']}, framework {details['framework']}"
    )
    if details["machine_slowdown"] != 1.0:
        print(
            f"restated for a machine {details['machine_slowdown']:.2f} times as slow beside the run as when "
            f"it was calibrated (as calibrated: {duration(details['step_time_as_calibrated_s'])})"
        )
    if details["unprofiled_step_time_s"] is not None:
        print(f"without the profiler the step took {duration(details['unprofiled_step_time_s'])}")
    largest = verdict["parts"][0]
    direction = "short" if largest["difference_s"] < 0 else "long"
    print(
        f"furthest off: {largest['name']}, {duration(abs(largest['difference_s']))} too {direction} "
        f"({percent(largest['share'])} of all parts' errors)"
    )


def _largest(rows: Sequence[ScoredRow], table: str) -> list[dict[str, Any]]:
    differences = [(row.predicted or 0.0) - (row.measured or 0.0) for row in rows]
    total = sum(map(abs, differences))
    found = [
        {
            "name": row.id.removeprefix(f"{table}: "),
            "measured_s": row.measured,
            "predicted_s": row.predicted,
            "difference_s": difference,
            "ratio": row.error + 1.0,
            "share": abs(difference) / total if total else 0.0,
        }
        for row, difference in zip(rows, differences, strict=True)
    ]
    return sorted(found, key=lambda entry: -entry["share"])


def _table(title: str, entries: Sequence[Mapping[str, Any]], caption: str) -> None:
    from planner.render import duration, percent, print_table

    print_table(
        [title, "measured", "predicted", "ratio", "difference", "share of error"],
        [
            [
                entry["name"],
                duration(entry["measured_s"]),
                duration(entry["predicted_s"]),
                "-" if entry["ratio"] is None else f"{entry['ratio']:.2f}",
                duration(entry["difference_s"]),
                percent(entry["share"]),
            ]
            for entry in entries
        ],
        caption=caption,
    )
