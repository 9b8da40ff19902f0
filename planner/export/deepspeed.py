"""DeepSpeed's JSON configuration."""

from __future__ import annotations

import json
from typing import Any

from planner.export.job import EXPORTERS, ExportJob

__all__ = ["deepspeed"]

_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's default for ZeRO's buckets."""


@EXPORTERS.register("deepspeed")
def deepspeed(job: ExportJob) -> dict[str, str]:
    """Batch, ZeRO stage, offload, precision; pipeline stages for its PipelineModule. Experts by AutoEP, which
    takes those of transformers' models whole, up to ZeRO-2 (docs/code-docs/source/moe.rst)."""
    plan = job.plan
    offload = job.offload
    job.refuse(
        "DeepSpeed",
        (
            plan.pp > 1 and plan.schedule not in ("1f1b", "pipedream-flush", "dapple"),
            f"schedule {plan.schedule!r}",
        ),
        (plan.pp > 1 and plan.zero_stage > 1, "ZeRO-2 or 3 under a pipeline"),
        (plan.vpp > 1, "interleaved stages"),
        (bool(plan.flags) and not offload, f"word for {'.'.join(plan.flags)}"),
        (offload in ("cotrain", "cpu-update"), f"offload like {offload!r}"),
        (plan.recompute not in ("none", "full"), f"recomputation like {plan.recompute!r}"),
        (plan.cp > 1, "context axis of attention in rings (its sequence axis exchanges heads)"),
        (0 < plan.dp_shard < plan.dp, "ZeRO stage over part of the replicas, but in MiCS"),
        (plan.ep > 1 and plan.pp > 1, "expert axis under a pipeline"),
        (
            plan.ep > 1 and plan.expert_width > 1,
            f"experts over {plan.expert_width} ranks (take etp1)",
        ),
    )
    stage = plan.zero_stage
    zero: dict[str, Any] = {"stage": stage}
    if stage:
        zero |= {"overlap_comm": True, "reduce_bucket_size": _BUCKET_ELEMENTS, "contiguous_gradients": True}
    if offload:
        infinity = offload.startswith("zero-infinity")
        zero["stage"] = 3 if infinity else max(2, stage)
        device = "nvme" if offload.endswith("nvme") else "cpu"
        zero["offload_optimizer"] = {"device": device, "pin_memory": True}
        if device == "nvme":
            zero["offload_optimizer"]["nvme_path"] = "/local_nvme"
        if infinity:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, Any] = {
        "train_batch_size": plan.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.num_microbatches,
        "zero_optimization": zero,
    }
    if job.half:
        config[job.half] = {"enabled": True}
    if plan.ep > 1:
        job.refuse("DeepSpeed", (zero["stage"] > 2, "ZeRO-3 beside its expert axis"))
        config["expert_parallel"] = {"enabled": True, "autoep_size": plan.ep}
    if plan.tp > 1:
        config["tensor_parallel"] = {"autotp_size": plan.tp}
    if plan.pp > 1:
        config["pipeline"] = {
            "stages": plan.pp,
            "activation_checkpoint_interval": int(plan.recompute == "full"),
        }
    elif plan.recompute != "none":
        config["activation_checkpointing"] = {"number_checkpoints": job.n_blocks}
    return {"deepspeed.json": json.dumps(config, indent=2) + "\n"}
