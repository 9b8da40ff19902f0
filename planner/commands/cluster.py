"""`foreshard cluster`: a model on a cluster of unlike nodes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.commands.options import Framework, Json, Model, Optimizer, Overrides, Seq, TrustRemoteCode

if TYPE_CHECKING:
    from costmodel.predict.mixed import MixedForecast

__all__ = ["command"]


def command(
    model: Model,
    cluster: Annotated[Path, typer.Option("--cluster", "-c", help="TOML file: groups of nodes and links.")],
    global_batch: Annotated[int, typer.Option("--global-batch", "-B", min=1, help="Samples per step.")],
    micro_batch: Annotated[
        int | None, typer.Option("--micro-batch", min=1, help="Samples per micro-batch; default: best.")
    ] = None,
    with_: Annotated[
        str, typer.Option("--with", help="What all devices share, as a plan: tp2.full, gpipe.")
    ] = "dp1",
    max_stages: Annotated[int, typer.Option("--max-stages", min=0, help="0: as many as there can be.")] = 0,
    seq: Seq = None,
    framework: Framework = "pytorch",
    optimizer: Optimizer = "adamw",
    set_: Overrides = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Use all groups of a cluster: stages of uneven length over them, or replicas with uneven shares."""
    from planner import api

    answer = api.cluster(
        model,
        description=cluster,
        global_batch_size=global_batch,
        micro_batch_size=micro_batch,
        template=with_,
        max_stages=max_stages,
        seq_len=seq,
        framework=framework,
        optimizer=optimizer,
        overrides=set_,
        trust_remote_code=trust_remote_code,
    )
    if json:
        from planner.render import print_json

        print_json(answer.to_dict())
        return
    from planner.commands.partition import show_stages
    from planner.render import print_warnings

    print(f"{answer.cluster}: {answer.n_devices} devices; faster as {answer.best}")
    if answer.pipeline is not None:
        show_stages(answer.pipeline)
    if answer.replicas is not None:
        _show_shares(answer.replicas)
    for way, reason in answer.why_not.items():
        print(f"no {way}: {reason}")
    print_warnings(answer.warnings)


def _show_shares(forecast: MixedForecast) -> None:
    from planner.render import bytes_text, duration, print_table

    print(
        f"replicas: {duration(forecast.step_time_s)} a step of {forecast.global_batch_size} samples "
        f"({duration(forecast.step_time_low_s)} .. {duration(forecast.step_time_high_s)}), micro-batches of "
        f"{forecast.micro_batch_size}, {duration(forecast.reduction_s)} of reductions"
    )
    print_table(
        ["group", "hardware", "replicas", "micro-batches each", "samples", "micro-batch", "memory", "limit"],
        [
            [
                s.pool,
                s.hardware,
                str(s.n_replicas),
                ", ".join(f"{n} on {count}" for n, count in s.micro_batches) or "none",
                str(s.samples),
                duration(s.micro_batch_s),
                bytes_text(s.memory_bytes),
                bytes_text(s.memory_limit_bytes),
            ]
            for s in forecast.shares
        ],
    )
