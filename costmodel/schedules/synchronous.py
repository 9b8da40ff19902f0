"""Schedules that flush each step, one stage per rank: GPipe and 1F1B."""

from __future__ import annotations

from costmodel.errors import PlanError
from costmodel.schedules.actions import Order, Step, register_schedule

__all__ = ["gpipe", "one_f_one_b"]


def _one_chunk(name: str, n_chunks: int) -> None:
    if n_chunks != 1:
        raise PlanError(f"schedule {name} takes one stage per rank, got vpp={n_chunks}; use interleaved")


@register_schedule("gpipe")
def gpipe(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """All forwards, then all backwards (arXiv 1811.06965, figure 2c)."""
    _one_chunk("gpipe", n_chunks)
    return [
        [Step(rank, "F", m) for m in range(num_microbatches)]
        + [Step(rank, "B", m) for m in range(num_microbatches)]
        for rank in range(n_ranks)
    ]


@register_schedule("1f1b", "pipedream-flush", "dapple")
def one_f_one_b(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """Rank r runs p - 1 - r forwards ahead, then alternates, then drains (arXiv 2006.09503, figure 2b;
    DAPPLE's early backward, PPoPP 2021 section 3)."""
    _one_chunk("1f1b", n_chunks)
    order: Order = []
    for rank in range(n_ranks):
        ahead = min(n_ranks - 1 - rank, num_microbatches)
        steps = [Step(rank, "F", m) for m in range(ahead)]
        for m in range(num_microbatches - ahead):
            steps += [Step(rank, "F", ahead + m), Step(rank, "B", m)]
        steps += [Step(rank, "B", m) for m in range(num_microbatches - ahead, num_microbatches)]
        order.append(steps)
    return order
