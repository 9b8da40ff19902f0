"""Normalisations whose rows lie all over memory, as a GPU's kernels run them: twice over their operands.

A token's features fit a multiprocessor, so that LayerNorm reads them once. The positions of a channel in a
batch (batch normalisation) and those of a group (group normalisation) do not: one kernel sums them up,
another one reads them again to normalise, each of them a stream over all of the tensor. Backward is the same:
sums of gradient and input, then both once more.

    bytes = 2 read + written

By kept statistics there is nothing to sum up. torch's group normalisation knows channels first alone on a GPU
(ATen/native/group_norm.cpp): images that lie otherwise, and their gradients, are turned round before it, one
tensor read and written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from costmodel.graph.model_graph import Operator, Phase

__all__ = ["whole_image_norms"]

_GROUPS = "group_norm"
_NORMS = ("batch_norm", _GROUPS)


def whole_image_norms(operators: Sequence[Operator]) -> Sequence[Operator]:
    """The operators with batch and group normalisations as streams over all that they read and write."""
    if not any(_is_one(op) for op in operators):
        return operators
    return [_streamed(op) if _is_one(op) else op for op in operators]


def _is_one(op: Operator) -> bool:
    twice = op.kind == "norm" and not op.arguments.get("once", 0)
    return twice and any(name in op.target for name in _NORMS)


def _streamed(op: Operator) -> Operator:
    moved = op.dims["bytes"] + op.bytes_read
    if _GROUPS in op.target and op.arguments.get("channels_last", 0):
        operands = 1 if op.phase is Phase.FORWARD else 2
        moved += 2 * op.bytes_read // operands
    return replace(op, kind="elementwise", variant="mul", dims={**op.dims, "bytes": moved})
