"""Schedules with chunks that loop over the ranks, stage = chunk x ranks + rank.

Interleaved 1F1B, its zero-bubble form with the backward split in two (ZB-H1 where there is one chunk), and
looped breadth-first.
"""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.errors import PlanError
from costmodel.schedules.actions import Order, Step, register_schedule

__all__ = ["interleaved", "looped_bfs", "zero_bubble"]


@dataclass(frozen=True, slots=True)
class _Rounds:
    """Which stage and micro-batch a rank's i-th pass works on: rounds of p micro-batches (all m where
    m < p), each round through all chunks before the next."""

    rank: int
    n_ranks: int
    n_chunks: int
    per_round: int

    def step(self, kind: str, i: int) -> Step:
        chunk = (i // self.per_round) % self.n_chunks
        if kind != "F":
            chunk = self.n_chunks - 1 - chunk
        in_round = i // (self.per_round * self.n_chunks) * self.per_round + i % self.per_round
        return Step(chunk * self.n_ranks + self.rank, kind, in_round)


def _per_round(name: str, n_ranks: int, num_microbatches: int) -> int:
    n_rounds = max(1, num_microbatches // n_ranks)
    if num_microbatches % n_rounds:
        raise PlanError(
            f"schedule {name}: micro-batches({num_microbatches}) % rounds({n_rounds}) != 0; "
            f"use a multiple of pp({n_ranks})"
        )
    return num_microbatches // n_rounds


@register_schedule("interleaved")
def interleaved(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """Interleaved 1F1B (arXiv 2104.04473, section 2.2, figure 4).

    Rank r warms up with (v - 1) p + 2 (p - 1 - r) forwards, then alternates, then drains.
    """
    p, v, m = n_ranks, n_chunks, num_microbatches
    per_round = _per_round("interleaved", p, m)
    total = m * v
    order: Order = []
    for rank in range(p):
        turn = _Rounds(rank, p, v, per_round).step
        warm_up = min((v - 1) * per_round + 2 * (p - 1 - rank), total)
        steps = [turn("F", i) for i in range(warm_up)]
        for i in range(total - warm_up):
            steps += [turn("F", warm_up + i), turn("B", i)]
        steps += [turn("B", i) for i in range(total - warm_up, total)]
        order.append(steps)
    return order


@register_schedule("zb-h1", "zbh1", "zb", "interleaved-zb", splits_backward=True)
def zero_bubble(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """ZB-H1 (arXiv 2401.10241, section 2.3.1, figure 3), and the same over several chunks per rank.

    Rank r warms up with (v - 1) p + (p - 1 - r) forwards; its weight gradients lag r passes behind the input
    gradients, which fills the drain.
    """
    p, v, m = n_ranks, n_chunks, num_microbatches
    per_round = _per_round("zb-h1", p, m)
    total = m * v
    order: Order = []
    for rank in range(p):
        turn = _Rounds(rank, p, v, per_round).step
        warm_up = min((v - 1) * per_round + (p - 1 - rank), total)
        steps = [turn("F", i) for i in range(warm_up)]
        for i in range(total):
            if warm_up + i < total:
                steps.append(turn("F", warm_up + i))
            steps.append(turn("I", i))
            if i >= rank:
                steps.append(turn("W", i - rank))
        steps += [turn("W", i) for i in range(max(0, total - rank), total)]
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
