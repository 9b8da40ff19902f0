"""`foreshard whatif`: the same model on other GPU counts and other GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.commands.options import Framework, Json, Model, Optimizer, Overrides, Seq, TrustRemoteCode

__all__ = ["command"]


def command(
    model: Model,
    hardware: Annotated[str, typer.Option("--hardware", "-H", help="Profiles, separated by commas.")],
    gpus: Annotated[str, typer.Option("--gpus", "-n", help="Device counts, separated by commas.")],
    global_batch: Annotated[int, typer.Option("--global-batch", "-B", min=1, help="Samples per step.")],
    weak: Annotated[
        bool, typer.Option("--weak", help="The batch grows with the count (given: for the first).")
    ] = False,
    seq: Seq = None,
    framework: Framework = "pytorch",
    optimizer: Optimizer = "adamw",
    set_: Overrides = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write the scaling curves as a PNG.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Scaling and swap curves: the best plan at each count on each device, with its interval."""
    from planner import whatif as study
    from planner.render import duration, percent, print_json, print_table, progress

    points = study.scaling(
        model,
        hardware=study.split_names(hardware),
        n_devices=study.split_counts(gpus),
        global_batch_size=global_batch,
        weak=weak,
        seq_len=seq,
        framework=framework,
        optimizer=optimizer,
        overrides=set_,
        trust_remote_code=trust_remote_code,
    )
    if plot is not None:
        from planner.plots import scaling_curves

        scaling_curves(points, plot)
        progress(f"wrote {plot}")
    if json:
        print_json({"points": [p.to_dict() for p in points]})
        return
    print_table(
        [
            "hardware",
            "GPUs",
            "batch",
            "best plan",
            "step",
            "90 % interval",
            "samples/s",
            "efficiency",
            "limit",
        ],
        [
            [
                p.hardware,
                str(p.n_devices),
                str(p.global_batch_size),
                str(p.prediction.plan) if p.prediction else p.reason,
                duration(p.prediction.step_time_s) if p.prediction else "-",
                f"{duration(p.prediction.step_time_low_s)} .. {duration(p.prediction.step_time_high_s)}"
                if p.prediction
                else "-",
                f"{p.prediction.samples_per_s:.4g}" if p.prediction else "-",
                percent(p.efficiency),
                p.dominant,
            ]
            for p in points
        ],
        title="efficiency: throughput per device against the first count of the same hardware",
    )
