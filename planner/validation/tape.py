"""Cutting a model into pipeline stages that keep their real modules.

The forward is run once with a recorder: calls of *leaf* modules (the largest ones that hold no cut
point) and the torch functions between them become the steps of a tape. A stage is a run of steps. What
crosses a boundary is handed on; what is computed from the inputs alone (position ids, masks) is computed
again by each stage that needs it, so that only activations with a gradient travel.

A module called inside a leaf stays as it is: eager, with its hooks, ready for FSDP, DTensor, checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from costmodel.errors import PlanError, TraceError

__all__ = ["StageModule", "StagePlan", "Step", "Tape", "cut", "first_called", "record"]


@dataclass(frozen=True, slots=True)
class _Value:
    """Leaf `leaf` of the output of step `step`."""

    step: int
    leaf: int


@dataclass(frozen=True, slots=True)
class _Input:
    """A named input of the model."""

    name: str


@dataclass(frozen=True, slots=True)
class _State:
    """A parameter or buffer used outside the leaf modules."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call: of module `module`, or of `function` where that is empty."""

    function: Callable[..., Any] | None
    module: str
    arguments: tuple[Any, ...]
    """Flat leaves of (args, kwargs), references in place of tensors."""
    structure: Any
    in_place: bool
    """The call returns nothing and changes its first argument (item assignment)."""

    def references(self) -> Iterator[_Value]:
        """The earlier outputs that the call reads."""
        return (leaf for leaf in self.arguments if isinstance(leaf, _Value))

    @property
    def uses_state(self) -> bool:
        """Whether it reads parameters: a module call, or a direct use."""
        return bool(self.module) or any(isinstance(leaf, _State) for leaf in self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tape:
    """The recorded forward; `loss` refers to its result."""

    steps: tuple[Step, ...]
    loss: _Value
    leaves: tuple[str, ...]
    samples: Mapping[_Value, torch.Tensor]
    """Meta tensors of every recorded output."""


class _Recorder(TorchFunctionMode):
    def __init__(self, module: nn.Module, inputs: Mapping[str, Any], batch: int) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.samples: dict[_Value, torch.Tensor] = {}
        self._keep: list[Any] = []  # ids stay valid while their objects live
        self._known: dict[int, Any] = {}
        for path, tensor in (*module.named_parameters(), *module.named_buffers()):
            self._known[id(tensor)] = _State(path)
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == batch:
                self._known[id(value)] = _Input(name)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.add(func, "", args, kwargs or {}, output)
        return output

    def add(self, function: Any, module: str, args: Any, kwargs: Any, output: Any) -> None:
        """File one call, if it gives a tensor or changes one."""
        name = getattr(function, "__name__", "")
        in_place = name == "__setitem__"
        result = args[0] if in_place else output
        leaves = pytree.tree_leaves(result)
        if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            return
        flat, structure = pytree.tree_flatten((tuple(args), dict(kwargs)))
        arguments = tuple(self.reference(leaf) for leaf in flat)
        self._keep.append((flat, leaves))
        index = len(self.steps)
        self.steps.append(
            Step(
                function=function,
                module=module,
                arguments=arguments,
                structure=structure,
                in_place=in_place,
            )
        )
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                value = _Value(index, number)
                self._known[id(leaf)] = value
                with torch._C.DisableTorchFunction():
                    self.samples[value] = torch.empty_like(leaf, device="meta")

    def reference(self, leaf: Any) -> Any:
        """What stands for an argument: a reference, or the constant itself."""
        return self._known.get(id(leaf), leaf) if isinstance(leaf, torch.Tensor) else leaf


def record(
    module: nn.Module,
    inputs: Mapping[str, Any],
    *,
    batch: int,
    cut_points: Sequence[str],
    loss_of: Callable[[Any], torch.Tensor],
) -> Tape:
    """Run the forward once without gradients and return its tape.

    `cut_points` are the first modules of the stages. Raises PlanError where one of them is not a module
    of the model, TraceError where the loss does not come out of recorded calls.
    """
    names = dict(module.named_modules())
    for path in cut_points:
        if path not in names:
            raise PlanError(f"stage begins at {path!r}, which is not a module of the model")
    inner = {path[:i] for path in cut_points for i, c in enumerate(path) if c == "."} | {""}
    leaves = tuple(
        path for path in names if path not in inner and _parent(path, inner) and _is_called(names[path])
    )
    recorder = _Recorder(module, inputs, batch)
    originals = {path: names[path].forward for path in leaves}
    for path in leaves:
        names[path].forward = _recorded(recorder, path, originals[path])
    try:
        with torch.no_grad(), recorder:
            loss = loss_of(module(**inputs))
    finally:
        for path in leaves:
            del names[path].forward
    reference = recorder.reference(loss)
    if not isinstance(reference, _Value):
        raise TraceError("the loss is not computed by recorded calls; the model cannot be cut into stages")
    return Tape(steps=tuple(recorder.steps), loss=reference, leaves=leaves, samples=dict(recorder.samples))


def first_called(module: nn.Module, paths: Sequence[str], before: Iterable[str] = ()) -> str:
    """The first module with a forward of its own among a stage's paths and, of lists of modules, inside them.

    `before`: paths of earlier stages. A module that holds one of them began there: the stage has work of its
    own (a sum between two layers, say) but does not begin with it.

    Raises PlanError where there is none.
    """
    earlier = tuple(before)
    names = dict(module.named_modules())
    for path in paths:
        if not path or path not in names or any(_holds(path, other) for other in earlier):
            continue
        inside = (str(inner) for inner, found in names[path].named_modules(prefix=path) if _is_called(found))
        if (first := next(inside, None)) is not None:
            return first
    raise PlanError(f"a stage of {list(paths)} holds no module of the model to begin with")


def _holds(path: str, other: str) -> bool:
    return other == path or other.startswith(f"{path}.")


def _parent(path: str, inner: set[str]) -> bool:
    """Whether the nearest enclosing module that is called lies above every leaf."""
    return path.rpartition(".")[0] in inner


def _is_called(module: nn.Module) -> bool:
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict))


