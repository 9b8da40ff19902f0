"""What a sharding rule sees of an operator, and what it returns: strategies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from costmodel.graph.model_graph import Operator
from costmodel.registry import Registry
from costmodel.sharding.placements import REPLICATED, Layout, is_even

__all__ = [
    "SHARDING_RULES",
    "Call",
    "InnerCollective",
    "Rule",
    "Strategy",
    "replicated",
    "rule_name",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerCollective:
    """A collective that an operator's sharded form needs inside itself, such as a vocabulary-wide maximum."""

    op: str
    size_bytes: int
    backward: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One way to run an operator on a mesh axis: layouts it takes and gives, and what of it is split.

    `splits` names the keys of `Operator.dims` that shrink by the axis size; empty for operators whose sizes
    follow from their tensors (memory-bound kinds). `parallel` False: every rank does the whole work.
    """

    name: str
    inputs: tuple[Layout, ...]
    outputs: tuple[Layout, ...]
    splits: tuple[str, ...] = ()
    parallel: bool = True
    collectives: tuple[InnerCollective, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """An operator with the shapes of its tensors and the axis it is to be split over.

    `packed_in`, `packed_out` hold the chunk counts above one that neighbours offer or want, per tensor and
    dimension: (position, dim) -> chunks. `uneven` are dimension sizes to be cut unevenly (vocabularies).
    """

    op: Operator
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    n: int
    packed_in: Mapping[tuple[int, int], frozenset[int]] = field(default_factory=dict)
    packed_out: Mapping[tuple[int, int], frozenset[int]] = field(default_factory=dict)
    uneven: frozenset[int] = frozenset()

    def cuts(self, shape: tuple[int, ...], dim: int, chunks: int = 1) -> bool:
        """Whether the dimension can be sharded over the axis in that many pieces."""
        size = shape[dim]
        return is_even(size, chunks, self.n) or (chunks == 1 and size in self.uneven and size > self.n)

    def options(self, *, i: int | None = None, o: int | None = None, dim: int) -> list[int]:
        """Chunk counts that an input's or output's dimension can be sharded with, plain first."""
        shape = self.inputs[i] if i is not None else self.outputs[o or 0]
        known = self.packed_in.get((i, dim)) if i is not None else self.packed_out.get((o or 0, dim))
        return [c for c in (1, *sorted(known or ())) if self.cuts(shape, dim, c)]

    def both_options(self, i: int, i_dim: int, o: int, o_dim: int) -> list[int]:
        """Chunk counts for a dimension that passes unchanged from input to output."""
        return sorted({*self.options(i=i, dim=i_dim), *self.options(o=o, dim=o_dim)})

    def argument(self, name: str) -> int | tuple[int, ...] | None:
        """An integer argument of the call, where the graph has it."""
        return self.op.arguments.get(name)

    def dim_argument(self, name: str, rank: int) -> int | None:
        """A dimension argument, counted from the front."""
        value = self.argument(name)
        return value % rank if isinstance(value, int) and rank else None


Rule = Callable[[Call], Iterable[Strategy]]

SHARDING_RULES: Registry[Rule] = Registry("sharding rule")


def rule_name(target: str) -> str:
    """Operator name without overload: 'aten.mm.default', 'aten::mm' and 'torch.ops.aten.mm' are 'aten.mm'."""
    parts = target.replace("torch.ops.", "").replace("::", ".").split(".")
    return ".".join(parts[:2])


def replicated(call: Call) -> Strategy:
    """The strategy every operator has: whole tensors in and out, every rank does the same."""
    return Strategy(
        name="replicated",
        inputs=(REPLICATED,) * len(call.inputs),
        outputs=(REPLICATED,) * len(call.outputs),
        parallel=False,
    )
