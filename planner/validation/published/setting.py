"""From a row's wording to profiles: framework, hardware, links, plan."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import costmodel
from costmodel.errors import ForeshardError, PlanError
from costmodel.framework import FrameworkProfile, load_framework
from costmodel.hardware.device import weight_bytes
from costmodel.hardware.node_links import inter_link, intra_link, intra_names, usual_interfaces
from costmodel.hardware.schema import HardwareProfile
from costmodel.hardware.store import load_profile
from costmodel.models import resolve_config, with_adapters, with_fewer_predictions
from costmodel.plan import Plan
from costmodel.recompute import Recompute
from costmodel.schedules import SCHEDULES
from planner.validation.published.links import link_between
from planner.validation.published.model_map import RowModel, known_parameters, known_size
from planner.validation.published.rows import PublishedRow, says

__all__ = [
    "INFERENCE_TASKS",
    "counted_step_share",
    "heavier_plans",
    "in_rows_nodes",
    "overfull",
    "row_arguments",
    "row_framework",
    "row_hardware",
    "row_plan",
    "row_variant",
]

_DATA = Path(costmodel.__path__[0]) / "data" / "published" / "settings.json"
INFERENCE_TASKS = ("forward", "prefill", "decode")
"""Values of a row's `task` that are inference."""
_TRAINED_AS = {"fp32": "fp32", "tf32": "fp32", "fp16": "fp16"}
"""Type the model is traced in; everything else (bf16, fp8, fp4) keeps its activations in bf16."""


@lru_cache(maxsize=1)
def _settings() -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(_DATA.read_text())
    return settings


def row_framework(row: PublishedRow) -> FrameworkProfile:
    """The framework profile of the row, in the row's precision and with its attention kernels."""
    wording = row.text("framework")
    profile = _framework_entry(row)
    base = load_framework(profile["framework"])
    dtype = _TRAINED_AS.get(row.text("dtype", "fp16"), "bf16")
    changes: dict[str, Any] = {**profile.get("with", {}), "compute_dtype": dtype}
    if row.text("dtype") == "tf32":
        changes["fp32_products"] = "tf32"
    changes["half_products"] = _settings()["narrow"].get(row.text("dtype"), "same")
    if row.text("task") in INFERENCE_TASKS and changes["half_products"] != "same":
        changes["parameter_bytes"] = weight_bytes(changes["half_products"])
    if dtype == "fp32":
        changes |= {"parameter_bytes": 4.0, "gradient_bytes": 4.0, "optimizer_state_bytes": 8.0}
        changes |= {"gradient_comm_bytes": 4.0, "parameter_comm_bytes": 4.0}
    for entry in _settings()["cache"]:
        if re.search(entry["match"], row.text("notes"), re.I):
            changes["cache_dtype"] = entry["cache_dtype"]
    for entry in _settings()["state"]:
        if re.search(entry["match"], wording, re.I) and dtype == entry["dtype"] and _zero_stage(row):
            changes |= entry["changes"]
    for entry in _settings()["loss"]:
        if re.search(entry["match"], row.text("notes"), re.I):
            changes["loss_copy_bytes"] = entry["loss_copy_bytes"]
    flash = row.flag("flash_attention")
    if flash is not None:
        changes["attention"] = "flash" if flash else "unfused"
    said = (e for e in _settings()["attention"] if re.search(e["match"], row.text("notes"), re.I))
    if not flash and (entry := next(said, None)):
        changes["attention"] = entry["attention"]
    for entry in _settings()["changes"]:
        if says(row, entry["where"]):
            changes |= entry.get("framework", {})
    return base.model_copy(update=changes)


def _framework_entry(row: PublishedRow) -> dict[str, Any]:
    """The profile of the row's framework by name, and `with` what of it is otherwise in such rows."""
    found: dict[str, Any] = next(f for f in _settings()["frameworks"] if _means(row, f))
    return found


def _framework_name(row: PublishedRow) -> str:
    return str(_framework_entry(row)["framework"])


def _means(row: PublishedRow, entry: dict[str, Any]) -> bool:
    where = dict(entry.get("where", {}))
    if "match" in entry:
        where["framework"] = entry["match"]
    return says(row, where)


@lru_cache(maxsize=64)
def _profile(name: str) -> HardwareProfile:
    return load_profile(name)


def row_hardware(row: PublishedRow) -> HardwareProfile:
    """The shipped profile of the row's GPU in its nodes. Raises ProfileError where there is none."""
    return _in_nodes(_gpu(row), row_variant(row), _row_node(row))


def in_rows_nodes(profile: HardwareProfile, row: PublishedRow) -> HardwareProfile:
    """The profile with the row's links (nominal where its own nodes do not have them) and GPUs per node."""
    return _with_nodes(profile, row_variant(row), _row_node(row))


