"""Operators without a rule: of cost (priced by their bytes) or of sharding (whole on every rank)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.graph.model_graph import Operator, Phase
from costmodel.sharding.strategies import has_rule, rule_name

if TYPE_CHECKING:
    from costmodel.graph.model_graph import ModelGraph, Segment
    from costmodel.predict.segment_costs import Kernels

__all__ = [
    "WithoutRule",
    "cost_notes",
    "sharding_notes",
    "unmodelled_bytes",
    "without_cost",
    "without_sharding",
]

_WORTH_A_NOTE = 1e-3
"""Least share of the device's time at which work that every rank does whole is worth a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutRule:
    """Calls of one operator in one micro-batch, on one rank of the whole model."""

    operator: str
    calls: int
    time_fraction: float
    """Share of the time of all kernels, on the device."""

    def to_dict(self) -> dict[str, Any]:
        """Plain fields."""
        return {"operator": self.operator, "calls": self.calls, "time_fraction": self.time_fraction}


def without_cost(segments: Sequence[Segment], kernels: Sequence[Kernels]) -> tuple[WithoutRule, ...]:
    """Operators that no cost rule knows, longest first. `kernels`: of each segment's operators."""
    return _summed(segments, kernels, lambda op: op.kind == "unmodelled")


def without_sharding(segments: Sequence[Segment], kernels: Sequence[Kernels]) -> tuple[WithoutRule, ...]:
    """Forward operators that do some work and that no sharding rule knows, longest first."""
    return _summed(segments, kernels, _unsplit)


def _unsplit(op: Operator) -> bool:
    return op.phase is Phase.FORWARD and op.kind != "host" and not has_rule(op.target)


def _summed(
    segments: Sequence[Segment], kernels: Sequence[Kernels], chosen: Callable[[Operator], bool]
) -> tuple[WithoutRule, ...]:
    if not any(chosen(op) for segment in segments for op in segment.operators):
        return ()
    total_s = 0.0
    calls, seconds = Counter[str](), defaultdict[str, float](float)
    for segment, made in zip(segments, kernels, strict=True):
        total_s += segment.count * float(made.priced.device_s.sum())
        for op in segment.operators:
            calls[rule_name(op.target)] += segment.count * chosen(op)
        for op, device_s in zip(made.operators, made.priced.device_s.tolist(), strict=True):
            seconds[rule_name(op.target)] += segment.count * device_s * chosen(op)
    return tuple(
        WithoutRule(operator=name, calls=n, time_fraction=seconds[name] / total_s if total_s else 0.0)
        for name, n in sorted(calls.items(), key=lambda item: (-seconds[item[0]], item[0]))
        if n
    )


def unmodelled_bytes(graph: ModelGraph) -> tuple[tuple[str, int, float], ...]:
    """(operator, calls, share of all bytes moved) of what no cost rule knows, most bytes first."""
    total = 0
    calls, moved = Counter[str](), Counter[str]()
    for segment, op in graph.operators():
        size = segment.count * (op.bytes_read + op.bytes_written)
        total += size
        if op.kind == "unmodelled":
            calls[rule_name(op.target)] += segment.count
            moved[rule_name(op.target)] += size
    return tuple((name, calls[name], size / total if total else 0.0) for name, size in moved.most_common())


def cost_notes(found: Sequence[WithoutRule]) -> tuple[str, ...]:
    """A line where operators are priced without a rule of their own."""
    return (f"no cost rule, priced by the bytes they move: {_named(found)}",) if found else ()


def sharding_notes(found: Sequence[WithoutRule], tp: int) -> tuple[str, ...]:
    """A line where what every tensor-parallel rank does whole takes time that shows."""
    if tp == 1 or sum(one.time_fraction for one in found) < _WORTH_A_NOTE:
        return ()
    return (f"no sharding rule, whole on each of {tp} tensor-parallel ranks: {_named(found)}",)


def _named(found: Iterable[WithoutRule]) -> str:
    names = [f"{one.operator} ({one.calls} calls)" for one in found]
    share = sum(one.time_fraction for one in found)
    return f"{', '.join(names)}; {share:.2%} of the device's time"
