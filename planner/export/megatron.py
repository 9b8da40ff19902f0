"""Megatron-LM (core) arguments, as a file for `torchrun pretrain_gpt.py $(cat megatron.args)`."""

from __future__ import annotations

from planner.export.job import EXPORTERS, ExportJob

__all__ = ["megatron"]

_SCHEDULES = ("1f1b", "pipedream-flush", "dapple", "interleaved")


@EXPORTERS.register("megatron")
def megatron(job: ExportJob) -> dict[str, str]:
    """Degrees, batch, recomputation and the distributed optimizer; the model's own sizes are the script's."""
    plan = job.plan
    job.refuse(
        "Megatron-LM",
        (plan.schedule not in _SCHEDULES and plan.pp > 1, f"schedule {plan.schedule!r}"),
        (bool(plan.flags) and not job.offload, f"word for {'.'.join(plan.flags)}"),
        (job.offload not in ("", "zero-offload"), f"offload like {job.offload!r}"),
        (plan.zero_stage == 2, "ZeRO-2 (its distributed optimizer is ZeRO-1, its FSDP ZeRO-3)"),
        (plan.recompute not in ("none", "selective", "full"), f"recomputation like {plan.recompute!r}"),
    )
    arguments = {
        "--tensor-model-parallel-size": plan.tp,
        "--pipeline-model-parallel-size": plan.pp,
        "--context-parallel-size": plan.cp,
        "--expert-model-parallel-size": plan.ep,
        "--micro-batch-size": plan.micro_batch_size,
        "--global-batch-size": plan.global_batch_size,
    }
    if plan.expert_width < plan.tp:  # Megatron-Core's default is tp
        arguments["--expert-tensor-parallel-size"] = plan.expert_width
    if job.seq_len:
        arguments["--seq-length"] = job.seq_len
    lines = [f"{name} {value}" for name, value in arguments.items()]
    if plan.vpp > 1:
        lines.append(f"--num-virtual-stages-per-pipeline-rank {plan.vpp}")
    if plan.sequence_parallel:
        lines.append("--sequence-parallel")
    if plan.zero_stage == 1:
        lines += ["--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"]
    if plan.zero_stage == 3:
        lines += ["--use-megatron-fsdp", "--data-parallel-sharding-strategy optim_grads_params"]
    if job.offload:
        lines += ["--optimizer-cpu-offload"]
    if plan.recompute == "selective":
        lines.append("--recompute-granularity selective")
    elif plan.recompute == "full":
        lines += ["--recompute-granularity full", "--recompute-method uniform", "--recompute-num-layers 1"]
    if job.half:
        lines.append(f"--{job.half}")
    return {"megatron.args": "\n".join(lines) + "\n"}