def _gpu(row: PublishedRow) -> str:
    name = row.text("gpu")
    return str(_settings()["unknown_gpu"]["gpu"]) if name in ("", "unknown") else name


def row_variant(row: PublishedRow) -> str | None:
    """The links inside and between nodes that the row's wording means ("pcie4-host+infiniband-1x100g", or
    one of both); None for its profile's defaults.

    Wordings speak of nodes of 8 or 16 GPUs; racks that are one node keep their own links.
    """
    network = _profile(_gpu(row)).network
    if network is None or network.ranks_per_node > _settings()["largest_node"]:
        return None
    wording = row.text("inter_node_link")
    inside = (e["link"] for e in _settings()["intra_links"] if says(row, e["where"]))
    between = link_between(wording, row.integer("gpus_per_node") or network.ranks_per_node)
    if between is None and (ranks := _row_node(row)) is not None:
        between = usual_interfaces(network, ranks)
    links = [link for link in (next(inside, None), between) if link is not None]
    return "+".join(links) or None


def _row_node(row: PublishedRow) -> int | None:
    """GPUs of the row's nodes; None where its GPU's usual nodes place its ranks alike, and in racks."""
    network = _profile(_gpu(row)).network
    said, n_gpus = row.integer("gpus_per_node"), row.integer("n_gpus", 1)
    if network is None or not said or network.ranks_per_node > _settings()["largest_node"]:
        return None
    return said if said != network.ranks_per_node and n_gpus > min(said, network.ranks_per_node) else None


@lru_cache(maxsize=64)
def _in_nodes(name: str, variant: str | None, ranks_per_node: int | None) -> HardwareProfile:
    return _with_nodes(_profile(name), variant, ranks_per_node)


def _with_nodes(profile: HardwareProfile, variant: str | None, ranks_per_node: int | None) -> HardwareProfile:
    network = profile.network
    if network is None:
        return profile
    intra, inter = network.intra, network.inter
    known = {link.name for link in (*intra, *inter)}
    for part in variant.split("+") if variant else ():
        if part in known:
            continue
        if part in intra_names():
            intra = (*intra, intra_link(part))
        else:
            inter = (*inter, inter_link(part))
    ranks = ranks_per_node or network.ranks_per_node
    if (intra, inter, ranks) == (network.intra, network.inter, network.ranks_per_node):
        return profile
    changed = network.model_copy(update={"intra": intra, "inter": inter, "ranks_per_node": ranks})
    return profile.model_copy(update={"network": changed})


def row_arguments(row: PublishedRow, model: RowModel) -> tuple[str, Callable[[], dict[str, Any]]]:
    """A key that is equal where all of a forecaster is, and a function of what it is made with.

    Raises what the profile raises; the function raises what the model raises.
    """
    profile, framework = row_hardware(row), row_framework(row)
    variant = row_variant(row)
    shape = [dict(model.config), model.seq_len, model.target_len, model.head, model.predicted_share]
    shape += [model.adapted, model.adapter_rank]
    task = "train" if row.text("task") == "train" else "infer"  # only training has a loss
    key = json.dumps([*shape, profile.name, framework.model_dump(), variant, _row_node(row), task])
    arguments = partial(_arguments, row.text("model_name"), model, profile, framework, variant, task)
    said = (
        e["optimizer"] for e in _settings()["optimizer"] if re.search(e["match"], row.text("notes"), re.I)
    )
    if row.text("task") != "train" or not (optimizer := next(said, None)):
        return key, arguments
    return f"{key} {optimizer}", lambda: {**arguments(), "optimizer": optimizer}


def _arguments(
    name: str,
    model: RowModel,
    profile: HardwareProfile,
    framework: FrameworkProfile,
    variant: str | None,
    task: str,
) -> dict[str, Any]:
    source = resolve_config(
        model.config, name=name, seq_len=model.seq_len or None, target_len=model.target_len, task=task
    )
    if model.head:
        source = with_fewer_predictions(source, model.head, model.predicted_share)
    if model.adapter_rank:
        source = with_adapters(source, model.adapted, model.adapter_rank)
    return {
        "source": source,
        "profile": profile,
        "framework": framework,
        "network_variant": variant,
    }


def _said_batch(row: PublishedRow) -> int:
    """The batch of each GPU that the source's notes name, 0 where they name none."""
    found = (re.search(e["match"], row.text("notes"), re.I) for e in _settings()["batch_per_gpu"])
    return next((int(match[1]) for match in found if match), 0)


def _said_shard(row: PublishedRow, dp: int) -> int:
    """Replicas that divide the optimizer's state, where the notes say that copies of it are kept; else 0."""
    found = (re.search(e["match"], row.text("notes"), re.I) for e in _settings()["optimizer_copies"])
    copies = next((int(match[1]) for match in found if match), 1)
    return dp // copies if copies > 1 and dp % copies == 0 and _zero_stage(row) else 0


