"""Options that several sub-commands share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from costmodel.errors import UsageError

__all__ = [
    "Framework",
    "Hardware",
    "Host",
    "HostsFile",
    "Json",
    "Model",
    "Optimizer",
    "Overrides",
    "PlanText",
    "Seq",
    "TrustRemoteCode",
    "split_numbers",
    "split_words",
]


def split_words(option: str, text: str) -> tuple[str, ...]:
    """`a,b` to words. Raises UsageError where there is none."""
    words = tuple(part.strip() for part in text.split(",") if part.strip())
    if not words:
        raise UsageError(f"{option} {text!r}: give at least one, separated by commas")
    return words


def split_numbers(option: str, text: str) -> tuple[int, ...]:
    """`1,2` to whole numbers. Raises UsageError for anything else."""
    for part in split_words(option, text):
        if not part.isdigit():
            raise UsageError(f"{option} {text!r}: {part!r} is not a whole number; for example 1,2,4")
    return tuple(int(part) for part in split_words(option, text))


Model = Annotated[
    str,
    typer.Argument(
        help="A shipped name (gpt2, llama-3.1-8b, resnet-50, ...), a Hugging Face config.json or its "
        "folder, or module:callable returning (nn.Module, args[, kwargs])."
    ),
]
Hardware = Annotated[
    str,
    typer.Option("--hardware", "-H", help="A shipped profile name (`foreshard hardware list`) or a file."),
]
PlanText = Annotated[
    str, typer.Option("--plan", "-p", help="For example dp8.tp4.pp2.mbs2.gbs256.1f1b.zero1, or a TOML file.")
]
Framework = Annotated[
    str, typer.Option("--framework", help="What runs the model: a framework profile's name or file.")
]
Optimizer = Annotated[
    str, typer.Option("--optimizer", help="sgd, adam, adamw, adafactor, muon; none: no update.")
]
Host = Annotated[
    str | None,
    typer.Option("--host", help="What offload works with: a host's name or a JSON file; default: by device."),
]
HostsFile = Annotated[
    Path | None,
    typer.Option("--hosts", help="JSON file of hosts to start ranks on (see calibrate/hosts.py)."),
]
Seq = Annotated[
    int | None, typer.Option("--seq", min=1, help="Sequence length; default: the model's example length.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change the model's configuration: --set n_layer=4 (repeatable)."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let a Hugging Face folder run its own Python code.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of tables.")]
