"""A segment as the solver sees it: values with their producer and users, leaves, boundary, gradients."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache, lru_cache
from math import prod
from typing import Any

from costmodel.graph.model_graph import Operator, Phase, Segment, TensorInfo, TensorRole
from costmodel.sharding.strategies.call import Strategy, rule_name

__all__ = ["Block", "Value", "is_float", "read_block", "tensor_bytes"]

_WHOLE_NUMBERS = ("int", "uint", "bool", "i8", "i16", "i32", "i64", "u8")
_VIEWS = (
    "t",
    "transpose",
    "permute",
    "view",
    "reshape",
    "_to_copy",
    "to",
    "detach",
    "alias",
    "clone",
    "expand",
)


@dataclass(slots=True, kw_only=True)
class Value:
    """One tensor between its (re)definition and its uses; positions index `Block.forward`."""

    info: TensorInfo
    producer: int | None = None
    slot: int = 0
    users: list[tuple[int, int]] = field(default_factory=list)
    """(position, input slot) of each use."""
    has_gradient: bool = False
    of_parameter: bool = False
    """A parameter, or a view or cast of one."""
    parameter: str = ""
    """Name of that parameter."""
    size_bytes: int = field(init=False)
    """Bytes that move when the value does."""

    def __post_init__(self) -> None:
        self.size_bytes = tensor_bytes(self.info)

    @property
    def is_parameter(self) -> bool:
        """Whether this is a parameter itself."""
        return self.producer is None and self.info.role is TensorRole.PARAMETER


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A segment's forward operators with their values, and what crosses its boundary."""

    segment: Segment
    forward: tuple[Operator, ...]
    values: tuple[Value, ...]
    inputs: tuple[tuple[int, ...], ...]
    """Value numbers of each forward operator's inputs."""
    outputs: tuple[tuple[int, ...], ...]
    entry: int | None
    """The value that comes from the segment before and carries a gradient back to it."""
    exit: int | None
    """The value that the segment after continues with."""
    exits: tuple[int, ...]
    """All values with a gradient that later segments use, `exit` last."""
    asides: frozenset[int]
    """Incoming values that only meet others element by element (attention biases, masks): whoever makes
    them can make the part that is wanted."""
    backward: dict[int, tuple[Operator, ...]]
    """Backward operators of each forward position."""
    strategies: dict[tuple[int, frozenset[int]], list[list[Strategy]]] = field(default_factory=dict)
    """Filled by `candidates`, and `work_s` by `problem`: what does not depend on the rules of a search."""
    work_s: dict[Any, dict[tuple[int, tuple[Strategy, ...]], float]] = field(default_factory=dict)


def tensor_bytes(info: TensorInfo) -> int:
    """Bytes of a tensor's elements; a view, which owns none, counts what it shows."""
    if info.size_bytes or not info.shape:
        return info.size_bytes
    return prod(info.shape) * _element_bytes(info.dtype)


