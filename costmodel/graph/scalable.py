"""One trace for every micro-batch size: sizes are affine in the batch, so two traces give them all.

The first two sizes that are asked for are traced as they are; others follow from these two.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from costmodel.errors import TraceError
from costmodel.graph.elsewhere import BuiltElsewhere
from costmodel.graph.model_graph import ModelGraph, Operator, Segment, TensorInfo

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from costmodel.models import ModelSource

__all__ = ["GraphStore", "ScalableGraph", "scalable_graph"]

_POINTS = (2, 4)
"""Sizes that are traced where two are needed and others were not asked for. Batch 1 takes other paths through
torch (size-1 dimensions), so it is traced by itself."""


class ScalableGraph:
    """A model's graph at any micro-batch size.

    Sizes v(B) = v(x) + (v(y) - v(x)) (B - x) / (y - x) from those at two traced ones, exact integers.
    """

    def __init__(
        self, source: ModelSource, *, training: bool, attention: str, dtype: str, autocast: str = ""
    ) -> None:
        self._source = source
        self._how: dict[str, Any] = {
            "training": training,
            "attention": attention,
            "dtype": dtype,
            "autocast": autocast,
        }
        self._graphs: dict[int, ModelGraph] = {}
        self._traces: dict[int, ModelGraph] = {}
        """Those of `_graphs` that were traced."""
        self._expected: dict[int, Callable[[], ModelGraph | None]] = {}

    @property
    def untraced(self) -> tuple[int, ...]:
        """Sizes that would be traced to make any other of them."""
        known = sum(size != 1 for size in self._traces)
        return tuple(size for size in _POINTS if size not in self._traces)[: max(2 - known, 0)]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the traces made so far took for granted or could not do, each once."""
        return tuple(dict.fromkeys(note for graph in self._traces.values() for note in graph.notes))

    @property
    def expected(self) -> tuple[int, ...]:
        """Sizes that are traced elsewhere and were not asked for yet."""
        return tuple(self._expected)

    def expect(self, size: int, take: Callable[[], ModelGraph | None]) -> None:
        """This size is traced elsewhere: `take` waits for the graph, None where it was not to be had."""
        self._expected[size] = take

    def at(self, *, micro_batch_size: int) -> ModelGraph:
        """The graph for one micro-batch size, cached."""
        if micro_batch_size not in self._graphs:
            self._graphs[micro_batch_size] = self._make(micro_batch_size)
        return self._graphs[micro_batch_size]

    def elsewhere(self, size: int) -> Callable[[], ModelGraph | None] | None:
        """Have this size traced by the process that resolved the model: what waits for the graph. None where
        it was this one."""
        builder = self._source.builder
        if not isinstance(builder, BuiltElsewhere):
            return None
        return builder.traced(self._source.with_batch(size), **self._how)

    def traced(self, size: int) -> ModelGraph:
        """The graph for one micro-batch size from a trace at that size. Raises as `trace`."""
        if size not in self._traces:
            take = self._expected.pop(size, None) or self.elsewhere(size)
            graph = None if take is None else take()
            self._traces[size] = self._traced_here(size) if graph is None else graph
        return self._traces[size]

    def _traced_here(self, size: int) -> ModelGraph:
        from costmodel.graph.tracing import trace

        return trace(self._source.with_batch(size), mode=self._mode, **self._how)

    @cached_property
    def _mode(self) -> FakeTensorMode:
        from costmodel.graph.tracing import fake_mode

        return fake_mode()

    def _make(self, size: int) -> ModelGraph:
        if size == 1:
            try:
                return self.traced(size)
            except TraceError:  # a module may need two samples to train on (BatchNorm1d)
                return self._between(size, *_POINTS)
        points = [other for other in (*self._traces, *self._expected) if other != 1]
        if size in points or len(points) < 2:
            return self.traced(size)
        return self._between(size, *points[:2])

    def _between(self, size: int, *points: int) -> ModelGraph:
        low, high = (self.traced(point) for point in points)
        try:
            return _Line(*points).graph(low, high, size)
        except ValueError:  # the two traces differ in structure: the model branches on its batch
            return self.traced(size)


