"""From a serving row's wording to model, profiles, plan and load."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from pathlib import Path
from typing import Any

import costmodel
from costmodel.framework import FrameworkProfile, load_framework
from costmodel.models import shipped_config
from costmodel.plan import Plan
from costmodel.predict.loads import Load
from costmodel.predict.passes import Experts
from planner.validation.published.rows import PublishedRow

__all__ = [
    "Ranks",
    "as_launched",
    "cache_room_bytes",
    "served_config",
    "serving_framework",
    "serving_load",
    "serving_ranks",
]

_FOLDER = Path(costmodel.__path__[0]) / "data" / "published"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Ranks of a server: attention of `plan.dp` replicas over `plan.tp` each, experts over all of them."""

    plan: Plan
    experts: Experts


@lru_cache(maxsize=1)
def _settings() -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((_FOLDER / "serving.json").read_text())
    return settings


@lru_cache(maxsize=1)
def _models() -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = json.loads((_FOLDER / "served_models.json").read_text())["models"]
    return models


def served_config(row: PublishedRow) -> dict[str, Any] | None:
    """The row's model as a transformers configuration; None where the table of models has none."""
    model = _model(row)
    if not model:
        return None
    shipped = shipped_config(model["shipped"]) if "shipped" in model else {}
    return {**shipped, **model.get("config", {})}


def _model(row: PublishedRow) -> dict[str, Any]:
    """The row's entry in the table of models; empty where it has none."""
    return next((m for m in _models() if re.search(m["match"], row.text("model"), re.I)), {})


def serving_framework(row: PublishedRow) -> FrameworkProfile | None:
    """The backend's framework profile with the row's products and cache; None for an unknown backend."""
    settings, entry = _settings(), _backend(row)
    if entry is None:
        return None
    precision = row.text("precision")
    model = _model(row)
    own, beside = model.get("products", {}), model.get("dense_products", {})
    dense = _products(row.text("gemm_quant_mode", precision))
    routed = _products(row.text("moe_quant_mode", row.text("gemm_quant_mode", precision)))
    changes: dict[str, Any] = {
        "half_products": beside.get(dense, own.get(dense, dense)),
        "expert_products": own.get(routed, routed),
    }
    sizes = _sizes(row)
    for name in ("cache_dtype", "expert_kernels", "product_flop_per_s"):
        kept = next((k for k in settings["kernels"] if name in k["set"] and _fits(k, row, sizes)), None)
        if kept is not None:
            value = kept["set"][name]
            changes[name] = tuple(value) if isinstance(value, list) else value
    return load_framework(entry["framework"]).model_copy(update=changes)


def _backend(row: PublishedRow) -> dict[str, Any] | None:
    """The row's entry in the table of backends."""
    return next(
        (b for b in _settings()["backends"] if re.search(b["match"], row.text("backend"), re.I)), None
    )


def cache_room_bytes(row: PublishedRow, *, device_bytes: float, parameter_bytes: float) -> float:
    """Bytes that a rank of the backend has for keys and values: the framework's shares of the device and of
    what parameters leave free, or those of the row's launch; passes take some of both."""
    backend = _backend(row) or {}
    entry = {**backend, **_launched(row, clients=1, replicas=1)}
    framework = load_framework(backend["framework"]) if backend else None
    of_device = framework.device_memory_fraction if framework else 1.0
    of_free = framework.free_memory_fraction if framework else 1.0
    taken = float(entry.get("memory_fraction", of_device)) * device_bytes
    kept = parameter_bytes + float(entry.get("reserved_bytes", 0.0))
    return float(entry.get("free_memory_fraction", of_free)) * (taken - kept)


def _products(wording: str) -> str:
    entry = next(p for p in _settings()["products"] if re.search(p["match"], wording, re.I))
    return str(entry["products"])


