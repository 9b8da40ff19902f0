"""The kernels that a segment's memory-bound operators become on a device.

as_traced  every operator is a kernel, as torch runs them on a CPU.
eager      so it is on a GPU, but for dropout: one kernel there, with a mask of one byte an element.
fused      what frameworks write by hand besides: chains of element-wise operators (bias + GELU, SwiGLU,
           bias + dropout + add), normalisations out of element-wise pieces, softmax with the scale and mask
           before it, permutations of rows. A kernel ends with its softmax; sums into parameter gradients and
           whole normalisations stay kernels of their own (arXiv 2104.04473, section 4.2).
compiled   TorchInductor's rule: element-wise operators, reductions, normalisations and softmax over the same
           elements become one kernel wherever that makes no cycle (PyTorch 2, ASPLOS 2024, section 4.3).

A fused kernel reads what comes from outside it and writes what is used outside it. What forward makes for
nothing but a backward kernel is not written: backward makes it again from the forward kernel's inputs (the
same paper's min-cut rematerialisation, in its most common outcome). Random masks are kept unless compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from costmodel.graph.model_graph import Operator, Phase, Segment, TensorInfo, TensorRole

__all__ = ["FUSIONS", "FusedSegment", "fuse"]

FUSIONS = ("as_traced", "eager", "fused", "compiled")
"""How memory-bound operators run."""

_FUSIBLE = ("elementwise", "softmax", "norm", "reduction")
_LEADING = ("norm", "softmax", "reduction", "elementwise")
"""A fused kernel is priced as the first of these kinds that it has."""
_ELEMENT_BYTES = {"fp64": 8, "int64": 8, "fp32": 4, "int32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "bool": 1}
_OTHER_BYTES = 4
_RANDOM = "bernoulli"
_DROPOUT = ("aten.bernoulli_", "aten.div_", "aten.mul")
"""What dropout is made of where torch has no kernel for it."""


_SOFTMAX_BACKWARD = "aten._softmax_backward_data"
_MASKED_FILL = "aten.masked_fill."
_BIAS = 2
"""Its place among a convolution's inputs."""


