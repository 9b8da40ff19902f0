"""Schedules whose two chunks per rank form a V: rank r holds stages r and 2p - 1 - r.

The last stage lies beside the first, so the turn from forward to backward needs no transfer.
"""

from __future__ import annotations

from collections import Counter, deque

from costmodel.errors import PlanError
from costmodel.schedules.actions import Order, Step, register_schedule

__all__ = ["dualpipe_v", "zb_v"]


class _Rank:
    """The actions of one rank as they are listed; micro-batches of a stage and kind count up."""

    def __init__(self, rank: int, n_ranks: int) -> None:
        self.stages = (rank, 2 * n_ranks - 1 - rank)
        self.steps: list[Step] = []
        self._next: Counter[tuple[int, str]] = Counter()
        self._owed: deque[tuple[int, int]] = deque()

    def add(self, kind: str, chunk: int, *, joined: bool = False) -> None:
        """List the next F, B, I or W of a chunk. An I leaves a weight gradient owed."""
        counted = "I" if kind == "B" else kind
        micro_batch = self._next[chunk, counted]
        self._next[chunk, counted] += 1
        self.steps.append(Step(self.stages[chunk], kind, micro_batch, joined))
        if kind == "I":
            self._owed.append((chunk, micro_batch))

    def pay(self, chunk: int | None = None) -> bool:
        """List the oldest weight gradient owed (to a chunk, or at all); False where none is."""
        owed = next((o for o in self._owed if chunk is None or o[0] == chunk), None)
        if owed is None:
            return False
        self._owed.remove(owed)
        self.steps.append(Step(self.stages[owed[0]], "W", owed[1]))
        return True

    def done(self, kind: str, chunk: int) -> int:
        """How many of a kind are listed."""
        return self._next[chunk, kind]


def _two_chunks(name: str, n_chunks: int) -> None:
    if n_chunks != 2:
        raise PlanError(f"schedule {name} needs exactly 2 stages per rank (vpp2), got vpp={n_chunks}")


@register_schedule("zb-v", "zbv", splits_backward=True)
def zb_v(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """ZB-V (arXiv 2401.10241, section 6 and figure 8): no bubble where F, I and W take equal times.

    Laid out for at least 2p - 1 micro-batches; with fewer, the actions of those that are not there fall out.
    """
    _two_chunks("zb-v", n_chunks)
    p = n_ranks
    enough = max(2 * p - 1, num_microbatches)
    order: Order = []
    for r in range(p):
        rank = _Rank(r, p)

        def backward(chunk: int, rank: _Rank = rank) -> None:
            rank.add("I", chunk)
            rank.pay()

        for _ in range(2 * (p - r) - 1):
            rank.add("F", 0)
        for _ in range(r):
            rank.add("F", 1)
            rank.add("F", 0)
        for _ in range(p - r):
            rank.add("F", 1)
            backward(1)
        while rank.done("F", 1) < rank.done("F", 0) or rank.done("F", 0) < enough:
            if rank.done("F", 0) < enough:
                rank.add("F", 0)
            backward(0)
            rank.add("F", 1)
            backward(1)
        for _ in range(r):
            rank.add("I", 0)
            rank.add("I", 1)
        for _ in range(p - r):
            rank.add("I", 0)
            rank.pay(0)
        while rank.pay(1) or rank.pay(0):
            pass
        order.append([step for step in rank.steps if step.micro_batch < num_microbatches])
    return order


@register_schedule("dualpipe-v", "dualpipev", splits_backward=True)
def dualpipe_v(n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """DualPipe-V, the V-shaped half of DualPipe (arXiv 2412.19437, section 3.2.1).

    In the steady part a forward of one chunk and a backward of the other run as one, each computing while
    the other's experts communicate.
    """
    _two_chunks("dualpipe-v", n_chunks)
    p, m = n_ranks, num_microbatches
    if m < 2 * p:
        raise PlanError(
            f"schedule dualpipe-v needs at least as many micro-batches as stages: {m} < 2 * pp({p}) = {2 * p}"
        )
    return [_dualpipe_rank(r, p, m) for r in range(p)]


def _dualpipe_rank(r: int, p: int, m: int) -> list[Step]:
    rank = _Rank(r, p)

    def both(forward: int, backward: int, *, joined: bool = True) -> None:
        rank.add("F", forward, joined=joined)
        rank.add("B", backward)

    for _ in range(2 * (p - 1 - r)):
        rank.add("F", 0)
    for _ in range(r + 1):
        rank.add("F", 0)
        rank.add("F", 1)
    for _ in range(p - 1 - r):
        rank.add("I", 1)
        rank.pay()
        rank.add("F", 1)
    for i in range(m - 2 * p + r + 1):
        # the very first pair on the rank of the turn stays apart: its backward waits for its forward
        both(0, 1, joined=not (i == 0 and r == p - 1))
        both(1, 0)
    for _ in range(p - 1 - r):
        rank.add("B", 1)
        both(1, 0)
    # of the last 2 (r + 1) backwards the second half is split, and its weight gradients fill the drain
    for i in range(2 * (r + 1)):
        rank.add("I" if i > r else "B", 1 - i % 2)
    for _ in range(p - 1 - r):
        rank.pay()
        rank.add("I", 0)
    for _ in range(r + 1):
        rank.pay()
    return rank.steps
