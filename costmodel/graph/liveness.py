"""What a segment holds in memory: saved for backward, and for a moment, by liveness on its operators."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from costmodel.estimate import IntArray
from costmodel.graph.fusion import FusedSegment
from costmodel.graph.model_graph import Operator, Phase, Segment, TensorRole
from costmodel.recompute import Recompute

__all__ = [
    "SegmentMemory",
    "allocated_bytes",
    "kept_segments",
    "recomputed_operators",
    "saved_bytes",
    "saved_tensors",
    "segment_memories",
    "segment_memory",
]

_PRODUCT_KINDS = ("gemm", "conv", "moe")
_SELECTIVE_KINDS = ("attention", "softmax", "bmm")

_SMALL_BLOCK_BYTES = 512
_LASTING = (TensorRole.PARAMETER, TensorRole.BUFFER, TensorRole.INPUT)


def allocated_bytes(size_bytes: int) -> int:
    """Bytes that the CUDA caching allocator takes for a request: a multiple of 512.

    Source: c10/cuda/CUDACachingAllocator.cpp, round_size (kMinBlockSize = 512).
    """
    return max(1, math.ceil(size_bytes / _SMALL_BLOCK_BYTES)) * _SMALL_BLOCK_BYTES if size_bytes else 0


def recomputed_operators(segment: Segment, recompute: str) -> frozenset[int]:
    """Indices of the forward operators that run a second time before backward, see `costmodel.recompute`.

    Embedding, head and loss are not blocks: they never run again; nor do blocks without a backward, frozen
    ones that no gradient passes. selective: the core of attention, from the first to the last of its products
    (arXiv 2205.05198, section 4.3).
    """
    policy = Recompute.parse(recompute)
    forward = segment.phase(Phase.FORWARD)
    if not segment.is_block or policy.kind == "none" or not segment.phase(Phase.BACKWARD):
        return frozenset()
    if policy.kind == "full":
        return frozenset(op.index for op in forward)
    if policy.kind == "modules":
        return frozenset(op.index for op in forward if policy.names(op.module))
    if policy.kind == "operators":
        products = [op.index for op in forward if op.kind in _PRODUCT_KINDS]
        kept = {*products[:: policy.every]} | {op.index for op in forward if op.kind == "attention"}
        return frozenset(op.index for op in forward if op.index not in kept)
    core = [i for i, op in enumerate(forward) if op.kind in _SELECTIVE_KINDS]
    if not core:
        return frozenset()
    return frozenset(
        op.index for op in forward[core[0] : core[-1] + 1] if op.kind not in ("gemm", "conv", "norm")
    )


def _not_kept(segment: Segment, again: frozenset[int]) -> set[int]:
    """What operators that run again make for themselves; what others read of it is kept for them."""
    base = {t.index: t.index if t.view_of is None else t.view_of for t in segment.tensors}
    made = {t for op in segment.operators if op.index in again for t in op.outputs if base[t] == t}
    others = (op for op in segment.phase(Phase.FORWARD) if op.index not in again and op.kind != "host")
    return made - {base[t] for op in others for t in op.inputs}


def saved_bytes(segment: Segment, recompute: str = "none", fused: FusedSegment | None = None) -> int:
    """Bytes held from forward to backward by one instance, after the recompute policy.

    What is recomputed does not keep what it makes; a fully recomputed block keeps its input only, one that is
    recomputed by operator what the others made too. What fused kernels do not write is not held, see
    `graph.fusion`.
    """
    again = recomputed_operators(segment, recompute)
    if again and _from_input(recompute):
        return sum(_held_sizes(segment, again))
    return sum(size for _, size in _kept(segment, again, fused))


def _from_input(recompute: str) -> bool:
    """Whether a block runs again from its input, so that only what its other operators made is held."""
    return Recompute.parse(recompute).kind in ("full", "operators")


def _made_once(segment: Segment, again: frozenset[int]) -> set[int]:
    """Storages that the forward operators which do not run again make."""
    base = {t.index: t.index if t.view_of is None else t.view_of for t in segment.tensors}
    once = (op for op in segment.phase(Phase.FORWARD) if op.index not in again and op.kind != "host")
    return {base[t] for op in once for t in op.outputs}


def _held_sizes(segment: Segment, again: frozenset[int]) -> list[int]:
    """Bytes of each block that is held where a block runs again from its input: its output, which is the next
    one's input, and what `again` does not make anew."""
    made = _made_once(segment, again)
    return [
        max(0, segment.output_bytes - segment.passing_bytes),
        *(allocated_bytes(t.size_bytes) for t in segment.tensors if t.index in made),
    ]


