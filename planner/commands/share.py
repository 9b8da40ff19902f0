"""`foreshard share`: unequal devices that train one batch together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from planner.commands.options import Framework, Json, Model, Optimizer, Overrides, Seq, TrustRemoteCode

if TYPE_CHECKING:
    from costmodel.predict.uneven import UnevenPrediction

__all__ = ["command"]


def command(
    model: Model,
    devices: Annotated[
        str,
        typer.Option("--devices", "-D", help="Profiles and counts: t4*2,core-i7-13700 (a CPU beside)."),
    ],
    global_batch: Annotated[int, typer.Option("--global-batch", "-B", min=1, help="Samples of a step.")],
    prefetch: Annotated[
        bool, typer.Option("--prefetch/--no-prefetch", help="Whether inputs come in beside the step.")
    ] = True,
    seq: Seq = None,
    framework: Framework = "pytorch",
    optimizer: Optimizer = "adamw",
    set_: Overrides = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Split a batch over unequal devices so that all end together: each one's share, and the step."""
    from planner import api

    answer = api.share(
        model,
        devices=devices,
        global_batch_size=global_batch,
        prefetch=prefetch,
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
    _show(model, answer)


def _show(model: str, answer: UnevenPrediction) -> None:
    from planner.render import bytes_text, duration, per_second, print_table, print_warnings

    print(
        f"{model}: {duration(answer.step_time_s)} a step of {answer.global_batch_size} samples, "
        f"{per_second(answer.samples_per_s)} samples/s; "
        f"{duration(answer.reduction_s)} of it reduces gradients"
    )
    print_table(
        ["device", "count", "samples each", "step", "inputs", "peak memory"],
        [
            [
                s.hardware,
                str(s.count),
                str(s.samples[0]) if len(set(s.samples)) == 1 else f"{min(s.samples)} to {max(s.samples)}",
                duration(s.step_s),
                duration(s.load_s),
                bytes_text(s.peak_memory_bytes),
            ]
            for s in answer.shares
        ],
    )
    for name, seconds in answer.alone_s:
        print(f"{name} without the others: {duration(seconds)}")
    print_warnings(answer.warnings)