def _unsaid(row: PublishedRow) -> dict[str, Any]:
    """What the plan is where the row does not say it."""
    found: dict[str, Any] = {}
    for entry in _settings()["changes"]:
        if says(row, entry["where"]):
            found |= entry.get("plan", {})
    return found


def _corrected(row: PublishedRow) -> dict[str, Any]:
    """What the plan was, by the row's own times, where the table says otherwise."""
    found: dict[str, Any] = {}
    for entry in _settings()["corrections"]:
        if says(row, entry["where"]):
            found |= entry["plan"]
    return found


def _zero_stage(row: PublishedRow) -> int:
    """The row's ZeRO stage, or what its scripts set."""
    if row.number("zero_stage") is not None:
        return row.integer("zero_stage")
    unsaid = _unsaid(row).get("zero_stage")
    return int(unsaid) if unsaid is not None else 3 * _must_shard(row)


def _device_bytes(row: PublishedRow) -> float:
    """Memory of the row's GPU; infinite where no profile is of it, which `row_hardware` says."""
    try:
        return _profile(_gpu(row)).device.memory_bytes
    except ForeshardError:
        return math.inf


def _must_shard(row: PublishedRow) -> bool:
    """Whether replicas could not have held the model's state each, and nothing but replicas divides it."""
    told = _settings()["unsaid_split"]
    divided = any(row.integer(name, 1) > 1 for name in ("tp", "pp", "cp"))
    if (
        row.text("task") != "train"
        or divided
        or row.integer("n_gpus") < 2
        or row.text("model_family") == "moe"
    ):
        return False
    if _framework_name(row) in told["frameworks"]:
        return False
    return bool(known_parameters(row) * told["bytes_per_parameter"] > _device_bytes(row))


def counted_step_share(row: PublishedRow, global_batch_size: int) -> float:
    """Steps that were run for each one that the source divides by: below 1 where its data ended before."""
    entry = next((e for e in _settings()["counted_steps"] if says(row, e["where"])), None)
    if entry is None:
        return 1.0
    return min(1.0, float(entry["samples"]) / (float(entry["steps"]) * global_batch_size))