def kept_segments(segment: Segment, recompute: str = "none", fused: FusedSegment | None = None) -> float:
    """Segments that the CUDA caching allocator takes from the driver for what one instance's forward keeps,
    where its pool has none.

    Blocks of up to 1 MiB share segments of 2 MiB, those below 10 MiB segments of 20 MiB, as many as fit; each
    larger one has its own. Source: c10/cuda/CUDACachingAllocator.cpp (kSmallSize, kSmallBuffer,
    kMinLargeAlloc, kLargeBuffer).
    """
    again = recomputed_operators(segment, recompute)
    kept = _kept(segment, again, fused)
    sizes = [size for role, size in kept if role not in _LASTING]
    if again and _from_input(recompute):
        sizes = _held_sizes(segment, again)
    found = 0.0
    for size in sizes:
        if size <= 2**20:
            found += size / 2**21
        elif size < 10 * 2**20:
            found += 1.0 / (20 * 2**20 // size)
        else:
            found += 1.0
    return found


def _kept(
    segment: Segment, again: frozenset[int], fused: FusedSegment | None
) -> list[tuple[TensorRole, int]]:
    """Role and bytes of each block that is held from forward to backward where `again` runs again."""
    dropped = _not_kept(segment, again)
    dropped |= fused.unwritten if fused else frozenset()
    masks = fused.masks if fused else frozenset[int]()
    return [
        (t.role, allocated_bytes(prod(t.shape) if t.index in masks else t.size_bytes))
        for t in segment.tensors
        if t.saved and t.view_of is None and t.index not in dropped
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentMemory:
    """What one instance allocates over a step. Levels are bytes above model state."""

    saved_bytes: int
    """Held from the end of its forward to its backward."""
    forward_bytes: int
    """Highest level during its forward, above the level at which it starts."""
    backward_bytes: int
    """Highest level during its backward (and recomputation), above the level at which it starts; gradients
    of parameters stay."""
    accumulating_bytes: int
    """The same where gradients of parameters are added to others and freed."""
    gradient_bytes: int
    """Gradients of parameters that its backward makes; of a tied one, for its first and its last use."""


def segment_memory(
    segment: Segment,
    recompute: str = "none",
    fused: FusedSegment | None = None,
    saved_elsewhere: frozenset[int] = frozenset(),
) -> SegmentMemory:
    """Walk one instance's operators, forward and backward.

    `saved_elsewhere`: tensors (of the same trace) that other segments keep for backward. Where operators run
    again, everything they make lives from there to its last use in backward.
    """
    sizes = _Sizes(segment, fused)
    again = recomputed_operators(segment, recompute)
    whole = bool(again) and _from_input(recompute)
    saved = {t.index for t in segment.tensors if t.saved and t.view_of is None and sizes.of(t.index)}
    dropped = _not_kept(segment, again) & saved
    made = {sizes.base(t) for op in segment.operators for t in op.outputs}
    forward, backward = (sizes.steps(segment.phase(phase)) for phase in (Phase.FORWARD, Phase.BACKWARD))
    foreign = (saved_elsewhere - made) | (sizes.summed - made)
    walked = _walk(forward, sizes, foreign, kept=saved - dropped)
    if whole:
        walked = _walk(forward, sizes, foreign, kept=_made_once(segment, again))
    held = saved_bytes(segment, recompute, fused)
    # what a whole block holds of its own is its output, which went when the next block's backward was done
    start = max(0, sum(map(sizes.of, saved)) - held) if whole else sum(map(sizes.of, dropped))
    repeated = _walk(forward, sizes, foreign, kept=saved) - held if whole else 0
    peaks = [
        max(repeated, start + _walk(backward, sizes, foreign, held=saved, gradients_stay=stay))
        for stay in (True, False)
    ]
    return SegmentMemory(
        saved_bytes=held,
        forward_bytes=max(walked, held),
        backward_bytes=peaks[0],
        accumulating_bytes=peaks[1],
        gradient_bytes=sum(
            sizes.of(index)
            for index in {base for _, written, _ in backward for base in written}
            if sizes.role(index) is TensorRole.GRADIENT
        )
        - sum(map(sizes.of, sizes.taken_over - made)),
    )


def segment_memories(segments: Sequence[Segment], recompute: str = "none") -> list[SegmentMemory]:
    """`segment_memory` of every segment of one trace."""
    saved = saved_tensors(segments)
    return [segment_memory(segment, recompute, None, saved) for segment in segments]


def saved_tensors(segments: Iterable[Segment]) -> frozenset[int]:
    """Storages that any of the segments keeps for backward."""
    return frozenset(t.index for s in segments for t in s.tensors if t.saved and t.view_of is None)


class _Sizes:
    """Bytes that each storage of a segment takes on the device."""

    def __init__(self, segment: Segment, fused: FusedSegment | None) -> None:
        self._tensors = {t.index: t for t in segment.tensors}
        unwritten = fused.unwritten if fused else frozenset[int]()
        masks = fused.masks if fused else frozenset[int]()
        self._in_place = fused is not None and fused.softmax_in_place
        self._partial = self._partial_gradients(segment)
        sums = [op for op in segment.operators if self._sums(op)]
        self.taken_over = frozenset(
            self.base(i) for op in sums for i in op.inputs if self._partial.issuperset(op.outputs)
        )
        """Gradients of other uses that wait in this segment's for the first one's."""
        self.summed = frozenset(self.base(i) for op in sums for i in op.inputs)
        """Gradients of other uses of a tied parameter, to which this segment's is added. Where they wait they
        count as that segment's; a pipeline adds them up between its ranks."""
        self._bytes = {
            t.index: allocated_bytes(prod(t.shape) if t.index in masks else t.size_bytes)
            for t in segment.tensors
            if t.view_of is None and t.index not in unwritten
        }
        self.lasting = frozenset(i for i in self._tensors if self.role(i) in _LASTING)
        self.gradients = frozenset(i for i in self._tensors if self.role(i) is TensorRole.GRADIENT)

    def of(self, index: int) -> int:
        """Bytes of a storage; 0 for one that is never written."""
        return self._bytes.get(index, 0)

    def base(self, index: int) -> int:
        """The tensor that owns a view's storage."""
        base = self._tensors[index].view_of
        return index if base is None or base not in self._tensors else base

    def role(self, index: int) -> TensorRole:
        """What the tensor is to the model."""
        return TensorRole.GRADIENT if index in self._partial else self._tensors[index].role

    def reuses(self, op: Operator) -> bool:
        """Whether the operator's result takes the place of what it reads for the last time.

        Autograd adds gradients of several uses up in place (torch/csrc/autograd/input_buffer.cpp).
        """
        if op.phase is not Phase.BACKWARD:
            return False
        return (self._in_place and op.kind == "softmax") or self._sums(op)

    def steps(self, operators: Sequence[Operator]) -> _Steps:
        """The operators as storages that they read and write."""
        return tuple(
            (tuple(map(self.base, op.inputs)), tuple(map(self.base, op.outputs)), self.reuses(op))
            for op in operators
        )

    def _sums(self, op: Operator) -> bool:
        """Whether the operator adds up gradients that a tied parameter gets from its uses."""
        if op.phase is not Phase.BACKWARD or op.kind != "elementwise" or len(op.inputs) < 2:
            return False
        return all(
            self.role(made) is TensorRole.GRADIENT
            and all(self._tensors[i].shape == self._tensors[made].shape for i in op.inputs)
            for made in op.outputs
        )

    def _partial_gradients(self, segment: Segment) -> frozenset[int]:
        """Gradients of parameters that belong to other segments: what backward makes of such a parameter's
        size, and nothing here reads."""
        tied = {t.size_bytes for t in segment.tensors if t.role is TensorRole.PARAMETER and t.tied}
        if not tied:
            return frozenset()
        ops = segment.phase(Phase.BACKWARD)
        read = {self.base(i) for op in ops if op.kind != "host" for i in op.inputs}
        made = {i for op in ops for i in op.outputs if self.base(i) == i}
        return frozenset(i for i in made - read if self._tensors[i].size_bytes in tied)


def _walk(
    steps: _Steps,
    sizes: _Sizes,
    foreign: frozenset[int],
    *,
    kept: Iterable[int] = (),
    held: Iterable[int] = (),
    gradients_stay: bool = False,
) -> int:
    """Most bytes above the level at the start.

    `kept` stay to the end, `held` are there at the start and go after their last use (at once where nothing
    uses them: what did has run), `foreign` belong to others. What else comes from outside is there at the
    start too and counts until its last use.
    """
    course = _course(
        steps,
        sizes.lasting,
        sizes.gradients,
        foreign,
        frozenset(kept),
        frozenset(held),
        gradients_stay,
    )
    levels = np.cumsum([sizes.of(index) for index in course.storages] * course.signs)
    return max(0, int(levels[course.highest].max(initial=0)))


_Steps = tuple[tuple[tuple[int, ...], tuple[int, ...], bool], ...]
"""Of each operator: storages that it reads and writes, and whether its result takes their place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Course:
    """Storages that come and go, one after another."""

    storages: tuple[int, ...]
    signs: IntArray
    """1: comes, -1: goes."""
    highest: IntArray
    """Places among them behind which the level is looked at: ahead of what an operator frees."""


@lru_cache(maxsize=512)
def _course(
    steps: _Steps,
    lasting: frozenset[int],
    gradients: frozenset[int],
    foreign: frozenset[int],
    kept: frozenset[int],
    held: frozenset[int],
    gradients_stay: bool,
) -> _Course:
    """What `_walk` walks, which is the same for all sizes of a segment."""
    last = {i: place for place, (read, written, _) in enumerate(steps) for i in (*read, *written)}
    made = {i for _, written, _ in steps for i in written}
    incoming = last.keys() - made - held - foreign - lasting - gradients
    storages = [*incoming, *(held - last.keys())]
    signs = [1] * len(incoming) + [-1] * (len(storages) - len(incoming))
    highest = [len(storages) - 1]
    live = incoming | (held & last.keys())

    def come(found: set[int]) -> None:
        live.update(found)
        storages.extend(found)
        signs.extend([1] * len(found))

    def go(found: set[int]) -> None:
        gone = found & live
        live.difference_update(gone)
        storages.extend(gone)
        signs.extend([-1] * len(gone))

    for place, (read, written, reuses) in enumerate(steps):
        ending = {i for i in (*read, *written) if last[i] == place} - kept
        if gradients_stay:
            ending -= gradients
        if reuses:
            go(ending)
        come(set(written) - live - foreign - lasting)
        highest.append(len(storages) - 1)
        go(ending)
    looked_at = np.array([place for place in highest if place >= 0], dtype=np.int64)
    return _Course(storages=tuple(storages), signs=np.array(signs, dtype=np.int64), highest=looked_at)
