"""`foreshard predict`: one plan's step time, breakdown, bubble and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.commands.options import (
    Framework,
    Hardware,
    Host,
    Json,
    Model,
    Optimizer,
    Overrides,
    PlanText,
    Seq,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.predict import Prediction

__all__ = ["command", "show"]


def command(
    model: Model,
    hardware: Hardware,
    plan: PlanText = "dp1",
    gpus: Annotated[
        int | None, typer.Option("--gpus", "-n", min=1, help="Refuse a plan that needs another count.")
    ] = None,
    seq: Seq = None,
    framework: Framework = "pytorch",
    optimizer: Optimizer = "adamw",
    host: Host = None,
    compression: Annotated[
        float, typer.Option("--compression", help="By how much gradients shrink before they are sent.")
    ] = 1.0,
    straggler: Annotated[
        float, typer.Option("--straggler", help="Speed of one rank relative to the others, for example 0.8.")
    ] = 1.0,
    set_: Overrides = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Folder for a Perfetto trace per rank.")
    ] = None,
    gantt: Annotated[Path | None, typer.Option("--gantt", help="Write the timeline as a PNG.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write one HTML file.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Predict one plan: step time with its 90 % interval, what it is spent on, memory per stage."""
    from planner import api

    forecast = api.predict(
        model,
        hardware=hardware,
        plan=plan,
        world_size=gpus,
        seq_len=seq,
        framework=framework,
        optimizer=optimizer,
        overrides=set_,
        trust_remote_code=trust_remote_code,
        host=host,
        compression=compression,
        straggler=straggler,
    )
    if trace is not None:
        forecast.write_trace(trace)
    if gantt is not None:
        forecast.write_gantt(gantt)
    if html is not None:
        from planner.reporting import write_prediction_html

        write_prediction_html(forecast.prediction, html)
    if json:
        from planner.render import print_json

        print_json(forecast.prediction.to_dict())
    else:
        from costmodel.framework import load_framework

        show(forecast.prediction, load_framework(framework))


def show(prediction: Prediction, framework: FrameworkProfile) -> None:
    """Print one prediction under a framework as tables."""
    from planner.render import bytes_text, duration, legend, per_second, percent, print_table, print_warnings

    p = prediction
    print(
        f"{p.model} as {p.plan} on {p.hardware.n_devices} x {p.hardware.name}: "
        f"{duration(p.step_time_s)} [{duration(p.step_time_low_s)} .. {duration(p.step_time_high_s)}] a step"
    )
    print_table(
        ["part", "time", "share"],
        [
            [part, duration(seconds), percent(seconds / p.step_time_s)]
            for part, seconds in p.breakdown_s.items()
            if seconds > 0
        ],
        title="where a step goes (exposed time, mean over ranks)",
    )
    verdict = "fits" if p.fits else "DOES NOT FIT"
    parts = ("parameters", "gradients", "optimizer", "activations", "temporary", "communication", "framework")
    print_table(
        ["stage", "peak", *parts],
        [
            [str(m.stage), bytes_text(m.peak_memory_bytes), *(bytes_text(getattr(m, k)) for k in parts)]
            for m in p.memory
        ],
        title=f"memory per rank: {verdict} in {bytes_text(p.device_memory_bytes)}",
        caption=legend(),
    )
    rate = f"{per_second(p.samples_per_s)} samples/s"
    if p.tokens_per_s is not None:
        rate += f", {per_second(p.tokens_per_s)} tokens/s"
    print(f"{rate}; pipeline idle {percent(p.bubble_fraction)}; MFU {percent(p.mfu)}, HFU {percent(p.hfu)}")
    print(f"framework {framework.name}, which computes in {framework.compute_dtype}")
    print_warnings(p.warnings)
