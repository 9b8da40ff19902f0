"""`foreshard report`: a search as one HTML file."""

from __future__ import annotations

from pathlib import Path
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
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path("report.html"),
    seq: Seq = None,
    framework: Framework = "pytorch",
    optimizer: Optimizer = "adamw",
    set_: Overrides = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Rank plans and write one HTML file: the ranking, the best plan's breakdown and memory."""
    from planner import api
    from planner.render import print_json, progress
    from planner.reporting import Page, prediction_tables, search_table, write_page

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
    best = search.ranked[0].prediction
    page = Page(
        title=f"{model} on {gpus} x {hardware}",
        lead=[f"Best plan: {best.plan}.", *best.warnings],
        tables=[search_table(search), *prediction_tables(best)],
    )
    write_page(page, out)
    progress(f"wrote {out}")
    if json:
        print_json({"html": str(out), **search.to_dict(top=15)})
