"""Module paths for traces that do not say them.

With `with_stack` the profiler names module calls by class and number ("nn.Module: Linear_3"): in order of
their first calls they are matched with the modules that a forward of the model calls. Without it, the
forward's operators are matched with the traced graph's, in order: both are what torch's dispatcher ran for
the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from planner.validation.kineto.attribution import BACKWARD, FORWARD
from planner.validation.kineto.events import Kind, RankTrace
from planner.validation.kineto.operators import Call
from planner.validation.kineto.reader import CLASS_RANGE

if TYPE_CHECKING:
    from costmodel.models import ModelSource

__all__ = ["align", "align_forward", "called_modules", "class_paths", "names_classes", "names_modules"]


def names_modules(trace: RankTrace) -> bool:
    """Whether the trace names its modules by path."""
    return any(e.kind is Kind.MODULE and not e.name.startswith(CLASS_RANGE) for e in trace.host)


def names_classes(trace: RankTrace) -> bool:
    """Whether the trace names its modules by class and number."""
    return any(e.kind is Kind.MODULE and e.name.startswith(CLASS_RANGE) for e in trace.host)


def called_modules(source: ModelSource) -> list[tuple[str, str]]:
    """(path, class) of every module that a forward of the model calls, by first calls; no weights."""
    from torch import nn
    from torch._subclasses.fake_tensor import FakeTensorMode

    found: dict[str, str] = {}

    with FakeTensorMode(allow_non_fake_inputs=True):
        built = source.build(device="cpu")
        paths = {id(module): path for path, module in built.module.named_modules()}

        def note(module: nn.Module, args: Any) -> None:
            if id(module) in paths:
                found.setdefault(paths[id(module)], type(module).__name__)

        hook = nn.modules.module.register_module_forward_pre_hook(note)
        try:
            built.module(*built.args, **built.kwargs)
        finally:
            hook.remove()
    return list(found.items())


def class_paths(trace: RankTrace, called: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Name of a module range ("nn.Module: Linear_3") -> path, as far as first calls come in the same order.

    Wrappers that the model itself does not have (DistributedDataParallel) are left out.
    """
    events = [e for e in trace.host if e.kind is Kind.MODULE and e.name.startswith(CLASS_RANGE)]
    names = list(dict.fromkeys(e.name for e in sorted(events, key=lambda e: (e.start_s, -e.end_s))))
    classes = [name.removeprefix(CLASS_RANGE).rpartition("_")[0] for name in names]
    matcher = SequenceMatcher(None, [kind for _, kind in called], classes, autojunk=False)
    return {
        names[block.b + i]: called[block.a + i][0]
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    }


def align_forward(calls: Sequence[Call], expected: Sequence[tuple[str, str]]) -> tuple[dict[int, str], float]:
    """Position of forward operators -> module, and the share of them that the graph has in the same order.

    `expected`: (operator, module) of one micro-batch's forward. Forwards are the runs of forward calls
    between backwards and steps; one that holds several micro-batches is matched with as many forwards.
    Operators that the graph does not know go with the one before them.
    """
    assigned: dict[int, str] = {}
    operators = {name for name, _ in expected}
    known: dict[tuple[str, ...], tuple[list[str], int]] = {}
    matched = total = 0
    for run in _forward_runs(calls):
        names = tuple(call.name for call in run if call.name in operators)
        if names not in known:
            times = max(1, round(len(names) / max(1, len(expected))))
            known[names] = align(names, list(expected) * times)
        modules, n_equal = known[names]
        matched += n_equal
        total += len(names)
        following = iter(modules)
        module = modules[0] if modules else ""
        for call in run:
            module = next(following) if call.name in operators else module
            assigned[call.event] = module
    return assigned, matched / total if total else 0.0


def align(names: Sequence[str], expected: Sequence[tuple[str, str]]) -> tuple[list[str], int]:
    """The module of each name, and how many names are the expected ones.

    A name that is not expected has the module of its counterpart where as many were expected in its place,
    else that of the name before it.
    """
    modules: list[str] = []
    n_equal = 0
    matcher = SequenceMatcher(None, [name for name, _ in expected], names, autojunk=False)
    for tag, a, a_end, b, b_end in matcher.get_opcodes():
        if tag == "equal" or a_end - a == b_end - b:
            modules += [module for _, module in expected[a:a_end]]
            n_equal += (b_end - b) if tag == "equal" else 0
        else:
            modules += [modules[-1] if modules else ""] * (b_end - b)
    return modules, n_equal


def _forward_runs(calls: Sequence[Call]) -> list[list[Call]]:
    """Forward calls in runs that no backward call or end of a step interrupts, in order of time."""
    runs: list[list[Call]] = []
    before: tuple[str, int] | None = None
    for call in sorted(calls, key=lambda c: c.start_s):
        if call.communication or call.phase not in (FORWARD, BACKWARD):
            continue
        if call.phase == FORWARD:
            if before != (FORWARD, call.step):
                runs.append([])
            runs[-1].append(call)
        before = (call.phase, call.step)
    return runs
