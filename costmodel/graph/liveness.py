"""What a segment holds in memory: saved for backward, and for a moment, by liveness on its operators."""

from __future__ import annotations

import math
from collections.abc import Iterable
from math import prod

from costmodel.graph.fusion import FusedSegment
from costmodel.graph.model_graph import Operator, Phase, Segment, TensorInfo, TensorRole

__all__ = ["allocated_bytes", "recomputed_operators", "saved_bytes", "temporary_bytes"]

_SELECTIVE_KINDS = ("attention", "softmax", "bmm")

_SMALL_BLOCK_BYTES = 512


def allocated_bytes(size_bytes: int) -> int:
    """Bytes that the CUDA caching allocator takes for a request: a multiple of 512.

    Source: c10/cuda/CUDACachingAllocator.cpp, round_size (kMinBlockSize = 512).
    """
    return max(1, math.ceil(size_bytes / _SMALL_BLOCK_BYTES)) * _SMALL_BLOCK_BYTES if size_bytes else 0


def recomputed_operators(segment: Segment, recompute: str) -> frozenset[int]:
    """Indices of the forward operators that run a second time before backward.

    full: every operator of a block (embedding, head and loss are not blocks). selective: the core of
    attention, from the first to the last of its products (arXiv 2205.05198, section 4.3).
    """
    forward = segment.phase(Phase.FORWARD)
    if not segment.is_block or recompute == "none":
        return frozenset()
    if recompute == "full":
        return frozenset(op.index for op in forward)
    core = [i for i, op in enumerate(forward) if op.kind in _SELECTIVE_KINDS]
    if not core:
        return frozenset()
    return frozenset(
        op.index for op in forward[core[0] : core[-1] + 1] if op.kind not in ("gemm", "conv", "norm")
    )


def saved_bytes(segment: Segment, recompute: str = "none", fused: FusedSegment | None = None) -> int:
    """Bytes held from forward to backward by one instance, after the recompute policy.

    What is recomputed does not keep what it makes; a fully recomputed block keeps its input only. What fused
    kernels do not write is not held, see `graph.fusion`.
    """
    again = recomputed_operators(segment, recompute)
    if recompute == "full" and again:
        return segment.output_bytes
    dropped = {t for op in segment.operators if op.index in again for t in op.outputs}
    dropped |= fused.unwritten if fused else frozenset()
    masks = fused.masks if fused else frozenset[int]()
    return sum(
        allocated_bytes(prod(t.shape) if t.index in masks else t.size_bytes)
        for t in segment.tensors
        if t.saved and t.view_of is None and t.index not in dropped
    )


def temporary_bytes(segment: Segment) -> int:
    """Highest memory above saved activations and model state while one instance runs, forward or backward."""
    tensors = {t.index: t for t in segment.tensors}
    forward = _peak(segment.phase(Phase.FORWARD), tensors, held=set())
    saved = {t.index for t in segment.tensors if t.saved and t.view_of is None}
    backward = _peak(segment.phase(Phase.BACKWARD), tensors, held=saved)
    return max(forward, backward)


def _base(tensors: dict[int, TensorInfo], index: int) -> int:
    base = tensors[index].view_of
    return index if base is None or base not in tensors else base


def _peak(operators: Iterable[Operator], tensors: dict[int, TensorInfo], held: set[int]) -> int:
    """Most bytes alive above those in `held` at the start; held tensors are freed after their last use."""
    ops = list(operators)
    last: dict[int, int] = {}
    for position, op in enumerate(ops):
        for index in (*op.inputs, *op.outputs):
            last[_base(tensors, index)] = position
    lasting = (TensorRole.PARAMETER, TensorRole.BUFFER, TensorRole.INPUT, TensorRole.GRADIENT)
    alive = peak = 0
    live: set[int] = set()
    released = set(held)
    for position, op in enumerate(ops):
        for index in op.outputs:
            base = _base(tensors, index)
            info = tensors[base]
            if base in live or info.role in lasting or (info.saved and base not in held):
                continue
            live.add(base)
            alive += allocated_bytes(info.size_bytes)
        peak = max(peak, alive)
        for index in {_base(tensors, i) for i in (*op.inputs, *op.outputs)}:
            if last[index] == position:
                if index in live:
                    live.discard(index)
                    alive -= allocated_bytes(tensors[index].size_bytes)
                elif index in released:
                    released.discard(index)
                    alive -= allocated_bytes(tensors[index].size_bytes)
    return max(0, peak)
