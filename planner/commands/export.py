"""`foreshard export`: a plan as another system's launch configuration."""

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
    PlanText,
    Seq,
    TrustRemoteCode,
)

__all__ = ["command"]


def command(
    model: Model,
    hardware: Hardware,
    to: Annotated[
        str, typer.Option("--to", help="accelerate, colossalai, deepspeed, megatron, torch or torchtitan.")
    ],
    plan: PlanText = "dp1",
    out: Annotated[Path, typer.Option("--out", help="Folder for the files.")] = Path("foreshard-out"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
    seq: Seq = None,
    framework: Framework = "pytorch-bf16",
    optimizer: Optimizer = "adamw",
    set_: Overrides = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Write a plan as torchtitan TOML, Megatron-LM arguments, DeepSpeed JSON, accelerate YAML, Colossal-AI
    plugin arguments or a torch script that runs it."""
    from planner import api

    paths = api.export(
        model,
        hardware=hardware,
        plan=plan,
        target=to,
        out=out,
        seq_len=seq,
        framework=framework,
        optimizer=optimizer,
        overrides=set_,
        trust_remote_code=trust_remote_code,
        force=force,
    )
    if json:
        from planner.render import print_json

        print_json({"target": to, "plan": plan, "files": [str(path) for path in paths]})
        return
    for path in paths:
        print(path)
