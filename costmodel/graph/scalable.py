"""One trace for every micro-batch size: sizes are affine in the batch, so two traces give them all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from costmodel.errors import TraceError
from costmodel.graph.model_graph import ModelGraph, Operator, Segment, TensorInfo
from costmodel.graph.tracing import fake_mode, trace

if TYPE_CHECKING:
    from costmodel.models import ModelSource

__all__ = ["GraphStore", "ScalableGraph", "scalable_graph"]

_POINTS = (2, 4)
"""Batch 1 takes other paths through torch (size-1 dimensions), so it is traced by itself."""


class ScalableGraph:
    """A model's graph at any micro-batch size. Sizes v(B) = v2 + (v4 - v2) (B - 2) / 2, exact integers."""

    def __init__(
        self, source: ModelSource, *, training: bool, attention: str, dtype: str, autocast: str = ""
    ) -> None:
        self._source = source
        self._training = training
        self._attention = attention
        self._dtype = dtype
        self._autocast = autocast
        self._graphs: dict[int, ModelGraph] = {}
        self._mode = fake_mode()
        self._expected: dict[int, Callable[[], ModelGraph | None]] = {}

    @property
    def untraced(self) -> tuple[int, ...]:
        """Sizes out of those that any other is made of whose trace is still to be taken."""
        return tuple(size for size in _POINTS if size not in self._graphs)

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

    def _traced(self, size: int) -> ModelGraph:
        take = self._expected.pop(size, None)
        if take is not None and (graph := take()) is not None:
            self._graphs.setdefault(size, graph)
        if size not in self._graphs:
            self._graphs[size] = trace(
                self._source.with_batch(size),
                training=self._training,
                attention=self._attention,
                dtype=self._dtype,
                autocast=self._autocast,
                mode=self._mode,
            )
        return self._graphs[size]

    def _make(self, size: int) -> ModelGraph:
        if size == 1:
            try:
                return self._traced(size)
            except TraceError:  # a module may need two samples to train on (BatchNorm1d)
                return self._between(size)
        if size in _POINTS:
            return self._traced(size)
        return self._between(size)

    def _between(self, size: int) -> ModelGraph:
        low, high = (self._traced(point) for point in _POINTS)
        try:
            return _interpolated(low, high, size)
        except ValueError:  # the two traces differ in structure: the model branches on its batch
            return self._traced(size)


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


def _line(low: Any, high: Any, size: int) -> Any:
    if low == high:
        return low
    if isinstance(low, tuple):
        if len(low) != len(high):
            raise ValueError("shapes of different rank")
        return tuple(_line(a, b, size) for a, b in zip(low, high, strict=True))
    x0, x1 = _POINTS
    value, rest = divmod((high - low) * (size - x0), x1 - x0)
    if rest:
        raise ValueError("a size is not affine in the batch")
    return low + value


def _interpolated(low: ModelGraph, high: ModelGraph, size: int) -> ModelGraph:
    if len(low.segments) != len(high.segments):
        raise ValueError("different segments")
    return replace(
        low,
        micro_batch_size=size,
        segments=tuple(_segment(a, b, size) for a, b in zip(low.segments, high.segments, strict=True)),
    )


def _segment(a: Segment, b: Segment, size: int) -> Segment:
    if len(a.operators) != len(b.operators) or len(a.tensors) != len(b.tensors) or a.count != b.count:
        raise ValueError("different structure")
    return replace(
        a,
        operators=tuple(_operator(x, y, size) for x, y in zip(a.operators, b.operators, strict=True)),
        tensors=tuple(_tensor(x, y, size) for x, y in zip(a.tensors, b.tensors, strict=True)),
        output_bytes=_line(a.output_bytes, b.output_bytes, size),
        passing_bytes=_line(a.passing_bytes, b.passing_bytes, size),
    )


def _operator(a: Operator, b: Operator, size: int) -> Operator:
    if a.target != b.target or a.kind != b.kind or a.dims.keys() != b.dims.keys():
        raise ValueError("different operators")
    between = a.resized(
        dims={key: _line(value, b.dims[key], size) for key, value in a.dims.items()},
        flop=_line(a.flop, b.flop, size),
        bytes_read=_line(a.bytes_read, b.bytes_read, size),
        bytes_written=_line(a.bytes_written, b.bytes_written, size),
    )
    if a.arguments == b.arguments:
        return between
    arguments = {key: _line(value, b.arguments.get(key, value), size) for key, value in a.arguments.items()}
    return replace(between, arguments=arguments)


def _tensor(a: TensorInfo, b: TensorInfo, size: int) -> TensorInfo:
    if a.shape == b.shape and a.size_bytes == b.size_bytes:
        return a
    if sum(x != y for x, y in zip(a.shape, b.shape, strict=False)) > 1:
        raise ValueError("a size is a product of batches: every sample meets every other")
    return replace(a, shape=_line(a.shape, b.shape, size), size_bytes=_line(a.size_bytes, b.size_bytes, size))