@dataclass(slots=True)
class _Kernel:
    """Operators of one phase that run as one kernel; `bits` are their positions."""

    members: list[int]
    bits: int
    elements: int
    """Elements of the loop that all members share."""
    rows: set[int] = field(default_factory=set)
    """Results of the members that reduce: later members may run over those."""
    alone: bool = False
    random: bool = False
    ended: bool = False
    """Nothing may follow its members inside the kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedSegment:
    """Kernels of a segment's forward and backward, in order, and what they keep out of memory.

    `unwritten`: forward tensors (their storage's index) that are never written. `masks`: random masks, of
    which a GPU's dropout keeps one byte of each element.
    """

    operators: tuple[Operator, ...]
    unwritten: frozenset[int] = frozenset()
    masks: frozenset[int] = frozenset()
    softmax_in_place: bool = False
    """The gradient of a softmax overwrites the softmax (Megatron-LM's fused softmax and cross entropy)."""


def fuse(segment: Segment, fusion: str) -> FusedSegment:
    """The kernels of a segment under one of FUSIONS."""
    operators = [op for op in segment.operators if op.phase is not Phase.OPTIMIZER]
    if fusion == "as_traced":
        return FusedSegment(operators=tuple(operators))
    tensors = {t.index: t for t in segment.tensors}
    phases = {phase: segment.phase(phase) for phase in (Phase.FORWARD, Phase.BACKWARD)}
    kernels = {phase: _kernels(ops, tensors, fusion) for phase, ops in phases.items()}
    traffic = _Traffic(segment, kernels, fusion)
    result = []
    for phase, ops in phases.items():
        for members in kernels[phase]:
            group = [ops[i] for i in members]
            alone = group[0] if fusion == "eager" else _streamed(group[0], tensors)
            result.extend(_beside(group[0], tensors, fusion))
            result.append(traffic.kernel(group) if _is_fusible(group[0]) else alone)
    return FusedSegment(
        operators=tuple(sorted(result, key=lambda op: op.index)),
        unwritten=frozenset(traffic.internal),
        masks=traffic.masks,
        softmax_in_place=fusion == "fused",
    )


def _beside(op: Operator, tensors: Mapping[int, TensorInfo], fusion: str) -> list[Operator]:
    """Further kernels of one call of torch's on a GPU; they have its index and no results of their own, and
    no inputs where the host dispatches nothing for them.

    softmax backward   gradient times softmax; its own kernel reads the product and the softmax
                       (ATen/native/cuda/SoftMax.cu, softmax_backward_cuda_out), as many bytes again
    masked_fill        fills a copy (ATen/native/TensorAdvancedIndexing.cpp)
    convolution        its bias is added to what cuDNN wrote, and its gradient is a sum over the result's
                       (ATen/native/Convolution.cpp); depthwise kernels, torch's own, add it inside
    """
    if fusion != "eager":
        return []
    if _SOFTMAX_BACKWARD in op.target:
        named = f"{op.target} (grad * output)"
        return [replace(op, target=named, kind="elementwise", variant="mul", outputs=())]
    if _MASKED_FILL in op.target:
        size = _size(op, tensors, op.outputs)
        return [_kernel(op, "copy", "elementwise", "copy", read=size, written=size)]
    if op.kind != "conv" or 1 < op.dims["groups"] >= op.dims["c_in"]:
        return []
    if op.variant == "fwd" and len(op.inputs) > _BIAS:
        size = _size(op, tensors, op.outputs)
        return [_kernel(op, "bias", "elementwise", "add", read=size, written=size)]
    if op.variant == "wgrad" and len(op.outputs) > 1:
        return [_kernel(op, "bias", "reduction", "sum", read=_size(op, tensors, op.inputs[:1]))]
    return []


def _kernel(op: Operator, what: str, kind: str, variant: str, *, read: int, written: int = 0) -> Operator:
    elements = max(read, written) // _ELEMENT_BYTES.get(op.dtype, _OTHER_BYTES)
    rows = op.dims.get("rows", op.dims.get("c_out", 1))
    return replace(
        op,
        target=f"{op.target} ({what})",
        kind=kind,
        variant=variant,
        dims={"rows": rows, "cols": max(1, elements // rows), "bytes": read + written},
        flop=0,
        bytes_read=read,
        bytes_written=written,
        inputs=(),
        outputs=(),
    )


def _size(op: Operator, tensors: Mapping[int, TensorInfo], of: Iterable[int]) -> int:
    """Bytes of the largest of these tensors in the operator's type."""
    width = _ELEMENT_BYTES.get(op.dtype, _OTHER_BYTES)
    return width * max((prod(tensors[i].shape) for i in of), default=0)


def _streamed(op: Operator, tensors: Mapping[int, TensorInfo]) -> Operator:
    """Rows of activations that are permuted (tokens on their way to experts and back): kernels written for it
    stream them, where a look-up in a table of parameters does not."""
    table = (TensorRole.PARAMETER, TensorRole.GRADIENT)
    if (
        op.kind != "embedding"
        or "embedding" in op.target
        or any(tensors[i].role in table for i in (*op.inputs, *op.outputs))
    ):
        return op
    return replace(op, kind="elementwise", variant="copy")


def _mask_tensors(segment: Segment, tensors: Mapping[int, TensorInfo]) -> frozenset[int]:
    drawn = [t for op in segment.operators if _RANDOM in op.target for t in op.outputs]
    return frozenset(_base(tensors, t) for t in drawn)


def _is_fusible(op: Operator) -> bool:
    return op.kind in _FUSIBLE


def _base(tensors: Mapping[int, TensorInfo], index: int) -> int:
    base = tensors[index].view_of
    return index if base is None or base not in tensors else base


def _kernels(ops: Sequence[Operator], tensors: Mapping[int, TensorInfo], fusion: str) -> list[list[int]]:
    """Positions of the operators of each kernel, in order of their first member."""
    writer: dict[int, int] = {}
    ancestors: list[int] = []
    kernels: list[_Kernel] = []
    kernel_of: dict[int, int] = {}
    sources: list[set[int]] = []
    for position, op in enumerate(ops):
        read = {_base(tensors, i) for i in op.inputs}
        before = {writer[b] for b in read if b in writer}
        sources.append(before)
        bits = 0
        for p in before:
            bits |= ancestors[p] | (1 << p)
        ancestors.append(bits)
        mine = _Kernel(
            members=[position],
            bits=1 << position,
            elements=_elements(op),
            rows={op.dims["rows"]} if op.kind == "reduction" else set(),
            alone=not _joins(op, fusion, tensors),
            random=_RANDOM in op.target,
            ended=fusion == "fused" and op.kind == "softmax",
        )
        kernels.append(mine)
        kernel_of[position] = len(kernels) - 1
        if not mine.alone:
            for p in sorted(before, reverse=True):
                other = kernels[kernel_of[p]]
                if other is mine or other.alone or other.ended or not _same_loop(other, mine):
                    continue
                if fusion == "eager" and not other.random:
                    continue
                if _makes_cycle(other, mine, sources, ancestors):
                    continue
                number = kernel_of[p]
                other.members += mine.members
                other.bits |= mine.bits
                other.rows |= mine.rows
                other.random |= mine.random
                other.ended |= mine.ended
                other.elements = max(other.elements, mine.elements)
                for m in mine.members:
                    kernel_of[m] = number
                mine.members = []
                mine = other
        if op.kind != "host":  # a view writes nothing
            for t in op.outputs:
                writer[_base(tensors, t)] = position
    return sorted((sorted(k.members) for k in kernels if k.members), key=lambda m: m[0])


def _joins(op: Operator, fusion: str, tensors: Mapping[int, TensorInfo]) -> bool:
    if not _is_fusible(op):
        return False
    if fusion == "eager":
        return op.target.startswith(_DROPOUT)
    summed = op.kind == "reduction" and any(tensors[t].role is TensorRole.GRADIENT for t in op.outputs)
    return not summed and (fusion == "compiled" or op.kind != "norm")


def _elements(op: Operator) -> int:
    return op.dims["rows"] * op.dims["cols"] if "rows" in op.dims else 0


def _same_loop(a: _Kernel, b: _Kernel) -> bool:
    """Whether two kernels run over the same elements, or one over the other's reduced rows."""
    return a.elements == b.elements or b.elements in a.rows or a.elements in b.rows


def _makes_cycle(a: _Kernel, b: _Kernel, sources: Sequence[set[int]], ancestors: Sequence[int]) -> bool:
    """Whether something outside both would have to run between their members."""
    both = a.bits | b.bits
    return any(
        (ancestors[p] & both) for m in (*a.members, *b.members) for p in sources[m] if not (1 << p) & both
    )


class _Traffic:
    """What each kernel reads and writes."""

    def __init__(
        self, segment: Segment, kernels: Mapping[Phase, Sequence[Sequence[int]]], fusion: str
    ) -> None:
        self._tensors = {t.index: t for t in segment.tensors}
        self.masks = _mask_tensors(segment, self._tensors)
        self._rematerialised = fusion != "eager"
        self._kept = self.masks if fusion != "compiled" else frozenset[int]()
        self._kernel_of: dict[int, int] = {}
        """Operator -> first member of its kernel."""
        self._made_by: dict[int, int] = {}
        """Storage -> kernel that made it first."""
        self._users: dict[int, set[int]] = {}
        """Storage -> kernels that read it."""
        self._fusible: set[int] = set()
        self._inputs: dict[int, set[int]] = {}
        """Kernel -> tensors it reads from outside."""
        self._backward: set[int] = set()
        for phase, groups in kernels.items():
            ops = segment.phase(phase)
            for members in groups:
                first = ops[members[0]]
                if _is_fusible(first):
                    self._fusible.add(first.index)
                if phase is Phase.BACKWARD:
                    self._backward.add(first.index)
                for i in members:
                    self._kernel_of[ops[i].index] = first.index
        for op in segment.operators:
            if op.phase is Phase.OPTIMIZER or op.kind == "host":
                continue
            kernel = self._kernel_of[op.index]
            outside = self._inputs.setdefault(kernel, set())
            for t in op.inputs:
                base = _base(self._tensors, t)
                if _RANDOM in op.target and base in self.masks:
                    continue  # drawn in place over nothing
                self._users.setdefault(base, set()).add(kernel)
                if self._made_by.get(base) != kernel:
                    outside.add(t)
            for t in op.outputs:
                self._made_by.setdefault(_base(self._tensors, t), kernel)
        self.internal = {base for base in self._made_by if self._is_internal(base)}
        """Storages that never reach memory."""

    def _is_internal(self, base: int) -> bool:
        """Made by a fused kernel, used, and by nothing but itself and backward kernels that make it again."""
        kernel, users = self._made_by[base], self._users.get(base, set())
        if kernel not in self._fusible or not users or (base in self._kept and users != {kernel}):
            return False
        forward = kernel not in self._backward and self._rematerialised
        return all(
            user == kernel or (forward and user in self._backward and user in self._fusible) for user in users
        )

    def kernel(self, group: Sequence[Operator]) -> Operator:
        """The operators of one fused kernel as one operator; alone, only what it need not move changes."""
        number = group[0].index
        read: set[int] = set()
        for t in self._inputs.get(number, set()):
            read |= self._materialised(t)
        written = {
            t
            for op in group
            for t in op.outputs
            if _base(self._tensors, t) not in self.internal or len(group) == 1
        }
        read_bytes, written_bytes = self._moved(read), self._moved(written)
        if len(group) == 1:
            read_bytes = min(read_bytes, group[0].bytes_read) or group[0].bytes_read
            written_bytes = group[0].bytes_written
        lead = min(group, key=lambda op: (_LEADING.index(op.kind), -_elements(op)))
        largest = max(group, key=_elements)
        forward = {
            self._kernel_of.get(op.forward_index, op.forward_index)
            for op in group
            if op.forward_index is not None
        }
        return replace(
            lead,
            index=number,
            target=" + ".join(dict.fromkeys(op.target for op in group)),
            dims={
                "rows": lead.dims["rows"] if lead.kind != "elementwise" else largest.dims["rows"],
                "cols": lead.dims["cols"] if lead.kind != "elementwise" else largest.dims["cols"],
                "bytes": read_bytes + written_bytes,
            },
            flop=sum(op.flop for op in group),
            bytes_read=read_bytes,
            bytes_written=written_bytes,
            inputs=tuple(sorted(read)),
            outputs=tuple(sorted(written)),
            forward_index=min(forward) if forward else None,
        )

    def _materialised(self, tensor: int) -> set[int]:
        """The tensor, or what it is made of where it never reached memory."""
        base = _base(self._tensors, tensor)
        if base not in self.internal:
            return {tensor}
        return {t for t in self._inputs[self._made_by[base]] if _base(self._tensors, t) not in self.internal}

    def _moved(self, tensors: Iterable[int]) -> int:
        """Bytes of the tensors; parts of one storage count no more than the whole.

        A rank's part of a sharded tensor has its own `size_bytes`; views of it are smaller by as much.
        """
        parts: dict[int, float] = {}
        for t in tensors:
            base = _base(self._tensors, t)
            info, whole = self._tensors[t], self._tensors[base]
            share = whole.size_bytes / max(1, _unsharded_bytes(whole))
            parts[base] = parts.get(base, 0.0) + _unsharded_bytes(info) * share
        return round(sum(self._least(base, size) for base, size in parts.items()))

    def _least(self, base: int, size: float) -> float:
        whole = self._tensors[base]
        wider = _ELEMENT_BYTES.get(whole.dtype, _OTHER_BYTES) if base in self.masks else 1
        return min(size, whole.size_bytes) / wider


def _unsharded_bytes(tensor: TensorInfo) -> int:
    return prod(tensor.shape) * _ELEMENT_BYTES.get(tensor.dtype, _OTHER_BYTES)
