"""Schedules without a flush: the order of 1F1B goes on over step boundaries.

The step simulates them over several windows and reports one window of the steady state.
"""

from __future__ import annotations

from costmodel.errors import PlanError
from costmodel.schedules.actions import Order, register_schedule
from costmodel.schedules.synchronous import one_f_one_b

__all__ = ["pipedream", "pipedream_2bw"]


def _one_chunk(name: str, n_chunks: int) -> None:
    if n_chunks != 1:
        raise PlanError(f"schedule {name} takes one stage per rank, got vpp={n_chunks}; use vpp1")


@register_schedule("pipedream", update_every="micro_batch")
def pipedream(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """PipeDream (SOSP 2019, section 3.2): 1F1B for ever, an update after every backward, p - stage versions
    of a stage's weights."""
    _one_chunk("pipedream", n_chunks)
    return one_f_one_b(n_ranks, 1, num_microbatches)


@register_schedule("pipedream-2bw", update_every="window")
def pipedream_2bw(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """PipeDream-2BW (arXiv 2006.09503, section 3.1): gradients of a window of micro-batches make one update;
    two versions of the weights."""
    _one_chunk("pipedream-2bw", n_chunks)
    return one_f_one_b(n_ranks, 1, num_microbatches)
