"""`foreshard whatif`: the same model on other counts, GPUs, speeds, sizes and prices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.commands.options import Framework, Json, Model, Optimizer, Overrides, Seq, TrustRemoteCode

if TYPE_CHECKING:
    from planner.whatif import Curve, ScalingPoint, Study

__all__ = ["command"]


def command(
    model: Model,
    hardware: Annotated[str, typer.Option("--hardware", "-H", help="Profiles, separated by commas.")],
    gpus: Annotated[str, typer.Option("--gpus", "-n", help="Device counts, separated by commas.")],
    global_batch: Annotated[int, typer.Option("--global-batch", "-B", min=1, help="Samples per step.")],
    weak: Annotated[
        bool, typer.Option("--weak", help="The batch grows with the count (given: for the first).")
    ] = False,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            help="A further axis, name=value,value (repeatable): batch, seq, price, a speed as a factor "
            "(compute, memory, intra_link, inter_link, link_latency, kernel_overhead, host, offload), or a "
            "name of the model's configuration (n_layer=12,24).",
        ),
    ] = None,
    plan: Annotated[
        str | None, typer.Option("--plan", "-p", help="Hold this plan (its dp follows the count).")
    ] = None,
    elasticity: Annotated[
        bool, typer.Option("--elasticity", help="What 1 % more of each speed, of GPUs and of batch buys.")
    ] = False,
    price: Annotated[
        list[str] | None,
        typer.Option("--price", help="NAME=USD per device-hour (repeatable); default: published offers."),
    ] = None,
    seq: Seq = None,
    framework: Framework = "pytorch",
    optimizer: Optimizer = "adamw",
    set_: Overrides = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write the curves as a PNG.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Workers; -1: all processors.")] = 1,
    backend: Annotated[
        str | None,
        typer.Option("--backend", help="joblib's backend of the workers: loky, threading, dask, ray."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Scaling and swap curves: the best plan at each point with its interval, which term of the step is the
    largest and where another takes over, and what more of each speed would buy."""
    from planner import whatif
    from planner.render import print_json, print_warnings, progress

    with whatif.backend(backend):
        study = whatif.run_study(
            model,
            hardware=whatif.split_names(hardware),
            n_devices=whatif.split_counts(gpus),
            global_batch_size=global_batch,
            weak=weak,
            vary=whatif.parse_axes(vary),
            plan=plan,
            with_elasticities=elasticity,
            prices=price,
            seq_len=seq,
            framework=framework,
            optimizer=optimizer,
            overrides=set_,
            trust_remote_code=trust_remote_code,
            n_jobs=jobs,
        )
    if plot is not None:
        from planner.plots import study_curves

        study_curves(study.points, study.curves, plot)
        progress(f"wrote {plot}")
    if json:
        print_json(study.to_dict())
    else:
        _show(study)
        print_warnings(study.warnings)


def _show(study: Study) -> None:
    from planner.render import duration, print_table

    axes = list(dict.fromkeys(name for p in study.points for name, _ in p.varied))
    print_table(
        [
            "hardware",
            "GPUs",
            *axes,
            "batch",
            "best plan",
            "step",
            "90 % interval",
            "samples/s",
            "efficiency",
            "USD/1M samples",
            "limit",
        ],
        [_row(p, axes) for p in study.points],
        title="efficiency: throughput per device against the first count of the same curve",
        caption="; ".join(f"{name}: {text}" for name, text in study.prices.items()),
    )
    for curve, crossings in study.crossovers:
        for crossing in crossings:
            print(
                f"{_curve(curve)}: {crossing.after} takes over from {crossing.before} at {crossing.axis} "
                f"{crossing.at:.4g} ({crossing.how})"
            )
    for point, found in study.elasticities:
        if point.prediction is None:
            continue
        print_table(
            ["what", "elasticity", "90 % interval", "1 % more of it", "about"],
            [
                [
                    e.what,
                    "-" if e.value is None else f"{e.value:+.3f}",
                    "-" if e.low is None else f"{e.low:+.3f} .. {e.high:+.3f}",
                    "-"
                    if e.value is None
                    else duration(abs(e.value) * 0.01 * point.prediction.step_time_s)
                    + (" less" if e.value <= 0 else " more"),
                    e.reason or e.about,
                ]
                for e in found
            ],
            title=f"{point.hardware} x {point.n_devices} as {point.prediction.plan}: "
            f"{duration(point.prediction.step_time_s)}",
            caption="the elasticities of all speeds add up to -1; gpus and batch: over a doubling",
        )


def _row(p: ScalingPoint, axes: list[str]) -> list[str]:
    from planner.render import duration, per_second, percent

    prediction, varied = p.prediction, dict(p.varied)
    low, high = (prediction.step_time_low_s, prediction.step_time_high_s) if prediction else (None, None)
    return [
        p.hardware,
        str(p.n_devices),
        *(str(varied.get(axis, "-")) for axis in axes),
        str(p.global_batch_size),
        str(prediction.plan) if prediction else p.reason,
        duration(prediction.step_time_s) if prediction else "-",
        f"{duration(low)} .. {duration(high)}" if prediction else "-",
        per_second(prediction.samples_per_s) if prediction else "-",
        percent(p.efficiency),
        "-" if p.usd_per_sample is None else f"{1e6 * p.usd_per_sample:.4g}",
        p.limit,
    ]


def _curve(curve: Curve) -> str:
    return ", ".join(f"{name} {value}" for name, value in curve.held)
