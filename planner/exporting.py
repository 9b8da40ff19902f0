"""`export`: from a model argument and a plan to another system's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["export"]


def export(
    model: str,
    *,
    hardware: str,
    plan: str,
    target: str,
    out: Path,
    seq_len: int | None = None,
    framework: str = "pytorch-bf16",
    optimizer: str = "adamw",
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    force: bool = False,
) -> list[Path]:
    """Write the plan for `target` into `out`; returns the files.

    Raises UsageError for an unknown target, PlanError where the target cannot express the plan or the model
    cannot take it, ForeshardError where a file is there already without `force`.
    """
    from planner import api
    from planner.export import export_job, write_export
    from planner.render import progress
    from planner.validation.local import run_spec_of
    from planner.validation.run_spec import ModelSpec

    parsed = api.parse_plan(plan)
    changes = dict(overrides) if isinstance(overrides, Mapping) else api.parse_overrides(overrides)
    forecaster = api.forecaster(
        model,
        hardware=hardware,
        seq_len=seq_len,
        framework=framework,
        optimizer=optimizer,
        overrides=changes,
        trust_remote_code=trust_remote_code,
    )
    spec = run_spec_of(
        ModelSpec(model=model, seq_len=seq_len, overrides=changes),
        forecaster,
        parsed,
        optimizer=optimizer,
        needs_styles=target == "torch",
    )
    for note in forecaster.notes:
        progress(f"warning: {note}")
    return write_export(target, export_job(forecaster, parsed, model=model, spec=spec), out, force=force)