def serving_ranks(row: PublishedRow, *, ranks_per_node: int) -> Ranks:
    """The row's ranks. Raises PlanError where its sizes make no plan.

    Tables that were derived from launch flags count a rank once for each flag that names it: replicas of
    attention that repeat the tensor-parallel size, or experts' sizes that repeat each other beyond a node,
    are of one set of ranks. Ranks of a size that repeats itself split their attention: such rows are as fast
    as rows of that size without replicas, and run out of memory where those do. What a launch script made of
    experts and attention and the table leaves out is put right last (`ranks` of the settings).
    """
    tp, replicas = row.integer("tp_size", 1), row.integer("attention_dp_size", 1) or 1
    split, groups = row.integer("moe_tp_size", 1) or 1, row.integer("moe_ep_size", 1) or 1
    world = tp * replicas * row.integer("pp_size", 1)
    if replicas > 1 and tp == replicas:
        replicas = 1
        split, groups = 1, tp
    elif world > ranks_per_node and isqrt(world) ** 2 == world and split == groups == isqrt(world):
        tp, replicas = (1, isqrt(world)) if replicas > 1 else (isqrt(world), 1)
        split, groups = 1, isqrt(world)
    elif split * groups != tp * replicas:
        split, groups = tp * replicas, 1
    for launch in (entry for entry in _settings()["ranks"] if _fits(entry, row, _sizes(row))):
        if launch["set"].get("counted") == "twice":
            tp = isqrt(tp)
        split, groups = 1, tp * replicas
        if launch["set"].get("attention") == "replicas":
            tp, replicas = 1, tp * replicas
        break
    pp = row.integer("pp_size", 1)
    plan = Plan(dp=replicas, tp=tp, pp=pp, micro_batch_size=1, global_batch_size=replicas)
    return Ranks(plan=plan, experts=Experts(tp=split, ep=groups))


def serving_load(row: PublishedRow, replicas: int) -> Load | str:
    """What one replica of attention gets, or why that is not known. Raises PlanError on sizes of no load."""
    clients = row.integer("concurrency") or row.integer("batch_size") * replicas
    isl, osl = row.integer("isl"), row.integer("osl")
    if not clients:
        return "the row gives neither concurrency nor batch_size"
    made = _launched(row, clients=clients, replicas=replicas)
    return Load(
        clients=max(1, round(clients / replicas)),
        prompt_len=isl,
        output_len=osl,
        lengths=(made["lengths"][0], made["lengths"][1]),
        requests_each=made["requests_each"],
        draft_tokens=made["draft_tokens"],
        accepted_tokens=made["accepted_tokens"],
        poll_steps=made["poll_steps"],
        wait_steps=made["wait_steps"],
        wait_fraction=made["wait_fraction"],
        pass_tokens=_sum(made["pass_tokens"], clients=clients, isl=isl, osl=osl),
        spare_clients=made["spare_clients"],
        start_s=made["start_s"],
    )


def as_launched(row: PublishedRow, framework: FrameworkProfile, load: Load) -> FrameworkProfile:
    """The row's framework profile with what its launch changed of it, passes' prices aside."""
    made = _launched(row, clients=load.clients, replicas=1)
    return framework.model_copy(update=made.get("framework", {}))


def _launched(row: PublishedRow, *, clients: int, replicas: int) -> dict[str, Any]:
    """How the row's server and load generator were launched: of each setting the first one that fits."""
    sizes = {**_sizes(row), "clients": clients, "replicas": replicas, "sent": clients * row.integer("isl")}
    found: dict[str, Any] = {}
    for entry in _settings()["launches"]:
        if _fits(entry, row, sizes):
            whole = {**entry["set"].get("framework", {}), **found.get("framework", {})}
            found = {**entry["set"], **found, "framework": whole}
    return found


def _sizes(row: PublishedRow) -> dict[str, int]:
    clients = row.integer("concurrency") or row.integer("batch_size")
    return {
        "clients": clients,
        "isl": row.integer("isl"),
        "osl": row.integer("osl"),
        "tp": row.integer("tp_size", 1),
        "replicas": row.integer("attention_dp_size", 1) or 1,
    }


def _fits(entry: dict[str, Any], row: PublishedRow, sizes: dict[str, int]) -> bool:
    """Whether an entry speaks of the row: wordings of its cells, sizes from and below bounds."""
    fits = all(re.search(wording, row.text(cell), re.I) for cell, wording in entry["rows"].items())
    fits = fits and all(sizes[name] >= least for name, least in entry.get("from", {}).items())
    return fits and all(sizes[name] < most for name, most in entry.get("below", {}).items())


def _sum(terms: int | dict[str, float], **sizes: int) -> int:
    """A size as given, or the sum of multiples of others (`plus`: a number of its own, `least`: no less)."""
    if isinstance(terms, int):
        return terms
    total = sum(factor * sizes.get(name, 1) for name, factor in terms.items() if name != "least")
    return max(round(total), round(terms.get("least", 0)))
