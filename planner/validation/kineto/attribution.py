"""Module, phase and step of every host event.

A forward operator belongs to the innermost module range around it. A backward node belongs to the module of
the forward operator that made it: by the profiler's forward-backward arrow, else by autograd's sequence
number (of the operators with a number the one that began last, as the profiler draws its arrows).
Accumulation of gradients has no forward operator: it belongs to the node evaluated before it, as in the
traced graph. What runs inside a backward node belongs to it, but for module ranges in there (and, where the
plan recomputes, operators that make nodes of their own): those are recomputation.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.validation.kineto.events import Event, Kind, RankTrace, is_communication
from planner.validation.kineto.nesting import Nesting, nest
from planner.validation.kineto.reader import CLASS_RANGE
from planner.validation.kineto.recording import STEP_RANGE

__all__ = [
    "BACKWARD",
    "FORWARD",
    "OPTIMIZER",
    "OTHER",
    "RECOMPUTE",
    "Attribution",
    "attribute",
    "step_at",
    "steps_of",
]

FORWARD, BACKWARD, RECOMPUTE, OPTIMIZER, OTHER = "forward", "backward", "recompute", "optimizer", "other"
_EVALUATE = "autograd::engine::evaluate_function"
_ACCUMULATE = "torch::autograd::AccumulateGrad"
_UPDATE = "Optimizer.step#"
_OPTIMIZER = ("foreshard::optimizer", _UPDATE)
_CLEARING = ("foreshard::zero_grad", "Optimizer.zero_grad#")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Per host event: `module` path, `phase`, whether it is communication, number of its step (-1: outside).

    `in_module`: whether it is an operator or lies in one or in a module's range, rather than around them.
    `node`: whether it is autograd's own event, around the operators of a backward node. `forward_of`: for
    backward nodes the position of their forward operator.
    """

    nesting: Nesting
    module: tuple[str, ...]
    phase: tuple[str, ...]
    communication: tuple[bool, ...]
    in_module: tuple[bool, ...]
    node: tuple[bool, ...]
    step: tuple[int, ...]
    forward_of: Mapping[int, int]
    steps: tuple[tuple[float, float], ...]
    """(start, end) of each step, seconds."""
    steps_by: str
    """What marks the steps."""


def steps_of(trace: RankTrace) -> tuple[list[tuple[float, float]], str]:
    """(start, end) of every step and what marks them: ProfilerStep ranges, ends of updates, or nothing (then
    the whole trace is one step)."""
    marks = [e for e in trace.host if e.kind is Kind.RANGE and e.name.startswith(STEP_RANGE)]
    if marks:
        return sorted((e.start_s, e.end_s) for e in marks), "ProfilerStep ranges"
    every = (*trace.host, *trace.device)
    begin, end = min(e.start_s for e in every), max(e.end_s for e in every)
    updates = sorted(e.end_s for e in trace.host if e.kind is Kind.RANGE and e.name.startswith(_UPDATE))
    if updates:
        return list(zip([begin, *updates[:-1]], updates, strict=True)), "ends of Optimizer.step"
    return [(begin, end)], "nothing: the whole trace is taken as one step"


def step_at(steps: Sequence[tuple[float, float]], time_s: float) -> int:
    """Number of the step that a time lies in, -1 outside all."""
    i = bisect_right(steps, time_s, key=lambda step: step[0]) - 1
    return i if i >= 0 and time_s < steps[i][1] else -1


def attribute(
    trace: RankTrace,
    *,
    names: Mapping[str, str] | None = None,
    assigned: Mapping[int, str] | None = None,
    recomputes: bool = False,
) -> Attribution:
    """Attribute every host event of a trace.

    `names`: module paths of the class names in `nn.Module: Linear_0` ranges; ranges without one are looked
    through. `assigned`: modules of forward operators (by position) in a trace without module ranges.
    `recomputes`: whether forwards run again inside backward.
    """
    return _Walk(trace, names or {}, assigned or {}, recomputes).attribution()


