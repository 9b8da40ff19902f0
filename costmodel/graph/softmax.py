"""Attention's softmax where a framework's fused kernel does not take its shape.

Megatron-LM's fused scale + mask + softmax runs only where samples times heads of a rank divide by four and a
row has at most so many keys; else each step is a kernel of its own, in fp32 between two casts
(megatron/model/fused_softmax.py, `forward`, the branch of torch's softmax).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from costmodel.graph.model_graph import Operator, Phase, TensorInfo

__all__ = ["written_out_softmax"]

_ATTENTION = ("aten._softmax", "aten._safe_softmax")
"""Forward and backward begin so; the loss is aten._log_softmax."""
_HALF, _FULL, _MASK = 2, 4, 1
_STEPS = {
    Phase.FORWARD: (
        ("copy", _HALF + _FULL),
        ("mul", 2 * _FULL),
        ("masked_fill", 2 * _FULL + _MASK),
        ("softmax", 2 * _FULL),
        ("copy", _FULL + _HALF),
    ),
    Phase.BACKWARD: (
        ("copy", _HALF + _FULL),
        ("softmax", 3 * _FULL),
        ("masked_fill", 2 * _FULL + _MASK),
        ("mul", 2 * _FULL),
        ("copy", _FULL + _HALF),
    ),
}
"""Kernels in order, with the bytes that each moves for an element."""


def written_out_softmax(
    operators: Sequence[Operator], tensors: Mapping[int, TensorInfo], *, batch_multiple: int, max_keys: int
) -> tuple[Operator, ...]:
    """The operators with each attention softmax that the fused kernel does not take as kernels in a row.

    `batch_multiple`: what samples x heads must divide by (1: anything); `max_keys`: longest row (0: any).
    Softmax of fp32 operands stays as it is: the framework's kernel is one of half precision.
    """
    result: list[Operator] = []
    for op in operators:
        result.extend(_steps(op) if _falls_back(op, tensors, batch_multiple, max_keys) else [op])
    return tuple(result)


def _falls_back(op: Operator, tensors: Mapping[int, TensorInfo], batch_multiple: int, max_keys: int) -> bool:
    if (
        op.kind != "softmax"
        or not any(name in op.target for name in _ATTENTION)
        or op.dtype not in ("fp16", "bf16")
    ):
        return False
    if max_keys and op.dims["cols"] > max_keys:
        return True
    shape = next((tensors[t].shape for t in op.outputs if tensors[t].shape[-1:] == (op.dims["cols"],)), ())
    queries = shape[-2] if len(shape) > 1 else 1
    return bool(op.dims["rows"] // queries % batch_multiple)


def _steps(op: Operator) -> list[Operator]:
    elements = op.dims["rows"] * op.dims["cols"]
    return [
        replace(
            op,
            kind="softmax" if variant == "softmax" else "elementwise",
            variant=op.variant if variant == "softmax" else variant,
            dtype=op.dtype if variant == "copy" else "fp32",
            dims={**op.dims, "bytes": elements * size},
        )
        for variant, size in _STEPS[op.phase]
    ]
