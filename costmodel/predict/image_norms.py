"""Normalisations whose rows lie all over memory, as a GPU's kernels run them: twice over their operands.

A token's features fit a multiprocessor, so that LayerNorm reads them once. The positions of a channel in a batch
(batch normalisation) and those of a group (group normalisation) do not: one kernel sums them up, another one reads
them again to normalise, each of them a stream over all of the tensor. Backward is the same: sums of gradient and
input, then both once more.

    bytes = 2 read + written
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from costmodel.graph.model_graph import Operator

__all__ = ["whole_image_norms"]

_NORMS = ("batch_norm", "group_norm")


def whole_image_norms(operators: Sequence[Operator]) -> Sequence[Operator]:
    """The operators with batch and group normalisations as streams over what they read twice."""
    if not any(_is_one(op) for op in operators):
        return operators
    return [_streamed(op) if _is_one(op) else op for op in operators]


def _is_one(op: Operator) -> bool:
    twice = op.kind == "norm" and not op.arguments.get("once", 0)
    return twice and any(name in op.target for name in _NORMS)


def _streamed(op: Operator) -> Operator:
    dims = {**op.dims, "bytes": op.dims["bytes"] + op.bytes_read}
    return replace(op, kind="elementwise", variant="mul", dims=dims)
