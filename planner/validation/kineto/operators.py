"""Operator calls with their host and kernel time, and the time of every module.

An operator call is the outermost operator that the traced graph knows by name (aten::addmm inside
aten::linear), or an innermost one; what composite operators and autograd's nodes take besides is host time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from planner.validation.kineto.attribution import BACKWARD, FORWARD, RECOMPUTE, Attribution, step_at
from planner.validation.kineto.events import Event, Kind, RankTrace, is_communication, is_host_copy

__all__ = ["Call", "DeviceWork", "ModuleTime", "device_work", "module_times", "operator_calls"]


@dataclass(frozen=True, slots=True)
class Call:
    """One operator call on the host; `event`: its position among the trace's host events."""

    event: int
    name: str
    module: str
    phase: str
    step: int
    communication: bool
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """Time from call to return: on a CPU the operator's own, with an accelerator that of its dispatch."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class DeviceWork:
    """A kernel or copy with what it belongs to; `name`: of the operator that launched it, else its own."""

    event: Event
    name: str
    module: str
    phase: str
    step: int
    communication: bool


def operator_calls(trace: RankTrace, found: Attribution, known: Collection[str]) -> list[Call]:
    """Every operator call inside the steps; `known`: the graph's operators as the profiler names them."""
    children = found.nesting.children()
    covered = [False] * len(trace.host)
    calls: list[Call] = []
    for i in found.nesting.order:
        outer = found.nesting.parent[i]
        event = trace.host[i]
        covered[i] = outer >= 0 and covered[outer]
        if covered[i] or event.kind is not Kind.OPERATOR:
            continue
        communication = found.communication[i]
        if not communication:
            inside = any(trace.host[c].kind is Kind.OPERATOR for c in children.get(i, ()))
            if found.node[i] or (inside and event.name not in known):
                continue
        covered[i] = True
        if found.step[i] >= 0:
            place = (found.module[i], found.phase[i], found.step[i])
            calls.append(Call(i, event.name, *place, communication, event.start_s, event.end_s))
    return calls


def device_work(trace: RankTrace, found: Attribution, calls: list[Call]) -> tuple[list[DeviceWork], int]:
    """Kernels and copies with module, phase and step of the operator that launched them, and how many of
    them no host event launched (those are placed by time)."""
    launches = {
        e.correlation: i
        for i, e in enumerate(trace.host)
        if e.kind is Kind.LAUNCH and e.correlation is not None
    }
    operators = {
        e.external: i for i, e in enumerate(trace.host) if e.kind is Kind.OPERATOR and e.external is not None
    }
    call_at = {call.event: call for call in calls}
    work: list[DeviceWork] = []
    unlaunched = 0
    for event in trace.device:
        anchor = launches.get(event.correlation) if event.correlation is not None else None
        if anchor is None and event.external is not None:
            anchor = operators.get(event.external)
        if anchor is None:
            unlaunched += 1
            step = step_at(found.steps, event.start_s)
            if step >= 0:
                work.append(DeviceWork(event, event.name, "", "", step, is_communication(event.name)))
            continue
        if found.step[anchor] < 0:
            continue
        name, i = event.name, anchor
        while i >= 0:
            if i in call_at:
                name = call_at[i].name
                break
            i = found.nesting.parent[i]
        communication = found.communication[anchor] or is_communication(event.name)
        place = (found.module[anchor], found.phase[anchor], found.step[anchor])
        work.append(DeviceWork(event, name, *place, communication))
    return work, unlaunched


@dataclass(slots=True)
class ModuleTime:
    """Seconds of one step that belong to a module; inclusive of the modules inside it, and its own.

    Host times cover ranges and backward nodes from begin to end, each instant once; kernel times add up
    kernels. Communication is included where it runs inside the module.
    """

    forward_s: float = 0.0
    backward_s: float = 0.0
    recompute_s: float = 0.0
    forward_own_s: float = 0.0
    backward_own_s: float = 0.0
    recompute_own_s: float = 0.0
    forward_kernel_s: float = 0.0
    backward_kernel_s: float = 0.0
    recompute_kernel_s: float = 0.0


def module_times(found: Attribution, work: list[DeviceWork]) -> dict[str, ModuleTime]:
    """Module path -> its time, mean over the steps; the path "" is the whole model, what is outside all
    modules included."""
    own: dict[tuple[str, str], float] = defaultdict(float)
    for i, seconds in enumerate(found.nesting.own_s):
        if found.step[i] >= 0 and _counts(found, i):
            own[found.module[i], found.phase[i]] += seconds
    kernels: dict[tuple[str, str], float] = defaultdict(float)
    for item in work:
        if not item.communication and not is_host_copy(item.event):
            kernels[item.module, item.phase] += item.event.duration_s
    times: dict[str, ModuleTime] = defaultdict(ModuleTime)
    n = len(found.steps)
    _add(times, own, "_s", n)
    _add(times, kernels, "_kernel_s", n)
    for (path, phase), seconds in own.items():
        if phase in (FORWARD, BACKWARD, RECOMPUTE):
            name = f"{phase}_own_s"
            setattr(times[path], name, getattr(times[path], name) + seconds / n)
    return dict(sorted(times.items()))


def _counts(found: Attribution, i: int) -> bool:
    """Whether an event's own time belongs to a module: anything in a module's range or a backward node, but
    not the ranges around the whole step."""
    return found.phase[i] in (BACKWARD, RECOMPUTE) or found.in_module[i]


def _add(
    times: dict[str, ModuleTime], seconds: Mapping[tuple[str, str], float], ending: str, n_steps: int
) -> None:
    for (path, phase), value in seconds.items():
        if phase not in (FORWARD, BACKWARD, RECOMPUTE):
            continue
        name = f"{phase}{ending}"
        outer = path
        while True:
            setattr(times[outer], name, getattr(times[outer], name) + value / n_steps)
            if not outer:
                break
            outer = outer.rpartition(".")[0]
