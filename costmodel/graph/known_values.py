"""What fake tensors would hold in a run, where a model's branches and sizes turn on it while it is traced.

Layers dropped at random compare a random number, masks that a model makes itself are looked through for what
they hide, experts take the tokens that chose them. The recorded calls behind such a value are made again on
real tensors. What parameters and inputs hold is not known, but three things about it are taken for granted:

    a uniform random number is what it is on average, so that traces are alike;
    all numbers are finite: what asks for others finds none;
    a choice among n (top-k, argmax, a sample) falls on all in turn: the i-th choice is number i modulo n,
    as with a router whose experts have equal shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

__all__ = ["KnownValues"]

_aten = torch.ops.aten
_MOST_ELEMENTS = 1 << 25
"""Of all tensors behind one value: more is not worth computing."""


def _middle(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.full(args[0], 0.5, dtype=kwargs.get("dtype"))


def _middle_like(like: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return torch.full_like(like, 0.5, dtype=kwargs.get("dtype"))


def _middle_in_place(tensor: torch.Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> torch.Tensor:
    return tensor.fill_((low + high) / 2)


_ON_AVERAGE: dict[Any, Callable[..., Any]] = {
    _aten.rand.default: _middle,
    _aten.rand_like.default: _middle_like,
    _aten.uniform_.default: _middle_in_place,
}
_OF_SIZES = frozenset(
    getattr(_aten, name).default
    for name in (
        *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like"),
        *("new_empty", "new_zeros", "new_ones", "new_full"),
    )
)
"""Operators that look at a tensor's size and type only."""
_CHOICES = {
    **dict.fromkeys((_aten.topk.default, _aten.sort.default, _aten.sort.stable), 1),
    **dict.fromkeys((_aten.max.dim, _aten.min.dim), 1),
    **dict.fromkeys((_aten.argmax.default, _aten.argmin.default, _aten.argsort.default), 0),
    _aten.multinomial.default: 0,
}
"""Operators that choose along a dimension -> which of their results holds the choices."""
_ODD = (_aten.isnan.default, _aten.isinf.default)
_UNEQUAL = (_aten.ne.Scalar, _aten.ne.Tensor)
_EQUAL = (_aten.eq.Scalar, _aten.eq.Tensor)