def row_plan(row: PublishedRow) -> Plan | str:
    """The row's plan, or why it has none. Degrees the source leaves out are 1; dp is what remains."""
    n = row.integer("n_gpus", 1)
    tp, pp, cp = (row.integer(name, 1) or 1 for name in ("tp", "pp", "cp"))
    if _names_no_degree(row):
        tp, pp = _split(row, n)
    dp = row.integer("dp") or max(1, n // (tp * pp * cp))
    if cp > 1 and dp % cp == 0 and dp * tp * pp == n:
        dp //= cp  # ranks of a sequence counted as replicas
    mbs = row.integer("micro_batch")
    if not mbs and not row.integer("global_batch"):
        mbs = _said_batch(row)
    unsaid: dict[str, Any] = {
        "sequence_parallel": bool(row.flag("sequence_parallel")),
        "recompute": "none",
    } | _unsaid(row)
    filled = _settings()["unknown_batch"]["micro_batches_per_stage"] * pp if pp > 1 else 1
    filled = int(unsaid.get("num_microbatches", filled))
    gbs = row.integer("global_batch") or mbs * dp * filled
    if not gbs:
        return "the source does not say the batch"
    if gbs < dp and dp % gbs == 0 and _splits_sequences(row):
        dp, cp = gbs, cp * dp // gbs
    if not mbs:  # a row that says all three contradicts itself where they do not divide
        mbs = 1 if pp > 1 else _micro_batch(row, max(1, gbs // dp))
        gbs = _divided(gbs, dp * mbs)
    recompute = _corrected(row).get("recompute") or row.text("recompute") or unsaid["recompute"]
    zero_stage = _zero_stage(row)
    schedule, vpp = _schedule(row, pp)
    try:
        return Plan(
            dp=dp,
            tp=tp,
            pp=pp,
            vpp=vpp,
            cp=cp,
            ep=(row.integer("ep", 1) or 1) if row.text("model_family") == "moe" else 1,
            micro_batch_size=mbs,
            global_batch_size=gbs,
            schedule=schedule,
            zero_stage=zero_stage,
            dp_shard=(_shard_group(row, dp) if zero_stage else 0) or _said_shard(row, dp),
            expert_tp=_expert_tp(row, tp=tp),
            sequence_parallel=unsaid["sequence_parallel"] and tp > 1,
            recompute=recompute if Recompute.is_one(recompute) else "none",
        )
    except PlanError as error:
        return str(error)


def heavier_plans(row: PublishedRow, plan: Plan) -> Iterator[Plan]:
    """What the plan may have been where the row does not say what it recomputes, lightest first."""
    told = _settings()["unsaid_recompute"]
    if says(row, told["where"]) and plan.recompute == "none" and _framework_name(row) in told["frameworks"]:
        yield from (plan.with_(recompute=policy) for policy in told["try"])


def overfull(memory_bytes: float, device_bytes: float) -> bool:
    """Whether a forecast of memory is so far over the device's that the run cannot have been that."""
    return memory_bytes > float(_settings()["unsaid_recompute"]["margin"]) * device_bytes


def _splits_sequences(row: PublishedRow) -> bool:
    """Whether the row's words say that ranks share sequences, and its columns not how many."""
    match = _settings()["split_sequences"]["match"]
    return not row.integer("cp") and any(
        re.search(match, row.text(column), re.I) for column in ("framework", "notes")
    )


def _names_no_degree(row: PublishedRow) -> bool:
    """Whether a training row of several GPUs, of a framework that splits models, leaves its split open."""
    if _framework_name(row) not in _settings()["unsaid_split"]["frameworks"]:
        return False
    several = row.text("task") == "train" and row.integer("n_gpus") > 1 and _zero_stage(row) < 3
    return several and not any(row.text(name) for name in ("dp", "tp", "pp", "cp", "ep"))


def _split(row: PublishedRow, n: int) -> tuple[int, int]:
    """Degrees of tensor and pipeline parallelism at which a copy of the model's state fits; (1, 1) where it
    fits undivided, where the row does not say its size and where nothing fits."""
    told, layers = _settings()["unsaid_split"], known_size(row, "layers")
    room = told["memory_share"] * _device_bytes(row)
    parts = known_parameters(row) * told["bytes_per_parameter"] / room
    tensor = [tp for tp in (1, 2, 4, 8) if tp <= told["tensor"] and n % tp == 0]
    stages = [pp for pp in range(2, layers + 1) if layers % pp == 0 and n % (tensor[-1] * pp) == 0]
    ways = [*((tp, 1) for tp in tensor), *((tensor[-1], pp) for pp in stages)]
    return next(((tp, pp) for tp, pp in ways if tp * pp >= parts), (1, 1))


def _micro_batch(row: PublishedRow, share: int) -> int:
    """The micro-batch where the row does not say it, of a replica's share of the batch."""
    if share <= 8:
        return share
    if row.text("task") != "train" or not row.integer("n_gpus"):
        return 1
    told, seq_len = _settings()["unknown_batch"], known_size(row, "seq_len")
    most = float(told["images"])
    if seq_len:
        parameters = known_parameters(row) or told["usual_parameters"]
        most = told["tokens"] * min(1.0, told["parameters"] / parameters) / seq_len
    return max(part for part in range(1, min(share, max(1, int(most))) + 1) if share % part == 0)


def _divided(gbs: int, per_pass: int) -> int:
    """The batch, or the nearest one that the replicas divide where that is near."""
    nearest = max(1, round(gbs / per_pass)) * per_pass
    return nearest if abs(nearest - gbs) <= _settings()["batch_rounding"]["fraction"] * gbs else gbs


def _shard_group(row: PublishedRow, dp: int) -> int:
    """Ranks that share what ZeRO shards, where the notes name fewer than all; else 0."""
    for entry in _settings()["shard_group"]:
        if match := re.search(entry["match"], row.text("notes")):
            shard = int(next(group for group in match.groups() if group))
            return shard if shard and dp % shard == 0 else 0
    return 0


def _expert_tp(row: PublishedRow, *, tp: int) -> int:
    """Ranks that each expert is split over, where the notes or the framework's recipes say and expert
    parallelism takes all ranks of a replica; else 0."""
    ep = row.integer("ep", 1) or 1
    if tp == 1 or ep == 1 or row.text("model_family") != "moe":
        return 0
    told = _settings()["expert_tp"]
    said = (re.search(e["match"], row.text("notes"), re.I) for e in told if "match" in e)
    width = next((int(next(filter(None, match.groups()))) for match in said if match), 0)
    width = width or next((int(e["width"]) for e in told if "where" in e and says(row, e["where"])), 0)
    return width if ep * width % tp == 0 else 0


def _schedule(row: PublishedRow, pp: int) -> tuple[str, int]:
    """The pipeline's schedule and chunks per rank."""
    said, vpp = row.text("pipeline_schedule"), row.integer("vpp", 1) or 1
    if pp == 1:
        return "1f1b", 1
    if row.text("vpp") == "max":
        vpp = known_size(row, "layers") // pp or 1
    if said not in SCHEDULES or (said == "1f1b" and vpp > 1):
        said = "interleaved" if vpp > 1 else "1f1b"
    chunks = _settings()["chunks"]
    if said in chunks["schedules"] and vpp == 1:
        vpp = int(chunks["vpp"])
    return said, vpp
