"""ModelGraph: what a traced model costs and holds, independent of any machine or plan.

A graph is a list of segments in forward order. A segment is a run of structurally equal blocks (or a
single stretch of the model) that was traced once and stands for `count` instances in a row:

    embedding (count 1) -> decoder layer (count 32) -> norm + head + loss (count 1)

Each segment has the operators of one instance: forward, backward and the optimizer's. Sizes are those
of one device with the whole model (no sharding) for one micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["ModelGraph", "Operator", "Phase", "Segment", "TensorInfo", "TensorRole"]


class Phase(StrEnum):
    """When an operator runs."""

    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


class TensorRole(StrEnum):
    """What a tensor is to the model."""

    INPUT = "input"
    PARAMETER = "parameter"
    BUFFER = "buffer"
    ACTIVATION = "activation"
    GRADIENT = "gradient"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor of a segment. `size_bytes` counts its own storage once; a view has `view_of` set."""

    index: int
    shape: tuple[int, ...]
    dtype: str
    role: TensorRole
    size_bytes: int
    name: str = ""
    """Qualified parameter or buffer name (of the first instance), else the node's name."""
    view_of: int | None = None
    saved: bool = False
    """Kept by autograd from forward to backward."""
    requires_grad: bool = False
    tied: bool = False
    """A parameter that an earlier segment already counts."""
    frozen: bool = False
    """A parameter that is not trained: it has neither gradient nor optimizer state."""
    unused: bool = False
    """A trained parameter that the loss does not depend on: backward makes no gradient of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator call of one instance.

    `kind` is a cost kind of `costmodel.hardware.kinds`; `dims` are that kind's sizes (gemm: batch, m, n,
    k; conv: batch, c_in, ...; memory-bound kinds: rows, cols, bytes); `variant` tells calls of one kind
    apart (gemm layout, conv direction, attention phase, element-wise function).
    """

    index: int
    target: str
    kind: str
    variant: str
    dtype: str
    dims: Mapping[str, int]
    flop: int
    bytes_read: int
    bytes_written: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    phase: Phase
    module: str
    forward_index: int | None = None
    """For a backward operator: the forward operator whose gradient it computes."""
    arguments: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    """Integer (and integer-list) arguments by schema name, such as dim, dims, dim0, dim1, start, end,
    split_size, size, groups: what shapes alone do not tell about how dimensions map."""

    def resized(self, *, dims: Mapping[str, int], flop: int, bytes_read: int, bytes_written: int) -> Operator:
        """The same call with other sizes; a search makes a hundred thousand of them, `replace` takes twice as
        long."""
        return Operator(
            index=self.index,
            target=self.target,
            kind=self.kind,
            variant=self.variant,
            dtype=self.dtype,
            dims=dims,
            flop=flop,
            bytes_read=bytes_read,
            bytes_written=bytes_written,
            inputs=self.inputs,
            outputs=self.outputs,
            phase=self.phase,
            module=self.module,
            forward_index=self.forward_index,
            arguments=self.arguments,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """`count` structurally equal blocks in a row, with the operators of one of them."""

    name: str
    count: int
    modules: tuple[str, ...]
    """Module path of each instance (length `count`), or of the modules of a single stretch."""
    operators: tuple[Operator, ...]
    tensors: tuple[TensorInfo, ...]
    output_bytes: int
    """Bytes that cross from one instance to the next (all live tensors at the boundary)."""
    is_block: bool = False
    """An element of a module list (what recomputation and FSDP wrap), not a stretch between them."""
    crossing: tuple[int, ...] = ()
    """Tensors behind `output_bytes`: those alive between the first instance and what follows it."""
    passing_bytes: int = 0
    """Bytes of those that an earlier segment made (and holds), or that nothing needs for backward: neither
    does autograd keep them, nor is a block computed from them."""

    def phase(self, phase: Phase) -> tuple[Operator, ...]:
        """Operators of one phase, in execution order."""
        return tuple(op for op in self.operators if op.phase is phase)

    @property
    def parameters(self) -> tuple[TensorInfo, ...]:
        """Parameters of one instance."""
        return tuple(t for t in self.tensors if t.role is TensorRole.PARAMETER)

    @property
    def n_parameters(self) -> int:
        """Parameter count of one instance; tied parameters are counted where they first appear."""
        total = 0
        for tensor in self.parameters:
            if tensor.tied:
                continue
            size = 1
            for dim in tensor.shape:
                size *= dim
            total += size
        return total

    @property
    def saved_bytes(self) -> int:
        """Activation bytes that autograd keeps for backward, one instance."""
        return sum(t.size_bytes for t in self.tensors if t.saved and t.view_of is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGraph:
    """The whole model. Totals count every instance of every segment."""

    name: str
    micro_batch_size: int
    seq_len: int
    """Sequence length of the example inputs; 0 where the model has none."""
    segments: tuple[Segment, ...]
    traced_by: str
    """The tracer that took it, and the fallback's reason where there was one."""
    trace_time_s: float = 0.0
    tp_plan: Mapping[str, str] = field(default_factory=dict)
    """Module-path pattern -> colwise/rowwise/..., where the model brings one."""
    notes: tuple[str, ...] = ()
    example_samples: int = 0
    """Samples that a callable's example inputs hold as it makes them; 0 for other models."""

    def operators(self) -> Iterator[tuple[Segment, Operator]]:
        """Each operator of each segment once, with its segment (multiply by `segment.count`)."""
        for segment in self.segments:
            for operator in segment.operators:
                yield segment, operator

    def flop(self, phase: Phase) -> int:
        """Total FLOP of a phase."""
        return sum(s.count * op.flop for s, op in self.operators() if op.phase is phase)

    @property
    def fused_again_flop(self) -> float:
        """What fused attention's backward computes again, the scores (arXiv 2205.14135, section 3.1): one of
        its three products as wide as keys, beside two as wide as values."""
        return sum(
            s.count * op.flop * op.dims["qk_dim"] / (3.0 * op.dims["qk_dim"] + 2.0 * op.dims["v_dim"])
            for s, op in self.operators()
            if op.kind == "attention" and op.variant == "bwd"
        )

    @property
    def n_parameters(self) -> int:
        """Total parameter count (tied parameters once)."""
        return sum(s.count * s.n_parameters for s in self.segments)

    @property
    def input_bytes(self) -> int:
        """Bytes of the inputs that the first segment reads, one micro-batch."""
        tensors = self.segments[0].tensors if self.segments else ()
        return sum(t.size_bytes for t in tensors if t.role is TensorRole.INPUT and t.view_of is None)

    @property
    def saved_activation_bytes(self) -> int:
        """Total bytes that autograd keeps between forward and backward, one micro-batch."""
        return sum(s.count * s.saved_bytes for s in self.segments)

    @property
    def n_operators(self) -> int:
        """Operators executed in one training step's forward and backward."""
        return sum(s.count for s, op in self.operators() if op.phase is not Phase.OPTIMIZER)

    @property
    def unmodelled_fraction(self) -> float:
        """Share of all bytes moved that belongs to operators of kind `unmodelled`."""
        total = unknown = 0
        for segment, op in self.operators():
            size = segment.count * (op.bytes_read + op.bytes_written)
            total += size
            unknown += size if op.kind == "unmodelled" else 0
        return unknown / total if total else 0.0
