"""Harmony: packs of layers wrap around the ranks and live on the host until they compute."""

from __future__ import annotations

from costmodel.schedules.actions import Order, Step, register_schedule

__all__ = ["harmony"]


@register_schedule("harmony", swaps=True)
def harmony(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """Harmony's wrap-around pipeline (VLDB 2022, section 4): pack k runs on rank k mod p.

    All micro-batches pass a pack while its weights are on the device (input-batch grouping), and a pack is
    updated right after its last backward (just-in-time update), so weights move three times a step.
    """
    p, v, m = n_ranks, n_chunks, num_microbatches
    return [
        [Step(c * p + rank, "F", i) for c in range(v) for i in range(m)]
        + [Step(c * p + rank, "B", i) for c in reversed(range(v)) for i in range(m)]
        for rank in range(p)
    ]
