"""What must cross each cut of a model: tensors made before it and needed after it, skips among them.

Units are the instances of a graph's segments in forward order. A tensor crosses every cut between the unit
that makes it and the last unit that reads it. A pipeline hands tensors on in one of two ways:

    relay    each stage gets all that later stages need and passes on what it does not use itself: what
             crosses a cut is all that lives there (the forecasts' way)
    direct   the stage that makes a tensor sends it to every later stage that reads it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from costmodel.graph.model_graph import Phase, TensorRole

if TYPE_CHECKING:
    from costmodel.graph.model_graph import ModelGraph, Segment

__all__ = ["Crossing", "crossings", "cut_bytes", "direct_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """A tensor that another unit than its maker's needs."""

    name: str
    made_by: int
    """Unit that makes it."""
    used_by: tuple[int, ...]
    """Later units that read it, in order."""
    size_bytes: int


def crossings(graph: ModelGraph) -> tuple[Crossing, ...]:
    """Every tensor that crosses a cut, by maker. Sizes: the whole model's, one micro-batch.

    Of a segment that stands for several instances only the last one's tensors are known. What it makes, the
    others make alike for the next one; what it reads from before the segment, all of them read, but for the
    one tensor that stands where its neighbour's output would; what nothing known reads, the first one does.
    """
    segments = graph.segments
    first = list(accumulate((segment.count for segment in segments), initial=0))
    maker: dict[int, int] = {}
    for k, segment in enumerate(segments):
        for t in _outputs(segment):
            maker.setdefault(t, k)
    sizes = {t.index: (t.name, t.size_bytes) for segment in segments for t in segment.tensors}
    found: list[Crossing] = []
    for k, segment in enumerate(segments):
        for t in segment.crossing:
            if maker[t] != k:
                continue
            name, size = sizes[t]
            last = first[k + 1] - 1
            for unit in range(first[k], last):
                found.append(Crossing(name=name, made_by=unit, used_by=(unit + 1,), size_bytes=size))
            users = tuple(_users(segments, first, maker, k, t))
            found.append(Crossing(name=name, made_by=last, used_by=users, size_bytes=size))
    return tuple(sorted(found, key=lambda c: (c.made_by, c.used_by[-1])))


def _users(
    segments: Sequence[Segment], first: Sequence[int], maker: Mapping[int, int], k: int, tensor: int
) -> Iterator[int]:
    """Units after segment k that read a tensor it makes."""
    for later in range(k + 1, len(segments)):
        segment = segments[later]
        lives_on = tensor in segment.crossing
        handed_on = later == k + 1 and not lives_on and _is_handed_on(segment, maker, later, tensor)
        if tensor in _read(segment) and not handed_on:
            yield from range(first[later], first[later + 1])
        elif not lives_on:
            yield first[later]
        if not lives_on:
            return


def _is_handed_on(segment: Segment, maker: Mapping[int, int], k: int, tensor: int) -> bool:
    """Whether an instance reads this tensor where all but the first read their neighbour's output."""
    sizes = {t.index: t.size_bytes for t in segment.tensors}
    read = _read(segment)
    made = [sizes[t] for t in segment.crossing if maker[t] == k]
    activations = {t.index for t in segment.tensors if t.role is TensorRole.ACTIVATION}
    of_neighbour = [sizes[t] for t in read & activations if t not in maker]
    return tensor in read and made.count(sizes[tensor]) > of_neighbour.count(sizes[tensor])


def _outputs(segment: Segment) -> set[int]:
    return {index for op in segment.phase(Phase.FORWARD) for index in op.outputs}


def _read(segment: Segment) -> set[int]:
    """What its forward reads; of a view the tensor behind it."""
    views = {t.index: t.view_of for t in segment.tensors if t.view_of is not None}
    return {views.get(index, index) for op in segment.phase(Phase.FORWARD) for index in op.inputs}


def cut_bytes(tensors: Sequence[Crossing], n_units: int) -> list[int]:
    """[n_units - 1]: bytes alive across the cut after each unit."""
    sizes = [0] * (n_units - 1)
    for tensor in tensors:
        for cut in range(tensor.made_by, tensor.used_by[-1]):
            sizes[cut] += tensor.size_bytes
    return sizes


def direct_bytes(tensors: Sequence[Crossing], starts: Sequence[int]) -> dict[tuple[int, int], int]:
    """(from stage, to stage) -> bytes, where every stage that reads a tensor gets it from its maker, once.

    `starts`: first unit of each stage.
    """

    def stage_of(unit: int) -> int:
        return sum(start <= unit for start in starts) - 1

    sent: dict[tuple[int, int], int] = {}
    for tensor in tensors:
        source = stage_of(tensor.made_by)
        for target in sorted({stage_of(unit) for unit in tensor.used_by} - {source}):
            sent[source, target] = sent.get((source, target), 0) + tensor.size_bytes
    return dict(sorted(sent.items()))
