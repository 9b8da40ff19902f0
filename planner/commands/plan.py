"""`foreshard plan`: every feasible plan, ranked, and why the losers lost."""

from __future__ import annotations

from typing import Annotated

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

__all__ = ["command"]


def command(
    model: Model,
    hardware: Hardware,
    gpus: Annotated[int, typer.Option("--gpus", "-n", min=1, help="Devices to use.")],
    global_batch: Annotated[int, typer.Option("--global-batch", "-B", min=1, help="Samples per step.")],
    seq: Seq = None,
    framework: Framework = "pytorch",
    optimizer: Optimizer = "adamw",
    set_: Overrides = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Plans to show.")] = 12,
    explain: Annotated[
        tuple[str, str] | None, typer.Option("--explain", help="Two plans: why A beats B.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Rank every feasible plan for N devices; say what excluded the others and why the losers lose."""
    from planner import api
    from planner.render import bytes_text, duration, percent, print_json, print_table

    search = api.plan(
        model,
        hardware=hardware,
        n_devices=gpus,
        global_batch_size=global_batch,
        seq_len=seq,
        framework=framework,
        optimizer=optimizer,
        overrides=set_,
        trust_remote_code=trust_remote_code,
    )
    if explain is not None:
        search = search.explaining(*explain)
    if json:
        print_json(search.to_dict(top=None))
        return
    print_table(
        ["plan", "step", "90 % interval", "memory", "bubble", "P(best)", "why it loses"],
        [
            [
                str(r.prediction.plan),
                duration(r.prediction.step_time_s),
                f"{duration(r.prediction.step_time_low_s)} .. {duration(r.prediction.step_time_high_s)}",
                bytes_text(r.prediction.peak_memory_bytes),
                percent(r.prediction.bubble_fraction),
                percent(r.probability_best),
                r.why,
            ]
            for r in search.ranked[:top]
        ],
        title=f"{len(search.ranked)} feasible plans of {search.n_considered} considered "
        f"in {duration(search.search_time_s)}",
    )
    if search.n_excluded:
        print_table(
            ["excluded because", "plans"], [[reason, str(n)] for reason, n in search.n_excluded.items()]
        )
    if search.explanation:
        print(search.explanation)
