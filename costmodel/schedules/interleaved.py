"""Schedules with several chunks per rank, stage = chunk x ranks + rank: interleaved 1F1B and looped BFS."""

from __future__ import annotations

from costmodel.errors import PlanError
from costmodel.schedules.actions import Order, Step, register_schedule

__all__ = ["interleaved", "looped_bfs"]


@register_schedule("interleaved")
def interleaved(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """Interleaved 1F1B (arXiv 2104.04473, section 2.2, figure 4).

    Micro-batches go in rounds of p (or all m where m < p); rank r warms up with
    (v - 1) p + 2 (p - r - 1) forwards, as torch's ScheduleInterleaved1F1B does.
    """
    p, v, m = n_ranks, n_chunks, num_microbatches
    n_rounds = max(1, m // p)
    if m % n_rounds:
        raise PlanError(
            f"schedule interleaved: micro-batches({m}) % rounds({n_rounds}) != 0; use a multiple of pp({p})"
        )
    per_round = m // n_rounds
    total = m * v
    order: Order = []
    for rank in range(p):
        warm_up = min((v - 1) * per_round + 2 * (p - 1 - rank), total)

        def forward(i: int, rank: int = rank) -> Step:
            chunk = (i // per_round) % v
            return Step(chunk * p + rank, "F", i // (per_round * v) * per_round + i % per_round)

        def backward(i: int, rank: int = rank) -> Step:
            chunk = v - 1 - (i // per_round) % v
            return Step(chunk * p + rank, "B", i // (per_round * v) * per_round + i % per_round)

        steps = [forward(i) for i in range(warm_up)]
        for i in range(total - warm_up):
            steps += [forward(warm_up + i), backward(i)]
        steps += [backward(i) for i in range(total - warm_up, total)]
        order.append(steps)
    return order


@register_schedule("looped-bfs")
def looped_bfs(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """Breadth first: every micro-batch through a chunk before the next chunk (arXiv 2211.05953, figure 4);
    backward in reverse."""
    p, v, m = n_ranks, n_chunks, num_microbatches
    return [
        [Step(c * p + rank, "F", i) for c in range(v) for i in range(m)]
        + [Step(c * p + rank, "B", i) for c in reversed(range(v)) for i in reversed(range(m))]
        for rank in range(p)
    ]
