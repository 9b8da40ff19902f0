"""`foreshard validate ...`: predictions against measured operators, collectives and runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from costmodel.errors import CheckFailed
from planner.commands import validate_report, validate_trace
from planner.commands.options import HostsFile, Json

if TYPE_CHECKING:
    from planner.validation.scoring import Report

__all__ = ["CrossValidate", "Plot", "Table", "app", "collectives", "operators", "published", "run", "serving"]

app = typer.Typer(help="Hold predictions against what was measured.", no_args_is_help=True)
app.command("trace")(validate_trace.command)
app.command("report")(validate_report.command)
Table = Annotated[Path, typer.Argument(help="A CSV file, plain or gzipped.")]
CrossValidate = Annotated[
    bool,
    typer.Option("--cross-validate", help="Refit on the file's own rows by folds; score only unseen shapes."),
]
Plot = Annotated[Path | None, typer.Option("--plot", help="Write predicted against measured as a PNG.")]


@app.command("operators")
def operators(
    table: Table,
    cross_validate: CrossValidate = False,
    transfer: Annotated[
        bool,
        typer.Option(
            "--transfer", help="Score each GPU by fits of the file's other GPUs, as if never measured."
        ),
    ] = False,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Compare measured operators with the shipped profiles (or with fits on other rows, or of other GPUs)."""
    from planner.validation.operators import validate_operators

    report = validate_operators(table, cross_validate=cross_validate, transfer=transfer)
    _finish(report, plot, json)


@app.command("collectives")
def collectives(
    table: Table, cross_validate: CrossValidate = False, plot: Plot = None, json: Json = False
) -> None:
    """Compare measured collectives with the shipped profiles (or with fits on the other rows)."""
    from planner.validation.collectives import validate_collectives

    _finish(validate_collectives(table, cross_validate=cross_validate), plot, json)


@app.command("published")
def published(
    table: Table,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first rows.")] = None,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Compare with published or own measured whole runs; rows that cannot be modelled say why. A table of LLM
    servers (columns isl, osl, backend) is taken as `validate serving` takes it."""
    from planner.validation.published.score import validate_published
    from planner.validation.serving.score import is_serving_table, validate_serving

    validate = validate_serving if is_serving_table(table) else validate_published
    _finish(validate(table, limit=limit), plot, json)


@app.command("serving")
def serving(
    table: Table,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first rows.")] = None,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Compare with measured LLM servers: time to first token and per token under clients."""
    from planner.validation.serving.score import validate_serving

    _finish(validate_serving(table, limit=limit), plot, json)


@app.command("run")
def run(
    models: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Model (repeatable); default: the shipped validation set."),
    ] = None,
    plans: Annotated[
        list[str] | None,
        typer.Option("--plan", "-p", help="Plan (repeatable); default: single, DDP, FSDP, TP, GPipe, 1F1B."),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option("--hardware", "-H", help="Profile of this machine; default: calibrate now.")
    ] = None,
    global_batch: Annotated[
        int | None, typer.Option("--global-batch", "-B", min=1, help="For models outside the set.")
    ] = None,
    budget: Annotated[float, typer.Option("--budget-s", help="Calibration time where none is given.")] = 60.0,
    repeats: Annotated[
        int | None,
        typer.Option(
            "--repeats",
            min=1,
            help="Rounds over all plans; default: 7, then more for minutes while times are not known to 1 %.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Timed steps per round, at least.")] = 2,
    timeout: Annotated[
        float, typer.Option("--timeout-s", help="Seconds without progress; 60 more up to the first step.")
    ] = 60.0,
    out: Annotated[Path | None, typer.Option("--out", help="Keep measured runs as JSON here.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace", help="Keep a profiler trace of every rank in this folder (`validate trace`)."
        ),
    ] = None,
    executor: Annotated[
        str, typer.Option("--executor", help="torch: training plans; onnxruntime: forward passes.")
    ] = "torch",
    hosts: HostsFile = None,
    bucket: Annotated[
        float | None, typer.Option("--bucket-mb", help="DistributedDataParallel's bucket size in MiB.")
    ] = None,
    prompt: Annotated[
        int | None, typer.Option("--prompt", min=1, help="Run answers: tokens of each prompt.")
    ] = None,
    output: Annotated[
        int | None, typer.Option("--output", min=1, help="Run answers: tokens generated for each.")
    ] = None,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Start real torch.distributed runs of the plans here and compare them with their forecast: training
    steps, with --prompt and --output answers token by token, or forward passes under ONNX Runtime."""
    from planner import api

    report = api.validate_run(
        models=models,
        plans=plans,
        hardware=hardware,
        global_batch_size=global_batch,
        budget_s=budget,
        repeats=repeats,
        steps=steps,
        timeout_s=timeout,
        out=out,
        trace_dir=trace,
        executor=executor,
        hosts=hosts,
        bucket_cap_mb=bucket,
        prompt_len=prompt,
        output_len=output,
    )
    _finish(report, plot, json)
    if left_out := [row.id for row in report.rows if row.skipped is not None]:
        raise CheckFailed(
            f"{len(left_out)} of {len(report.details['runs'])} runs were not compared: {', '.join(left_out)}"
            "; the report says why of each"
        )


def _finish(report: Report, plot: Path | None, json: bool) -> None:
    from planner.commands.reports import show_report
    from planner.render import progress

    if plot is not None:
        from planner.plots import scatter

        scatter(report, plot)
        progress(f"wrote {plot}")
    if json:
        print(report.to_json())
    else:
        show_report(report)
