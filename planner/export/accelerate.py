"""Hugging Face accelerate's launch file: DDP or FSDP."""

from __future__ import annotations

from typing import Any

from planner.export.job import EXPORTERS, ExportJob

__all__ = ["accelerate"]


def _yaml(values: dict[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{key}:\n{_yaml(value, indent + '  ')}")
        elif isinstance(value, bool):
            lines.append(f"{indent}{key}: {str(value).lower()}\n")
        elif isinstance(value, str):
            lines.append(f"{indent}{key}: '{value}'\n")
        else:
            lines.append(f"{indent}{key}: {value}\n")
    return "".join(lines)


@EXPORTERS.register("accelerate")
def accelerate(job: ExportJob) -> dict[str, str]:
    """Processes, precision and, under ZeRO-3 (or 2), its FSDP section; the batch is the script's."""
    plan = job.plan
    job.refuse(
        "accelerate's launch file",
        (plan.pp > 1, "pipeline"),
        (
            plan.tp * plan.cp * plan.ep > 1 and plan.zero_stage < 2,
            "tensor, context or expert axis without FSDP",
        ),
        (plan.cp > 1 or plan.ep > 1, "context or expert axis"),
        (plan.zero_stage == 1, "ZeRO-1 (take deepspeed)"),
        (bool(plan.flags) and not job.offload, f"word for {'.'.join(plan.flags)}"),
        (job.offload not in ("", "zero-offload"), f"offload like {job.offload!r} (take deepspeed)"),
        (job.offload == "zero-offload" and plan.zero_stage < 2, "offload without FSDP (add zero3)"),
        (plan.recompute not in ("none", "full"), f"recomputation like {plan.recompute!r}"),
    )
    sharded = plan.zero_stage >= 2
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "FSDP" if sharded else ("MULTI_GPU" if plan.world_size > 1 else "NO"),
        "downcast_bf16": "no",
        "enable_cpu_affinity": False,
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": job.half or "no",
        "num_machines": job.nodes,
        "num_processes": plan.world_size,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
    }
    if sharded:
        shard = plan.dp_shard or plan.dp
        fsdp: dict[str, Any] = {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": plan.zero_stage == 3,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP" if job.block_class else "NO_WRAP",
            "fsdp_activation_checkpointing": plan.recompute == "full",
            "fsdp_offload_params": job.offload == "zero-offload",
            "fsdp_cpu_ram_efficient_loading": True,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        }
        if job.block_class:
            fsdp["fsdp_transformer_layer_cls_to_wrap"] = job.block_class
        config["fsdp_config"] = fsdp
        if plan.tp > 1 or shard < plan.dp:
            config["parallelism_config"] = {
                "parallelism_config_dp_replicate_size": plan.dp // shard,
                "parallelism_config_dp_shard_size": shard,
                "parallelism_config_tp_size": plan.tp,
            }
    return {"accelerate.yaml": _yaml(config)}
