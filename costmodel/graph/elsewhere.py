"""A second process that resolves a model and traces it, while this one gets ready for the graph.

torch and the libraries of models take longer to import than a model takes to trace, and what is done with a
graph needs none of them. A process that starts a `Tracer` before it imports torch can do without them: it is
given graphs, and builds a model itself only where something else is asked of it. Graphs and errors are those
that it would have met itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from costmodel.errors import ForeshardError
from costmodel.forked import Forked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from costmodel.graph.model_graph import ModelGraph
    from costmodel.graph.scalable import ScalableGraph
    from costmodel.models import ModelSource
    from costmodel.models.source import BuiltModel

__all__ = ["BuiltElsewhere", "Tracer"]

_PATIENCE_S = 600.0
"""A tracer that is silent for longer is given up, and its work done here."""


class Tracer:
    """The second process; use it in a `with` block, whose end ends the process.

    Where it is not `wanted` (by a process that has torch already) or cannot be, all is done here.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._other: Forked[_Workshop] = Forked(
            _Workshop(),
            wanted=wanted,
            name="tracer",
            silent=False,
            patience_s=_PATIENCE_S,
        )
        self._other.ask(_get_ready, None)

    def __enter__(self) -> Tracer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._other.renew()

    def resolve(self, argument: str, **how: Any) -> ModelSource:
        """As `costmodel.models.resolve`; the model is built here only where more than its graph is wanted."""
        from costmodel.models import resolve

        answer = _answer(self._other.ask(_resolved, (argument, how))())
        if answer is None:
            return resolve(argument, **how)
        number: int = answer[0]
        source: ModelSource = answer[1]
        return replace(source, builder=BuiltElsewhere(self, number, argument, how))

    def ask(
        self, number: int, source: ModelSource, how: Mapping[str, Any]
    ) -> Callable[[], ModelGraph | None]:
        """Have the source of this number traced. Returns what waits for the graph, or gives None where there
        is none; it raises what the trace does."""
        asked = _Asked(
            number=number,
            micro_batch_size=source.micro_batch_size,
            seq_len=source.seq_len,
            how=tuple(sorted(how.items())),
        )
        take = self._other.ask(_traced, asked)
        return lambda: _answer(take())


def _answer(found: Any) -> Any:
    if isinstance(found, ForeshardError):
        raise found
    return found


class BuiltElsewhere:
    """The builder of a source that a `Tracer` resolved. Called, it builds the model here."""

    def __init__(self, tracer: Tracer, number: int, argument: str, how: Mapping[str, Any]) -> None:
        self._tracer, self._number = tracer, number
        self._argument, self._how = argument, how

    def __call__(self, batch: int, seq_len: int) -> BuiltModel:
        return self._source.builder(batch, seq_len)

    @cached_property
    def _source(self) -> ModelSource:
        from costmodel.models import resolve

        return resolve(self._argument, **self._how)

    def traced(self, source: ModelSource, **how: Any) -> Callable[[], ModelGraph | None]:
        """Have `source` (this one, at any size) traced, as of `costmodel.graph.trace`. Returns what waits for
        the graph, or gives None where there is none."""
        return self._tracer.ask(self._number, source, how)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A graph: of which of the sources resolved so far, and how."""

    number: int
    micro_batch_size: int
    seq_len: int
    how: tuple[tuple[str, Any], ...]


@dataclass
class _Workshop:
    """What the other process has made."""

    sources: list[ModelSource] = field(default_factory=list)
    graphs: dict[_Asked, ScalableGraph] = field(default_factory=dict)


def _get_ready(workshop: _Workshop, _: None) -> None:
    import costmodel.graph.tracing  # noqa: F401


def _resolved(
    workshop: _Workshop, asked: tuple[str, dict[str, Any]]
) -> tuple[int, ModelSource] | ForeshardError:
    from costmodel.models import resolve

    argument, how = asked
    try:
        source = resolve(argument, **how)
    except ForeshardError as error:
        return error
    workshop.sources.append(source)
    return len(workshop.sources) - 1, replace(source, builder=_left_behind)


def _left_behind(batch: int, seq_len: int) -> NoReturn:
    raise AssertionError("the builder stays in its process")


def _traced(workshop: _Workshop, asked: _Asked) -> ModelGraph | ForeshardError:
    from costmodel.graph.scalable import scalable_graph

    of_any_batch = replace(asked, micro_batch_size=0)
    if of_any_batch not in workshop.graphs:
        source = replace(workshop.sources[asked.number], seq_len=asked.seq_len)
        workshop.graphs[of_any_batch] = scalable_graph(source, **dict(asked.how))
    try:
        return workshop.graphs[of_any_batch].traced(asked.micro_batch_size)
    except ForeshardError as error:
        return error