class GraphStore:
    """Graphs of the models used last, so that forecasters of one model on several machines trace it once."""

    def __init__(self, *, most: int = 16) -> None:
        self._most = most
        self._graphs: OrderedDict[tuple[object, ...], ScalableGraph] = OrderedDict()

    def graph(
        self, source: ModelSource, *, training: bool, attention: str, dtype: str, autocast: str = ""
    ) -> ScalableGraph:
        """As `scalable_graph`; the same one for sources that say they build the same module."""
        key = (source.identity, source.seq_len, training, attention, dtype, autocast)
        if not source.identity or key not in self._graphs:
            made = scalable_graph(
                source, training=training, attention=attention, dtype=dtype, autocast=autocast
            )
            if not source.identity:
                return made
            self._graphs[key] = made
        self._graphs.move_to_end(key)
        if len(self._graphs) > self._most:
            self._graphs.popitem(last=False)
        return self._graphs[key]


def scalable_graph(
    source: ModelSource,
    *,
    training: bool = True,
    attention: str = "as_run",
    dtype: str = "fp32",
    autocast: str = "",
) -> ScalableGraph:
    """A rescalable graph of a model; nothing is traced before the first `at`."""
    return ScalableGraph(source, training=training, attention=attention, dtype=dtype, autocast=autocast)


@dataclass(frozen=True, slots=True)
class _Line:
    """What lies on a line through two micro-batch sizes. ValueError where something does not."""

    x0: int
    x1: int

    def at(self, low: Any, high: Any, size: int) -> Any:
        if low == high:
            return low
        if isinstance(low, tuple):
            if len(low) != len(high):
                raise ValueError("shapes of different rank")
            return tuple(self.at(a, b, size) for a, b in zip(low, high, strict=True))
        value, rest = divmod((high - low) * (size - self.x0), self.x1 - self.x0)
        if rest:
            raise ValueError("a size is not affine in the batch")
        return low + value

    def graph(self, low: ModelGraph, high: ModelGraph, size: int) -> ModelGraph:
        if len(low.segments) != len(high.segments):
            raise ValueError("different segments")
        return replace(
            low,
            micro_batch_size=size,
            segments=tuple(
                self._segment(a, b, size) for a, b in zip(low.segments, high.segments, strict=True)
            ),
        )

    def _segment(self, a: Segment, b: Segment, size: int) -> Segment:
        if len(a.operators) != len(b.operators) or len(a.tensors) != len(b.tensors) or a.count != b.count:
            raise ValueError("different structure")
        return replace(
            a,
            operators=tuple(
                self._operator(x, y, size) for x, y in zip(a.operators, b.operators, strict=True)
            ),
            tensors=tuple(self._tensor(x, y, size) for x, y in zip(a.tensors, b.tensors, strict=True)),
            output_bytes=self.at(a.output_bytes, b.output_bytes, size),
            passing_bytes=self.at(a.passing_bytes, b.passing_bytes, size),
        )

    def _operator(self, a: Operator, b: Operator, size: int) -> Operator:
        if a.target != b.target or a.kind != b.kind or a.dims.keys() != b.dims.keys():
            raise ValueError("different operators")
        between = a.resized(
            dims={key: self.at(value, b.dims[key], size) for key, value in a.dims.items()},
            flop=self.at(a.flop, b.flop, size),
            bytes_read=self.at(a.bytes_read, b.bytes_read, size),
            bytes_written=self.at(a.bytes_written, b.bytes_written, size),
        )
        if a.arguments == b.arguments:
            return between
        arguments = {
            key: self.at(value, b.arguments.get(key, value), size) for key, value in a.arguments.items()
        }
        return replace(between, arguments=arguments)

    def _tensor(self, a: TensorInfo, b: TensorInfo, size: int) -> TensorInfo:
        if a.shape == b.shape and a.size_bytes == b.size_bytes:
            return a
        if sum(x != y for x, y in zip(a.shape, b.shape, strict=False)) > 1:
            raise ValueError("a size is a product of batches: every sample meets every other")
        shape, size_bytes = self.at(a.shape, b.shape, size), self.at(a.size_bytes, b.size_bytes, size)
        return replace(a, shape=shape, size_bytes=size_bytes)
