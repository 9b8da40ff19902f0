"""ShardedGraph: what one rank of a tensor/context/expert-parallel group runs, holds and communicates."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from costmodel.graph.model_graph import ModelGraph, Phase, Segment, TensorRole
from costmodel.sharding.placements import Placement, Replicate
from costmodel.sharding.solver import Assignment

__all__ = ["CollectiveCall", "LocalParameter", "ShardedGraph", "ShardedSegment", "unsharded_segment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveCall:
    """One collective of one instance of a segment, per micro-batch.

    `op` is a name of `costmodel.hardware.kinds.COLLECTIVE_KINDS`, `size_bytes` follows nccl-tests. `what` is
    activation, boundary, inner (inside an operator), parameter (gather of a weight) or gradient (of a
    parameter: once per step where gradients accumulate locally).
    """

    op: str
    size_bytes: int
    n_ranks: int
    axis: str
    """tp, cp or ep; on a mesh one of `sharding.mesh`'s axes."""
    phase: Phase
    after_operator: int
    """`Operator.index` it follows; -1: before the first operator of its phase."""
    module: str
    what: str = "activation"
    overlapped: bool = False
    """Runs beside computation by construction (ring exchange of keys and values)."""
    copies: int = 1
    """Rows of the same token among those it sends, to different experts."""
    row_bytes: int = 0
    """Bytes of one of those rows."""
    tensor: int = -1
    """Tensor of the segment that it moves, where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalParameter:
    """A parameter's part on one rank."""

    name: str
    tensor: int
    shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    placement: Placement
    size_bytes: int
    local_bytes: int
    axis: str = "tp"
    tied: bool = False
    """Owned by another segment; this one only uses it."""
    frozen: bool = False
    """Not trained: no gradient, no update."""
    unused: bool = False
    """Trained, but no gradient reaches it."""

    @property
    def is_sharded(self) -> bool:
        """Whether the rank holds less than the whole."""
        return not isinstance(self.placement, Replicate)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedSegment:
    """A segment on one rank: `local` is the segment with local operators and tensor sizes."""

    local: Segment
    collectives: tuple[CollectiveCall, ...]
    parameters: tuple[LocalParameter, ...]
    assignment: Assignment | None = None
    """The choice behind it (None where nothing is split)."""

    @property
    def name(self) -> str:
        """Name of the segment."""
        return self.local.name

    @property
    def count(self) -> int:
        """Instances in a row."""
        return self.local.count

    @property
    def parameter_bytes(self) -> int:
        """Parameters of one instance on the rank, as stored (tied ones where they are owned)."""
        return sum(p.local_bytes for p in self.parameters if not p.tied)

    @property
    def saved_bytes(self) -> int:
        """Activations kept for backward on the rank, one instance."""
        return self.local.saved_bytes

    @property
    def output_bytes(self) -> int:
        """Bytes of the rank that cross to the next instance (or pipeline stage)."""
        return self.local.output_bytes

    def phase(self, phase: Phase) -> tuple[CollectiveCall, ...]:
        """Collectives of one phase, in order."""
        return tuple(c for c in self.collectives if c.phase is phase)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedGraph:
    """A model graph on one rank of the group."""

    graph: ModelGraph
    """The whole model, unsharded."""
    segments: tuple[ShardedSegment, ...]
    tp: int = 1
    cp: int = 1
    ep: int = 1
    sequence_parallel: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def local(self) -> ModelGraph:
        """The rank's part as a ModelGraph, for what reads one (memory, operator tables)."""
        return replace(
            self.graph,
            segments=tuple(s.local for s in self.segments),
            notes=(*self.graph.notes, *self.notes),
        )

    @property
    def parameter_bytes(self) -> int:
        """Parameters on the rank."""
        return sum(s.count * s.parameter_bytes for s in self.segments)

    @property
    def sharded_fraction(self) -> float:
        """Share of parameter bytes that is split."""
        total = sum(s.count * p.size_bytes for s in self.segments for p in s.parameters)
        split = sum(s.count * p.size_bytes for s in self.segments for p in s.parameters if p.is_sharded)
        return split / total if total else 0.0


def unsharded_segment(segment: Segment) -> ShardedSegment:
    """The segment as it is: every parameter whole, no collective."""
    return ShardedSegment(
        local=segment,
        collectives=(),
        parameters=tuple(
            LocalParameter(
                name=t.name,
                tensor=t.index,
                shape=t.shape,
                local_shape=t.shape,
                placement=Replicate(),
                size_bytes=t.size_bytes,
                local_bytes=t.size_bytes,
                tied=t.tied,
                frozen=t.frozen,
                unused=t.unused,
            )
            for t in segment.tensors
            if t.role is TensorRole.PARAMETER
        ),
    )
