"""Pipeline schedules of torch.distributed.pipelining by the names that plans use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from costmodel.errors import PlanError

if TYPE_CHECKING:
    import torch
    from torch.distributed.pipelining.stage import PipelineStage

    from costmodel.plan import Plan

__all__ = ["SCHEDULE_CLASSES", "make_schedule", "schedule_class", "stages_of_rank"]

SCHEDULE_CLASSES: dict[tuple[str, bool], str] = {
    ("gpipe", False): "ScheduleGPipe",
    ("1f1b", False): "Schedule1F1B",
    ("gpipe", True): "ScheduleLoopedBFS",
    ("1f1b", True): "ScheduleInterleaved1F1B",
    ("interleaved", True): "ScheduleInterleaved1F1B",
    ("zb", False): "ScheduleInterleavedZeroBubble",
    ("zb", True): "ScheduleInterleavedZeroBubble",
    ("zbh1", False): "ScheduleInterleavedZeroBubble",
    ("zbv", True): "ScheduleZBVZeroBubble",
    ("dualpipev", True): "ScheduleDualPipeV",
}
"""(schedule of the plan, vpp > 1) -> torch's class."""

_V_SHAPED = ("ScheduleZBVZeroBubble", "ScheduleDualPipeV")


def schedule_class(plan: Plan) -> str:
    """Name of torch's class for the plan. Raises PlanError where torch has none."""
    try:
        return SCHEDULE_CLASSES[plan.schedule, plan.vpp > 1]
    except KeyError:
        known = ", ".join(f"{name}{' (vpp > 1)' if many else ''}" for name, many in SCHEDULE_CLASSES)
        raise PlanError(
            f"schedule {plan.schedule!r} with vpp({plan.vpp}) has no torch class to run; there are: {known}"
        ) from None


def stages_of_rank(plan: Plan, pp_rank: int) -> tuple[int, ...]:
    """Stage indices that a pipeline rank holds: in a loop, or in a V (rank r: r and 2 pp - 1 - r)."""
    if schedule_class(plan) in _V_SHAPED:
        if plan.vpp != 2:
            raise PlanError(f"schedule {plan.schedule!r} needs vpp2, got vpp({plan.vpp})")
        return pp_rank, 2 * plan.pp - 1 - pp_rank
    return tuple(pp_rank + i * plan.pp for i in range(plan.vpp))


def make_schedule(plan: Plan, stages: Sequence[PipelineStage]) -> Any:
    """torch's schedule over this rank's stages.

    The last stage's output is the micro-batch's loss; it is divided by the number of micro-batches here,
    which spares the pass over all gradients that `scale_grads` would make.
    """
    from torch.distributed import pipelining
    from torch.distributed.pipelining import schedules

    m = plan.num_microbatches

    def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return output / m

    name = schedule_class(plan)
    kind = getattr(pipelining, name, None) or getattr(schedules, name)
    single = issubclass(kind, schedules.PipelineScheduleSingle)
    return kind(stages[0] if single else list(stages), m, loss_fn=loss_fn, scale_grads=False)