class KnownValues:
    """Values of nodes of one graph while it is recorded."""

    def __init__(self) -> None:
        self.choices: set[fx.Node] = set()
        """Those that were taken to fall on all in turn."""
        self._writers: dict[int, list[fx.Node]] = {}
        """Storage -> calls that write into it."""
        self._known: dict[fx.Node, bool] = {}
        self._values: dict[fx.Node, Any] = {}

    def recorded(self, node: fx.Node) -> None:
        """Take note of a call just recorded."""
        if _writes(node):
            for storage in _storages(node):
                self._writers.setdefault(storage, []).append(node)

    def tensor(self, node: fx.Node) -> torch.Tensor | None:
        """The real tensor of a node; None where it depends on parameters, inputs or random numbers in another
        way than the module's text says, or on more than is worth computing."""
        behind = self._behind(node)
        if behind is None or sum(map(_elements, behind)) > _MOST_ELEMENTS:
            return None
        missing = [n for n in behind if n not in self._values]
        last = max((n for n in behind if _writes(n)), default=None)
        if missing and last is not None and not last < missing[0]:
            self._values.clear()  # what is written into is computed from its beginning
            missing = behind
        with unset_fake_temporarily(), torch._C._DisableTorchDispatch(), torch.no_grad():
            for n in missing:
                self._values[n] = self._computed(n)
        return self._values[node]  # type: ignore[no-any-return]

    def number(self, node: fx.Node) -> bool | int | float | complex | None:
        """The number in the one-element tensor of a node, or None."""
        value = self.tensor(node)
        if value is None:
            return None
        with unset_fake_temporarily(), torch._C._DisableTorchDispatch():
            return value.item()

    def results(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[torch.Tensor] | None:
        """What a call on nodes and numbers gives; None where one of its tensors is not known."""
        values = {}
        for node in _nodes((args, kwargs)):
            value = self.tensor(node)
            if value is None:
                return None
            values[node] = value
        with unset_fake_temporarily(), torch._C._DisableTorchDispatch(), torch.no_grad():
            out = func(*fx.node.map_arg(tuple(args), values.get), **fx.node.map_arg(kwargs, values.get))
        return list(out) if isinstance(out, list | tuple) else [out]

    def _behind(self, node: fx.Node) -> list[fx.Node] | None:
        """The node, all that it is computed from and the calls that write into those, in order; None where
        one of them is not known."""
        wanted: set[fx.Node] = set()
        found = [node]
        while found:
            n = found.pop()
            if n in wanted:
                continue
            if not self._is_known(n):
                return None
            wanted.add(n)
            found += self._read_by(n)
            for storage in _storages(n):
                found += self._writers.get(storage, ())
        return sorted(wanted)

    def _read_by(self, node: fx.Node) -> Iterable[fx.Node]:
        """The nodes whose values it needs."""
        if node.target in _OF_SIZES or self._is_choice(node) or self._if_finite(node) is not None:
            return ()
        return node.all_input_nodes

    def _is_choice(self, node: fx.Node) -> bool:
        """Whether it holds choices by values that are not known."""
        call = node.meta.get("item_of", node)
        place = node.args[1] if call is not node else 0
        return _CHOICES.get(call.target) == place and not all(map(self._is_known, call.all_input_nodes))

    def _if_finite(self, node: fx.Node) -> bool | None:
        """What it finds that asks whether numbers which are not known are finite; None for other nodes."""
        answer = _if_finite(node)
        return None if answer is None or all(map(self._is_known, node.all_input_nodes)) else answer

    def _is_known(self, node: fx.Node) -> bool:
        if node not in self._known:
            self._known[node] = self._finds_known(node)
        return self._known[node]

    def _finds_known(self, node: fx.Node) -> bool:
        if node.op == "placeholder":
            return _constant(node) is not None
        if _is_random(node) and node.target not in _ON_AVERAGE and node.target not in _CHOICES:
            return False
        return self._is_choice(node) or all(map(self._is_known, self._read_by(node)))

    def _computed(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return _constant(node).clone()
        if self._is_choice(node):
            self.choices.add(node)
            return _in_turn(node)
        answer = self._if_finite(node)
        if answer is not None:
            return torch.full(node.meta["val"].shape, answer)
        value_of = _of_that_size if node.target in _OF_SIZES else self._values.__getitem__
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value_of)
        call: Any = _ON_AVERAGE.get(node.target, node.target)
        return call(*args, **kwargs)


def _if_finite(node: fx.Node) -> bool | None:
    """What a node finds that asks whether numbers are finite, as torch.isfinite does in pieces; None for
    other nodes."""
    if node.target in _ODD:
        return False
    if node.target not in (*_UNEQUAL, *_EQUAL):
        return None
    with_itself = node.args[0] is node.args[1]
    with_infinity = isinstance(node.args[1], float) and math.isinf(node.args[1])
    if with_itself or with_infinity:
        return (node.target in _EQUAL) is with_itself
    return None


def _in_turn(node: fx.Node) -> torch.Tensor:
    """Choices that fall on all in turn, those of one row next to each other."""
    call = node.meta.get("item_of", node)
    among, chosen = call.args[0].meta["val"], node.meta["val"]
    places = call.args[2:] if call.target is _aten.topk.default else call.args[1:]
    if call.target is _aten.multinomial.default:
        places = ()
    given = [call.kwargs.get("dim"), *places]
    dim = next((v for v in given if isinstance(v, int) and not isinstance(v, bool)), -1)
    n = among.shape[dim] if among.ndim else 1
    if chosen.ndim < among.ndim:  # one of each row
        return (torch.arange(chosen.numel()) % n).reshape(chosen.shape)
    along = chosen.transpose(dim, -1).shape
    rows = torch.arange(chosen.numel() // along[-1])[:, None]
    step = along[-1] if along[-1] < n else 1  # of whole orders the first few are taken
    return ((rows * step + torch.arange(along[-1])) % n).reshape(along).transpose(dim, -1).contiguous()


def _of_that_size(node: fx.Node) -> torch.Tensor:
    fake = node.meta["val"]
    return torch.empty(fake.shape, dtype=fake.dtype)


def _constant(node: fx.Node) -> Any:
    """The real tensor that the model holds there or made of numbers, or None."""
    value = node.meta.get("constant", node.meta["val"])
    return None if isinstance(value, FakeTensor) else value


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    value = node.meta["val"]
    return [t for t in (value if isinstance(value, list | tuple) else [value]) if isinstance(t, torch.Tensor)]


def _is_random(node: fx.Node) -> bool:
    call = node.target
    return isinstance(call, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in call.tags


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _storages(node: fx.Node) -> list[int]:
    return [int(t.untyped_storage()._cdata) for t in _tensors(node)]


def _elements(node: fx.Node) -> int:
    return sum(t.numel() for t in _tensors(node))
