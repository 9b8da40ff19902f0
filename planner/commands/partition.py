"""`foreshard partition`: a model cut into stages for equal devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from planner.commands.options import (
    Framework,
    Hardware,
    Json,
    Model,
    Optimizer,
    Overrides,
    Seq,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from costmodel.predict.staged import StagedForecast
    from planner.partitioning import Partition

__all__ = ["command", "show_stages"]


def command(
    model: Model,
    hardware: Hardware,
    gpus: Annotated[int, typer.Option("--gpus", "-n", min=1, help="Devices to use.")],
    global_batch: Annotated[int, typer.Option("--global-batch", "-B", min=1, help="Samples per step.")],
    micro_batch: Annotated[
        int | None,
        typer.Option(
            "--micro-batch",
            min=1,
            help="Samples that pass a stage at a time, over its replicas; default: best.",
        ),
    ] = None,
    with_: Annotated[
        str, typer.Option("--with", help="What all stages share, as a plan: tp2.full, zero1, gpipe.")
    ] = "dp1",
    objective: Annotated[
        str,
        typer.Option(
            "--objective", help="latency of a step (DAPPLE) or throughput without flush (PipeDream)."
        ),
    ] = "latency",
    max_stages: Annotated[int, typer.Option("--max-stages", min=0, help="0: as many as there can be.")] = 0,
    placement: Annotated[
        list[str] | None,
        typer.Option(
            "--placement", help="fresh-first, append-first, scatter-first (repeatable; default all)."
        ),
    ] = None,
    memory_gib: Annotated[
        float, typer.Option("--memory-gib", min=0.0, help="Limit per device in GiB; 0: all that it has.")
    ] = 0.0,
    seq: Seq = None,
    framework: Framework = "pytorch",
    optimizer: Optimizer = "adamw",
    set_: Overrides = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Cut a model into uneven stages on one or more devices each: where, how many, on which, how fast."""
    from planner import api

    answer = api.partition(
        model,
        hardware=hardware,
        n_devices=gpus,
        global_batch_size=global_batch,
        micro_batch_size=micro_batch,
        template=with_,
        objective=objective,
        max_stages=max_stages,
        policies=placement,
        memory_limit_bytes=memory_gib * 2**30,
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
    _show(answer)


def _show(answer: Partition) -> None:
    from planner.render import bytes_text, duration, print_warnings

    show_stages(answer.forecast)
    for send in answer.sends:
        print(f"stage {send['from']} makes {bytes_text(send['bytes'])} that stage {send['to']} reads")
    if answer.even is not None:
        print(f"best plan of equal degrees: {answer.even.plan}, {duration(answer.even.step_time_s)} a step")
    print_warnings(answer.warnings)


def show_stages(forecast: StagedForecast) -> None:
    """A pipeline's step and its stages as text."""
    from planner.render import bytes_text, duration, print_table

    print(
        f"{forecast.model}: {duration(forecast.step_time_s)} a step of {forecast.global_batch_size} samples "
        f"({duration(forecast.step_time_low_s)} .. {duration(forecast.step_time_high_s)}), "
        f"{forecast.n_devices_used} of {forecast.n_devices} devices, {forecast.schedule}, micro-batches of "
        f"{forecast.micro_batch_size}; closed form {duration(forecast.latency_s)}"
    )
    print_table(
        ["stage", "hardware", "replicas", "nodes", "forward", "backward", "send", "memory", "limit"],
        [
            [
                f"{s.first_module} .. {s.last_module}",
                s.hardware,
                str(s.replicas),
                " ".join(f"{node}:{count}" for node, count in enumerate(s.placement) if count),
                duration(s.forward_s),
                duration(s.backward_s),
                duration(s.send_s),
                bytes_text(s.memory_bytes),
                bytes_text(s.memory_limit_bytes),
            ]
            for s in forecast.stages
        ],
    )
