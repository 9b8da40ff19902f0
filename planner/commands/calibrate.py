"""`foreshard calibrate`: measure this machine and fit its profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.commands.options import HostsFile, Json

__all__ = ["command"]


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Profile to write.")] = Path("this-machine.json"),
    budget: Annotated[
        str, typer.Option("--budget", help="Time for all measurements, e.g. 60s or 2m.")
    ] = "60s",
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="Processes to start in a plain call.")] = 2,
    backend: Annotated[
        str | None, typer.Option("--backend", help="gloo or nccl; default: the device's.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Measure these kinds only.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Use samples already taken here.")] = True,
    hosts: HostsFile = None,
    json: Json = False,
) -> None:
    """Measure operators, host costs and collectives of this machine and write its profile.

    Started plainly it starts the ranks itself; with RANK and WORLD_SIZE set (torchrun, Slurm) it joins.
    """
    from planner import api
    from planner.commands.hardware import show_profile
    from planner.render import print_json

    result = api.calibrate(
        out=out,
        budget_s=_seconds(budget),
        world_size=ranks,
        backend=backend,
        only=only,
        resume=resume,
        hosts=hosts,
    )
    if result is None:  # a rank that joined and is not rank 0
        return
    if json:
        print_json(result.model_dump(mode="json"))
    else:
        show_profile(result, samples=out)


def _seconds(text: str) -> float:
    from costmodel.errors import UsageError

    units = {"s": 1.0, "m": 60.0}
    try:
        value = float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 86400:
        raise UsageError(f"--budget {text!r}: must be a time above zero, for example 60s or 2m")
    return value
