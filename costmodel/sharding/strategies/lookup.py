"""Embedding look-ups and classification losses: vocabulary, width and token strategies."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from costmodel.sharding.placements import BROADCAST, PARTIAL, REPLICATED, sharded
from costmodel.sharding.strategies.call import SHARDING_RULES, Call, InnerCollective, Strategy

__all__ = ["cross_entropy", "embedding", "row_selection"]

_STATISTIC_BYTES = 4


@SHARDING_RULES.register("aten.embedding")
def embedding(call: Call) -> Iterator[Strategy]:
    """out[..., h] = W[v, h][index]: rows of the table (misses give zeros: partial), width, tokens."""
    table, index = call.inputs[0], call.inputs[1]
    last = len(call.outputs[0]) - 1
    if call.cuts(table, 0):
        yield Strategy(name="vocabulary", inputs=(sharded(0), REPLICATED), outputs=(PARTIAL,), parallel=False)
    for c in call.both_options(0, 1, 0, last):
        yield Strategy(name="width", inputs=(sharded(1, c), REPLICATED), outputs=(sharded(last, c),))
    for dim in range(len(index)):
        for c in call.both_options(1, dim, 0, dim):
            yield Strategy(name="tokens", inputs=(BROADCAST, sharded(dim, c)), outputs=(sharded(dim, c),))


@SHARDING_RULES.register("aten.nll_loss_forward", "aten.nll_loss", "aten.cross_entropy_loss")
def cross_entropy(call: Call) -> Iterator[Strategy]:
    """x[N, C], target[N]: tokens (partial loss), or classes with one number per row reduced.

    `cross_entropy_loss` holds the log-softmax too: its maximum and sum, and one reduction backward.
    """
    x, target = call.inputs[0], call.inputs[1]
    rest = (REPLICATED,) * (len(call.inputs) - 2)
    fused = "cross_entropy" in call.op.target
    if len(x) == 2 and call.cuts(x, 1):
        rows = prod(target) * _STATISTIC_BYTES
        forward = InnerCollective(op="all_reduce", size_bytes=rows)
        inner = [forward] * (3 if fused else 1)
        if fused:
            inner.append(InnerCollective(op="all_reduce", size_bytes=rows, backward=True))
        yield Strategy(
            name="vocabulary",
            inputs=(sharded(1), REPLICATED, *rest),
            outputs=(REPLICATED,) * len(call.outputs),
            collectives=tuple(inner),
        )
    if len(x) == 2 and len(target) == 1 and call.outputs[0] == ():
        for c in call.options(i=0, dim=0):
            yield Strategy(
                name="tokens",
                inputs=(sharded(0, c), sharded(0, c), *rest),
                outputs=(PARTIAL,) * len(call.outputs),
            )


@SHARDING_RULES.register("aten.index", "aten.index_select")
def row_selection(call: Call) -> Iterator[Strategy]:
    """Rows of the first dimension by a list of indices: the others pass, and so do summands."""
    if len(call.inputs) != 2 or len(call.inputs[1]) != 1:
        return
    x, index, out = call.inputs[0], call.inputs[1], call.outputs[0]
    if out != (*index, *x[1:]):
        return
    for dim in range(1, len(x)):
        for c in call.both_options(0, dim, 0, dim):
            yield Strategy(name=f"dim{dim}", inputs=(sharded(dim, c), REPLICATED), outputs=(sharded(dim, c),))
    yield Strategy(name="sum", inputs=(PARTIAL, REPLICATED), outputs=(PARTIAL,), parallel=False)
    yield Strategy(name="gradient_sum", inputs=(BROADCAST, REPLICATED), outputs=(BROADCAST,), parallel=False)
