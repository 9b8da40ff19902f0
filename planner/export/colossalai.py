"""Colossal-AI: the arguments of its HybridParallelPlugin."""

from __future__ import annotations

import json
from typing import Any

from planner.export.job import EXPORTERS, ExportJob

__all__ = ["colossalai"]

_STYLES = {
    "1f1b": "1f1b",
    "pipedream-flush": "1f1b",
    "dapple": "1f1b",
    "interleaved": "interleaved",
    "zb-v": "zbv",
}


@EXPORTERS.register("colossalai")
def colossalai(job: ExportJob) -> dict[str, str]:
    """As JSON: `HybridParallelPlugin(**json.load(open("colossalai.json")))`."""
    plan = job.plan
    job.refuse(
        "Colossal-AI's hybrid plugin",
        (plan.pp > 1 and plan.schedule not in _STYLES, f"schedule {plan.schedule!r}"),
        (plan.ep > 1 or plan.cp > 1, "expert axis (its MoE plugin has one), nor a context axis"),
        (plan.zero_stage == 3, "ZeRO-3 (take its Gemini plugin)"),
        (plan.pp > 1 and plan.zero_stage > 1, "ZeRO-2 under a pipeline"),
        (bool(plan.flags) and not job.offload, f"word for {'.'.join(plan.flags)}"),
        (job.offload not in ("", "zero-offload"), f"offload like {job.offload!r}"),
        (plan.recompute not in ("none",), "recomputation in its arguments (it is switched on at the model)"),
    )
    arguments: dict[str, Any] = {
        "tp_size": plan.tp,
        "pp_size": plan.pp,
        "zero_stage": plan.zero_stage,
        "precision": job.half or "fp32",
        "microbatch_size": plan.micro_batch_size,
        "num_microbatches": plan.num_microbatches,
        "cpu_offload": bool(job.offload),
    }
    if plan.sequence_parallel:
        arguments |= {"enable_sequence_parallelism": True, "sequence_parallelism_mode": "split_gather"}
    if plan.pp > 1:
        interleaved = plan.vpp > 1 and plan.schedule == "1f1b"
        arguments["pp_style"] = "interleaved" if interleaved else _STYLES[plan.schedule]
        arguments["num_model_chunks"] = plan.vpp
    return {"colossalai.json": json.dumps(arguments, indent=2) + "\n"}
