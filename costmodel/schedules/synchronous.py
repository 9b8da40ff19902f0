"""Schedules that flush each step, one stage per rank: GPipe, 1F1B and those that share its order.

With several chunks per rank GPipe is looped breadth-first and 1F1B is interleaved.
"""

from __future__ import annotations

from costmodel.errors import PlanError
from costmodel.schedules.actions import Order, Step, register_schedule
from costmodel.schedules.interleaved import interleaved, looped_bfs

__all__ = ["dapple_b", "early_backward", "gpipe", "hippie", "message_driven", "one_f_one_b"]


@register_schedule("gpipe")
def gpipe(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """All forwards, then all backwards (arXiv 1811.06965, figure 2c)."""
    if n_chunks > 1:
        return looped_bfs(n_ranks, n_chunks, num_microbatches)
    return [
        [Step(rank, "F", m) for m in range(num_microbatches)]
        + [Step(rank, "B", m) for m in range(num_microbatches)]
        for rank in range(n_ranks)
    ]


@register_schedule("1f1b", "pipedream-flush", "dapple")
def one_f_one_b(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """Rank r runs p - 1 - r forwards ahead, then alternates, then drains (arXiv 2006.09503, figure 2b;
    DAPPLE's early backward with its warm-up policy A, PPoPP 2021 section 3.2)."""
    if n_chunks > 1:
        return interleaved(n_ranks, n_chunks, num_microbatches)
    return early_backward(num_microbatches, [n_ranks - 1 - rank for rank in range(n_ranks)])


@register_schedule("hippie", overlap_dp=True)
def hippie(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """Last-stage scheduling (ICPP 2021): the last stage turns each micro-batch round at once, as in 1F1B;
    gradients are reduced and stages updated as soon as their own last backward ends, inside the bubble."""
    return one_f_one_b(n_ranks, n_chunks, num_microbatches)


@register_schedule("axonn", overlap_p2p=True)
def message_driven(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """AxoNN's message-driven schedule (arXiv 2110.13005, section 4): 1F1B's order with at most p
    micro-batches in flight; every transfer is asynchronous and runs beside the computation."""
    return one_f_one_b(n_ranks, n_chunks, num_microbatches)


@register_schedule("dapple-b")
def dapple_b(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """DAPPLE's warm-up policy B: 2 (p - stage) - 1 micro-batches in flight, which hides transfers that take
    about as long as a stage (PPoPP 2021, section 3.2)."""
    if n_chunks != 1:
        raise PlanError(f"schedule dapple-b takes one stage per rank, got vpp={n_chunks}; use interleaved")
    return early_backward(num_microbatches, [2 * (n_ranks - 1 - rank) for rank in range(n_ranks)])


def early_backward(num_microbatches: int, ahead: list[int]) -> Order:
    """One forward, one backward on each rank (= stage), `ahead[rank]` forwards before the first."""
    order: Order = []
    for rank, most in enumerate(ahead):
        early = min(most, num_microbatches)
        steps = [Step(rank, "F", m) for m in range(early)]
        for m in range(num_microbatches - early):
            steps += [Step(rank, "F", early + m), Step(rank, "B", m)]
        steps += [Step(rank, "B", m) for m in range(num_microbatches - early, num_microbatches)]
        order.append(steps)
    return order
