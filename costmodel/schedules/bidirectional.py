"""Chimera: two pipelines in opposite directions over the same ranks, each stage held twice."""

from __future__ import annotations

from costmodel.errors import PlanError
from costmodel.schedules.actions import Order, Step, register_schedule

__all__ = ["chimera"]


@register_schedule("chimera", copies=2)
def chimera(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """Chimera with one pair of pipelines (SC 2021, section 3.1 and figure 3).

    Rank r runs stage r of the pipeline that goes down and stage p - 1 - r of the one that goes up; in each
    unit of p micro-batches half go either way. In slots as long as a forward or a backward, forward i of a
    direction is at s + 2 i and its backward at 2 p - 1 - s + 2 i on stage s; units follow every 2 p slots.
    No slot is taken twice, since s and p - 1 - s differ in parity for even p.
    """
    p, m = n_ranks, num_microbatches
    if n_chunks != 1:
        raise PlanError(f"schedule chimera takes one stage per rank and direction, got vpp={n_chunks}")
    if p % 2 or m % 2:
        raise PlanError(
            f"schedule chimera: pp({p}) and micro-batches({m}) must be even, one half for each direction"
        )
    slots: list[list[tuple[int, Step]]] = [[] for _ in range(p)]
    for unit in range(0, m, p):
        half = min(p, m - unit) // 2
        for way in range(2):
            for i in range(half):
                micro_batch = unit + way * half + i
                start = 2 * unit + 2 * i
                for stage in range(p):
                    rank = stage if way == 0 else p - 1 - stage
                    slots[rank].append((start + stage, Step(stage, "F", micro_batch)))
                    slots[rank].append((start + 2 * p - 1 - stage, Step(stage, "B", micro_batch)))
    return [[step for _, step in sorted(row)] for row in slots]