class _Walk:
    def __init__(
        self, trace: RankTrace, names: Mapping[str, str], assigned: Mapping[int, str], recomputes: bool
    ) -> None:
        self.host, self.links = trace.host, trace.links
        self.names, self.assigned, self.recomputes = names, assigned, recomputes
        self.nesting = nest(trace.host)
        n = len(trace.host)
        self.module = [""] * n
        self.phase = [FORWARD] * n
        self.communication = [False] * n
        self.in_module = [False] * n
        self.node = [False] * n
        self.forward_of: dict[int, int] = {}
        self.steps, self.steps_by = steps_of(trace)

    def attribution(self) -> Attribution:
        """Forward first, on all threads, then what needs to know it."""
        backward = self._forward()
        self._join(backward)
        self._backward(backward)
        return Attribution(
            nesting=self.nesting,
            module=tuple(self.module),
            phase=tuple(self.phase),
            communication=tuple(self.communication),
            in_module=tuple(self.in_module),
            node=tuple(self.node),
            step=tuple(step_at(self.steps, event.start_s) for event in self.host),
            forward_of=self.forward_of,
            steps=tuple(self.steps),
            steps_by=self.steps_by,
        )

    def _forward(self) -> set[int]:
        """Attribute what is not backward; returns the positions of what is."""
        backward: set[int] = set()
        for i in self.nesting.order:
            event, outer = self.host[i], self.nesting.parent[i]
            if outer in backward or _is_node(event):
                backward.add(i)
                continue
            self._inherit(i, outer)
            if event.kind is Kind.MODULE:
                self.module[i] = self._path(event, self.module[i])
            elif event.kind is Kind.RANGE and event.name.startswith(_OPTIMIZER):
                self.phase[i], self.module[i] = OPTIMIZER, ""
            elif event.kind is Kind.RANGE and event.name.startswith(_CLEARING):
                self.phase[i] = OTHER
            elif i in self.assigned:
                self.module[i] = self.assigned[i]
        return backward

    def _inherit(self, i: int, outer: int) -> None:
        if outer >= 0:
            self.module[i], self.phase[i] = self.module[outer], self.phase[outer]
            self.communication[i], self.in_module[i] = self.communication[outer], self.in_module[outer]
        self.communication[i] |= is_communication(self.host[i].name)
        self.in_module[i] |= self.host[i].kind in (Kind.MODULE, Kind.OPERATOR)

    def _path(self, event: Event, otherwise: str) -> str:
        if event.name.startswith(CLASS_RANGE):
            return self.names.get(event.name, otherwise)
        return event.name

    def _join(self, backward: set[int]) -> None:
        """The forward operator of every backward node."""
        drawn = {
            (self.host[i].forward_thread, self.host[i].sequence): forward for i, forward in self.links.items()
        }
        newest: dict[int, int] = {}
        for i in self.nesting.order:
            sequence = self.host[i].sequence
            if i in backward or sequence is None:
                continue
            before = newest.get(sequence)
            if before is None or self.host[i].start_s >= self.host[before].start_s:
                newest[sequence] = i
        for i in backward:
            event = self.host[i]
            if event.sequence is None or not event.forward_thread:
                continue
            key = (event.forward_thread, event.sequence)
            forward = self.links.get(i, drawn.get(key, newest.get(event.sequence)))
            if forward is not None and forward not in backward:
                self.forward_of[i] = forward
        for i in self.nesting.order:  # an evaluation without a number has its node's
            outer = self.nesting.parent[i]
            if i in self.forward_of and outer in backward and _is_node(self.host[outer]):
                self.forward_of.setdefault(outer, self.forward_of[i])

    def _backward(self, backward: set[int]) -> None:
        last: dict[int, str] = {}
        for i in self.nesting.order:
            if i not in backward:
                continue
            event, outer = self.host[i], self.nesting.parent[i]
            self._inherit(i, outer)
            inside = outer in backward
            if _is_node(event):
                self.node[i] = True
                self.phase[i] = BACKWARD
                if i in self.forward_of:
                    self.module[i] = self.module[self.forward_of[i]]
                elif not inside:
                    self.module[i] = last.get(event.thread, "")
                last[event.thread] = self.module[i]
            elif event.kind is Kind.MODULE:
                self.phase[i] = RECOMPUTE
                self.module[i] = self._path(event, self.module[i])
            elif (
                self.recomputes and event.sequence is not None
            ):  # it makes a node of its own: a forward, run again
                self.phase[i] = RECOMPUTE
            elif not inside:
                self.phase[i] = BACKWARD


def _is_node(event: Event) -> bool:
    """Whether an event is autograd's own: a backward node or its evaluation."""
    if event.kind is not Kind.OPERATOR:
        return False
    return bool(event.forward_thread) or event.name.startswith((_EVALUATE, _ACCUMULATE))
