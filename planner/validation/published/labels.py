"""What a published row can be summarised by: device, model, framework, size and way of running."""

from __future__ import annotations

from costmodel.hardware.schema import HardwareProfile
from costmodel.plan import Plan
from planner.validation.published.rows import PublishedRow
from planner.validation.reliability import PLAN, PROBLEM

__all__ = ["MODEL_COLUMNS", "parallelism_of", "plan_labels", "row_labels"]

_SIZE_COLUMNS = ("model_family", "layers", "hidden", "ffn_hidden", "seq_len")
MODEL_COLUMNS = (*_SIZE_COLUMNS, "heads", "kv_heads", "vocab", "n_experts", "top_k")
"""Rows that agree in these share traces."""
_PROBLEM_COLUMNS = (
    *(*_SIZE_COLUMNS, "framework", "gpu", "dtype"),
    *("model_name", "heads", "vocab", "framework_version", "flash_attention", "task", "output_len"),
)


def row_labels(row: PublishedRow) -> dict[str, str]:
    """Labels that the row's own columns give, whether it can be forecast or not."""
    columns = {"family": "model_family", "model": "model_name", "framework": "framework"}
    names = {"gpu": "gpu", "task": "task", "dtype": "dtype", "n_gpus": "n_gpus", **columns}
    return {name: text for name, column in names.items() if (text := row.text(column))}


def plan_labels(row: PublishedRow, plan: Plan, profile: HardwareProfile) -> dict[str, str]:
    """Labels of a row with a plan: how it ran, what its rivals have in common, whose operators price it.

    `operators_of`: the device whose measured products stand behind the forecast; `assumed`: what the row does
    not say, or says in other words.
    """
    donors = {f.transferred_from or profile.name for f in profile.operators if f.kind == "gemm"}
    return {
        "n_gpus": str(plan.world_size),
        "strategy": parallelism_of(plan),
        "operators_of": profile.name if profile.name in donors else ", ".join(sorted(donors)),
        **({"assumed": assumed} if (assumed := _assumed(row, plan)) else {}),
        PLAN: str(plan),
        PROBLEM: "/".join(row.text(k) for k in _PROBLEM_COLUMNS),
    }


def _assumed(row: PublishedRow, plan: Plan) -> str:
    """What was read otherwise than written, and what of the plan the row leaves open."""
    meant = {column: row.text(column) for column in row.written}
    read = [f"{k} {said!r} as {meant[k]!r}" if said else f"{k}={meant[k]}" for k, said in row.written.items()]
    taken = {name: getattr(plan, name) for name in ("dp", "tp", "pp", "vpp", "cp", "ep")}
    taken |= {"micro_batch": plan.micro_batch_size, "global_batch": plan.global_batch_size}
    open_ = [f"{k}={v}" for k, v in taken.items() if v > 1 and row.number(k) != v]
    if plan.zero_stage and row.number("zero_stage") != plan.zero_stage:
        open_.append(f"zero_stage={plan.zero_stage}")
    if plan.expert_tp:
        open_.append(f"etp={plan.expert_tp}")
    if plan.recompute != "none" and row.text("recompute") != plan.recompute:
        open_.append(f"recompute={plan.recompute}")
    return ", ".join((*read, *open_))


def parallelism_of(plan: Plan) -> str:
    """The kind of parallelism: 'single', 'FSDP', 'DP x TP x PP', ... (FSDP: parameters sharded, ZeRO-3)."""
    degrees = {"FSDP" if plan.zero_stage == 3 else "DP": plan.dp, "TP": plan.tp, "CP": plan.cp}
    degrees |= {"PP": plan.pp, "EP": plan.ep}
    return " x ".join(name for name, degree in degrees.items() if degree > 1) or "single"