@cache
def _element_bytes(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return max(int(bits[0]) // 8, 1) if bits else 1


def is_float(info: TensorInfo) -> bool:
    """Whether a tensor can carry a gradient at all."""
    return not info.dtype.startswith(_WHOLE_NUMBERS)


@dataclass(frozen=True, slots=True, eq=False)
class _Same:
    """A segment as a key: equal to itself alone."""

    segment: Segment

    def __hash__(self) -> int:
        return id(self.segment)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.segment is self.segment


def read_block(segment: Segment, *, is_first: bool = False) -> Block:
    """The view, one for all searches on a segment. `is_first`: the segment's inputs are the model's, without
    gradients."""
    return _read(_Same(segment), is_first)


@lru_cache(maxsize=16)
def _read(of: _Same, is_first: bool) -> Block:
    segment = of.segment
    tensors = {t.index: t for t in segment.tensors}
    forward = segment.phase(Phase.FORWARD)
    values: list[Value] = []
    current: dict[int, int] = {}
    marked = any(t.requires_grad for t in segment.parameters)
    inputs: list[tuple[int, ...]] = []
    outputs: list[tuple[int, ...]] = []

    def leaf(index: int) -> int:
        info = tensors[index]
        parameter = info.role is TensorRole.PARAMETER
        trained = parameter and not info.frozen and not info.unused
        gradient = trained and (info.requires_grad or not marked)
        name = info.name if parameter else ""
        values.append(Value(info=info, has_gradient=gradient, of_parameter=parameter, parameter=name))
        current[index] = len(values) - 1
        return current[index]

    for position, op in enumerate(forward):
        taken = []
        for slot, index in enumerate(op.inputs):
            v = current[index] if index in current else leaf(index)
            values[v].users.append((position, slot))
            taken.append(v)
        inputs.append(tuple(taken))
        view = rule_name(op.target).removeprefix("aten.") in _VIEWS
        of_parameter = bool(taken) and view and all(values[v].of_parameter for v in taken)
        name = values[taken[0]].parameter if of_parameter else ""
        made = []
        for slot, index in enumerate(op.outputs):
            made.append(len(values))
            value = Value(info=tensors[index], producer=position, slot=slot, of_parameter=of_parameter)
            value.parameter = name
            values.append(value)
            current[index] = len(values) - 1
        outputs.append(tuple(made))

    first_guess = _exits(values)
    shape = values[first_guess[-1]].info.shape if first_guess else None
    entry = None if is_first else _entry(values, shape)
    if entry is not None:
        values[entry].has_gradient = True
    for value in values:
        if (
            value.producer is None
            and value.info.role is not TensorRole.PARAMETER
            and value.info.requires_grad
        ):
            value.has_gradient = not is_first
    for position, op in enumerate(forward):
        if any(values[v].has_gradient for v in inputs[position]) and "detach" not in op.target:
            for v in outputs[position]:
                values[v].has_gradient = is_float(values[v].info)
    exits = _exits(values)
    exits = [v for v in exits[:-1] if not _in_place(forward[values[v].producer or 0])] + exits[-1:]
    where = {op.index: position for position, op in enumerate(forward)}
    backward: dict[int, list[Operator]] = {}
    for op in segment.phase(Phase.BACKWARD):
        if op.forward_index in where:
            backward.setdefault(where[op.forward_index], []).append(op)
    return Block(
        segment=segment,
        forward=forward,
        values=tuple(values),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        entry=entry,
        exit=exits[-1] if exits else None,
        exits=tuple(exits),
        asides=_asides(values, entry, forward),
        backward={position: tuple(ops) for position, ops in backward.items()},
    )


def _entry(values: list[Value], finish: tuple[int, ...] | None) -> int | None:
    """The activation that comes in: float, marked as requiring gradients, shaped as what goes out, large."""
    leaves = [
        v
        for v, value in enumerate(values)
        if value.producer is None
        and value.info.role in (TensorRole.ACTIVATION, TensorRole.INPUT)
        and is_float(value.info)
        and value.users
    ]
    return max(
        leaves,
        key=lambda v: (
            values[v].info.requires_grad,
            values[v].info.shape == finish,
            values[v].info.size_bytes,
            -v,
        ),
        default=None,
    )


def _in_place(op: Operator) -> bool:
    """Whether an operator writes into another tensor or shows a part of it: nothing goes out by that name."""
    return rule_name(op.target).endswith("_") or op.kind == "host"


def _asides(values: list[Value], entry: int | None, forward: tuple[Operator, ...]) -> frozenset[int]:
    return frozenset(
        v
        for v, value in enumerate(values)
        if value.producer is None
        and v != entry
        and value.info.role is not TensorRole.PARAMETER
        and all(forward[position].kind == "elementwise" for position, _ in value.users)
    )


def _exits(values: list[Value]) -> list[int]:
    """What goes out, in order: float values that nothing in the segment uses, those with a gradient if any.

    By-products (statistics kept for the backward) are not the first output of their operator.
    """
    ends = [
        v
        for v, value in enumerate(values)
        if value.producer is not None and not value.users and is_float(value.info) and value.slot == 0
    ]
    carrying = [v for v in ends if values[v].has_gradient]
    return sorted(carrying or ends, key=lambda v: values[v].producer or 0)
