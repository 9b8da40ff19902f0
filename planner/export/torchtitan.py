"""torchtitan: the sections of its TOML files, and the same as the command line's overrides."""

from __future__ import annotations

from planner.export.job import EXPORTERS, ExportJob

__all__ = ["torchtitan"]

_SCHEDULES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "pipedream-flush": "1F1B",
    "dapple": "1F1B",
    "interleaved": "Interleaved1F1B",
    "looped-bfs": "LoopedBFS",
    "zb-h1": "InterleavedZeroBubble",
    "zb-v": "ZBVZeroBubble",
    "dualpipe-v": "DualPipeV",
}
"""Our names -> torch.distributed.pipelining's, which torchtitan looks up."""


def _value(value: object) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else (f'"{value}"' if isinstance(value, str) else str(value))
    )


@EXPORTERS.register("torchtitan")
def torchtitan(job: ExportJob) -> dict[str, str]:
    """Parallelism, batch and activation checkpointing."""
    plan = job.plan
    job.refuse(
        "torchtitan",
        (plan.pp > 1 and plan.schedule not in _SCHEDULES, f"schedule {plan.schedule!r}"),
        (bool(plan.flags) and not job.offload, f"word for {'.'.join(plan.flags)}"),
        (job.offload not in ("", "zero-offload", "zero-infinity"), f"offload like {job.offload!r}"),
        (plan.zero_stage == 1, "ZeRO-1"),
        (plan.zero_stage == 2, "ZeRO-2 of its own (fsdp_reshard_after_forward=never is like it)"),
        (plan.recompute not in ("none", "selective", "full"), f"recomputation like {plan.recompute!r}"),
        (plan.ep > 1 and plan.expert_width not in (1, plan.tp), f"experts over {plan.expert_width} ranks"),
    )
    shard = (plan.dp_shard or plan.dp) if plan.zero_stage == 3 else 1
    parallelism: dict[str, object] = {
        "data_parallel_replicate_degree": plan.dp // shard,
        "data_parallel_shard_degree": shard,
        "tensor_parallel_degree": plan.tp,
        "pipeline_parallel_degree": plan.pp,
        "context_parallel_degree": plan.cp,
        "expert_parallel_degree": plan.ep,
    }
    if plan.ep > 1:
        parallelism["expert_tensor_parallel_degree"] = plan.expert_width
    if plan.pp > 1:
        name = _SCHEDULES[plan.schedule]
        parallelism["pipeline_parallel_schedule"] = (
            "Interleaved1F1B" if plan.vpp > 1 and name == "1F1B" else name
        )
        parallelism["pipeline_parallel_microbatch_size"] = plan.micro_batch_size
    if plan.vpp > 1 and job.n_blocks:
        parallelism["pipeline_parallel_layers_per_stage"] = -(-job.n_blocks // (plan.pp * plan.vpp))
    local = plan.global_batch_size // plan.dp if plan.pp > 1 else plan.micro_batch_size
    training: dict[str, object] = {"local_batch_size": local, "global_batch_size": plan.global_batch_size}
    if job.seq_len:
        training["seq_len"] = job.seq_len
    if job.offload:
        training["enable_cpu_offload"] = True
    sections = {"training": training, "parallelism": parallelism}
    sections["activation_checkpoint"] = {"mode": plan.recompute}
    toml = "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {_value(value)}\n" for key, value in section.items())
        for name, section in sections.items()
    )
    overrides = "\n".join(
        f"--{name}.{key} {value}" for name, section in sections.items() for key, value in section.items()
    )
    return {"torchtitan.toml": toml, "torchtitan.args": overrides + "\n"}
