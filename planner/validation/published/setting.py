"""From a row's wording to profiles: framework, hardware, links, plan."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import costmodel
from costmodel.errors import PlanError
from costmodel.framework import FrameworkProfile, load_framework
from costmodel.hardware.device import weight_bytes
from costmodel.hardware.schema import HardwareProfile
from costmodel.hardware.store import load_profile
from costmodel.models import resolve_config
from costmodel.plan import Plan
from costmodel.recompute import Recompute
from planner.validation.published.model_map import RowModel
from planner.validation.published.rows import PublishedRow

__all__ = ["INFERENCE_TASKS", "row_arguments", "row_framework", "row_hardware", "row_plan", "row_variant"]

_DATA = Path(costmodel.__path__[0]) / "data" / "published" / "settings.json"
INFERENCE_TASKS = ("forward", "prefill", "decode")
"""Values of a row's `task` that are inference."""
_NARROW = {"fp8": "fp8", "fp4": "nvfp4"}
_TRAINED_AS = {"fp32": "fp32", "tf32": "fp32", "fp16": "fp16"}
"""Type the model is traced in; everything else (bf16, fp8, fp4) keeps its activations in bf16."""


@lru_cache(maxsize=1)
def _settings() -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(_DATA.read_text())
    return settings


def row_framework(row: PublishedRow) -> FrameworkProfile:
    """The framework profile of the row, in the row's precision and with its attention kernels."""
    wording = row.text("framework")
    name = next(f["framework"] for f in _settings()["frameworks"] if re.search(f["match"], wording, re.I))
    base = load_framework(name)
    dtype = _TRAINED_AS.get(row.text("dtype", "fp16"), "bf16")
    changes: dict[str, Any] = {"compute_dtype": dtype}
    if row.text("dtype") == "tf32":
        changes["fp32_products"] = "tf32"
    changes["half_products"] = _NARROW.get(row.text("dtype"), "same")
    if row.text("task") in INFERENCE_TASKS and changes["half_products"] != "same":
        changes["parameter_bytes"] = weight_bytes(changes["half_products"])
    if dtype == "fp32":
        changes |= {"parameter_bytes": 4.0, "gradient_bytes": 4.0, "optimizer_state_bytes": 8.0}
        changes |= {"gradient_comm_bytes": 4.0, "parameter_comm_bytes": 4.0}
    for entry in _settings()["cache"]:
        if re.search(entry["match"], row.text("notes"), re.I):
            changes["cache_dtype"] = entry["cache_dtype"]
    flash = row.flag("flash_attention")
    if flash is not None:
        changes["attention"] = "flash" if flash else "unfused"
    said = (e for e in _settings()["attention"] if re.search(e["match"], row.text("notes"), re.I))
    if flash is None and (entry := next(said, None)):
        changes["attention"] = entry["attention"]
    return base.model_copy(update=changes)


@lru_cache(maxsize=64)
def _profile(name: str) -> HardwareProfile:
    return load_profile(name)


def row_hardware(row: PublishedRow) -> HardwareProfile:
    """The shipped profile of the row's GPU. Raises ProfileError where there is none."""
    name = row.text("gpu")
    return _profile(_settings()["unknown_gpu"]["gpu"] if name in ("", "unknown") else name)


def row_variant(row: PublishedRow, profile: HardwareProfile) -> str | None:
    """The profile's inter-node link that the row's wording means, None for its default."""
    wording = row.text("inter_node_link")
    for entry in _settings()["inter_links"]:
        if re.search(entry["match"], wording, re.I):
            known = () if profile.network is None else profile.network.variants()
            return entry["link"] if entry["link"] in known else None
    return None


def row_arguments(row: PublishedRow, model: RowModel) -> tuple[str, dict[str, Any]]:
    """What a forecaster of the row is made with, and a key that is equal where all of it is.

    Raises what the model and the profile raise.
    """
    profile, framework = row_hardware(row), row_framework(row)
    variant = row_variant(row, profile)
    key = json.dumps([dict(model.config), model.seq_len, profile.name, framework.model_dump(), variant])
    source = resolve_config(model.config, name=row.text("model_name"), seq_len=model.seq_len or None)
    return key, {
        "source": source,
        "profile": profile,
        "framework": framework,
        "network_variant": variant,
    }


def row_plan(row: PublishedRow) -> Plan | str:
    """The row's plan, or why it has none. Degrees the source leaves out are 1; dp is what remains."""
    n = row.integer("n_gpus", 1)
    tp, pp, cp = (row.integer(name, 1) for name in ("tp", "pp", "cp"))
    dp = row.integer("dp") or max(1, n // max(1, tp * pp * cp))
    mbs = row.integer("micro_batch")
    gbs = row.integer("global_batch") or mbs * dp
    if not gbs:
        return "the source does not say the batch"
    if not mbs:
        mbs = max(1, gbs // dp) if pp == 1 and gbs // dp <= 8 else 1
    recompute = row.text("recompute", "none")
    vpp = row.integer("vpp", 1) or 1
    schedule = "gpipe" if row.text("pipeline_schedule") == "gpipe" else "interleaved" if vpp > 1 else "1f1b"
    try:
        return Plan(
            dp=dp,
            tp=tp,
            pp=pp,
            vpp=vpp if pp > 1 else 1,
            cp=cp,
            ep=row.integer("ep", 1) or 1,
            micro_batch_size=mbs,
            global_batch_size=gbs,
            schedule=schedule if pp > 1 else "1f1b",
            zero_stage=row.integer("zero_stage"),
            sequence_parallel=bool(row.flag("sequence_parallel")) and tp > 1,
            recompute=recompute if Recompute.is_one(recompute) else "none",
        )
    except PlanError as error:
        return str(error)