def _recorded(recorder: _Recorder, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            output = forward(*args, **kwargs)
        recorder.add(None, path, args, kwargs, output)
        return output

    return call


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """What one stage runs: its steps in order, what it receives and what it hands on."""

    index: int
    steps: tuple[int, ...]
    receives: tuple[_Value, ...]
    sends: tuple[_Value, ...]
    inputs: tuple[str, ...]
    """Model inputs the stage reads."""


def cut(tape: Tape, cut_points: Sequence[str]) -> tuple[StagePlan, ...]:
    """Stages that begin at the calls of `cut_points[1:]` (stage 0 begins at the start).

    Raises PlanError where the modules are not called in that order, or where something without a
    gradient that depends on parameters (routing indices, say) would have to cross a boundary.
    """
    called = [_first_call(tape, path) for path in cut_points]
    for path, at, before in zip(cut_points[1:], called[1:], called, strict=False):
        if at is None or before is None or at <= before:
            raise PlanError(
                f"stage beginning at {path!r} cannot follow the stage before it: modules must be called in "
                f"the order of the stages ({', '.join(cut_points)})"
            )
    starts = [0, *(at for at in called[1:] if at is not None)]
    ends = [*starts[1:], len(tape.steps)]
    home = {i: s for s, (a, b) in enumerate(zip(starts, ends, strict=True)) for i in range(a, b)}
    pure: list[bool] = []
    for step in tape.steps:
        pure.append(not step.uses_state and all(pure[ref.step] for ref in step.references()))
    alive = _alive(tape)
    needed: list[set[int]] = []  # steps each stage runs
    wanted: list[set[_Value]] = []  # values each stage takes from before it
    for stage, (start, end) in enumerate(zip(starts, ends, strict=True)):
        run = set(range(start, end)) & alive
        take: set[_Value] = set()
        pending = sorted(run)
        while pending:
            for ref in tape.steps[pending.pop()].references():
                if ref.step in run or home[ref.step] == stage:
                    continue
                if pure[ref.step]:
                    run.add(ref.step)
                    pending.append(ref.step)
                else:
                    take.add(ref)
        needed.append(run)
        wanted.append(take)
    plans = []
    for stage in range(len(starts)):
        receives = _crossing(tape, wanted, home, stage)
        sends = _crossing(tape, wanted, home, stage + 1)
        steps = tuple(sorted(needed[stage]))
        names = dict.fromkeys(
            leaf.name for i in steps for leaf in tape.steps[i].arguments if isinstance(leaf, _Input)
        )
        plans.append(StagePlan(index=stage, steps=steps, receives=receives, sends=sends, inputs=tuple(names)))
    return tuple(plans)


def _first_call(tape: Tape, path: str) -> int | None:
    return next((i for i, s in enumerate(tape.steps) if s.module and _within(s.module, path)), None)


def _alive(tape: Tape) -> set[int]:
    """Steps that the loss depends on, item assignments to what it depends on included."""
    alive = {tape.loss.step}
    for index in range(len(tape.steps) - 1, -1, -1):
        step = tape.steps[index]
        if index in alive or step.module or step.in_place:
            alive.add(index)
            alive.update(ref.step for ref in step.references())
    return alive


def _within(module: str, path: str) -> bool:
    return module == path or module.startswith(path + ".")


def _crossing(
    tape: Tape, wanted: Sequence[set[_Value]], home: Mapping[int, int], boundary: int
) -> tuple[_Value, ...]:
    """Values made before stage `boundary` and taken by it or a later one, in order of making."""
    values = {v for take in wanted[boundary:] for v in take if home[v.step] < boundary}
    for value in values:
        if not tape.samples[value].is_floating_point():
            step = tape.steps[value.step]
            raise PlanError(
                f"a {tape.samples[value].dtype} tensor made by {step.module or step.function} would cross "
                "into a later stage, and a pipeline only carries activations with a gradient; cut elsewhere"
            )
    return tuple(sorted(values, key=lambda v: (v.step, v.leaf)))


class StageModule(nn.Module):
    """Runs one stage: takes the received tensors in order (stage 0: its first input) and named inputs.

    Holds the whole model's module tree under `model`, without the modules that other stages run.
    Returns the tensors to send (one alone is not wrapped), on the last stage the loss.
    """

    def __init__(self, model: nn.Module, tape: Tape, plan: StagePlan, *, is_last: bool) -> None:
        super().__init__()
        self.model = model
        self.plan = plan
        self.is_last = is_last
        self.first_input = plan.inputs[0] if plan.index == 0 else ""
        self._steps = [(i, tape.steps[i]) for i in plan.steps]
        self._loss = tape.loss
        self._prune(tape.leaves)
        last_use: dict[int, int] = {}
        for i, step in self._steps:
            for ref in step.references():
                last_use[ref.step] = i
        kept = {ref.step for ref in (*plan.sends, *((tape.loss,) if is_last else ()))}
        self._frees: dict[int, list[int]] = {}
        for made, used in last_use.items():
            if made not in kept:
                self._frees.setdefault(used, []).append(made)

    def _prune(self, leaves: Sequence[str]) -> None:
        used = {step.module for _, step in self._steps if step.module}
        direct = {leaf.path for _, s in self._steps for leaf in s.arguments if isinstance(leaf, _State)}
        modules = dict(self.model.named_modules())
        for path in leaves:
            if path not in used:
                parent, _, name = path.rpartition(".")
                setattr(modules[parent], name, nn.Identity())
        for path, module in self.model.named_modules():
            if any(path == u or path.startswith(u + ".") for u in used):
                continue
            for name in list(module._parameters):
                if f"{path}.{name}".lstrip(".") not in direct:
                    module._parameters[name] = None

    def forward(self, *received: torch.Tensor, **inputs: Any) -> Any:
        """Run the steps."""
        values: dict[int, list[Any]] = {}
        if self.first_input:
            inputs = {self.first_input: received[0], **inputs}
        else:
            for ref, tensor in zip(self.plan.receives, received, strict=True):
                leaves = values.setdefault(ref.step, [])
                leaves.extend([None] * (ref.leaf + 1 - len(leaves)))
                leaves[ref.leaf] = tensor

        def value(leaf: Any) -> Any:
            if isinstance(leaf, _Value):
                return values[leaf.step][leaf.leaf]
            if isinstance(leaf, _Input):
                return inputs[leaf.name]
            if isinstance(leaf, _State):
                parent, _, name = leaf.path.rpartition(".")
                return getattr(self.model.get_submodule(parent), name)
            return leaf

        for index, step in self._steps:
            args, kwargs = pytree.tree_unflatten([value(a) for a in step.arguments], step.structure)
            if step.module:
                output = self.model.get_submodule(step.module)(*args, **kwargs)
            else:
                assert step.function is not None
                output = step.function(*args, **kwargs)
            values[index] = pytree.tree_leaves(args[0] if step.in_place else output)
            for made in self._frees.get(index, ()):
                values.pop(made, None)
        if self.is_last:
            return value(self._loss)
        sends = tuple(value(ref).contiguous() for ref in self.plan.sends)  # views cannot be sent
        return sends[0] if len(sends) == 1 else sends
