"""Values that a fake tensor would have on any run: a model's branches ask for some while it is traced.

Layers that are dropped at random compare a random number, masks that the model makes itself are looked
through for what they hide. No such value depends on what parameters or inputs hold: the recorded calls behind
it are made again on real tensors. A uniform random number is what it is on average, so that traces are alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

__all__ = ["known_value"]

_aten = torch.ops.aten
_MOST_ELEMENTS = 1 << 24
"""Of all tensors behind one value: more is not worth computing."""


def _middle(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.full(args[0], 0.5, dtype=kwargs.get("dtype"))


def _middle_like(like: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return torch.full_like(like, 0.5, dtype=kwargs.get("dtype"))


def _middle_in_place(tensor: torch.Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> torch.Tensor:
    return tensor.fill_((low + high) / 2)


_OF_SIZES = frozenset(
    getattr(_aten, name).default
    for name in ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like")
) | frozenset(getattr(_aten, name).default for name in ("new_empty", "new_zeros", "new_ones", "new_full"))
"""Operators that look at a tensor's size and type only."""
_ON_AVERAGE: dict[Any, Callable[..., Any]] = {
    _aten.rand.default: _middle,
    _aten.rand_like.default: _middle_like,
    _aten.uniform_.default: _middle_in_place,
}


def known_value(graph: fx.Graph, node: fx.Node) -> bool | int | float | complex | None:
    """The number in the one-element tensor of a node of the graph being recorded; None where it depends on
    parameters, inputs or other random numbers than uniform ones, or on more than is worth computing."""
    behind = _behind(graph, node)
    if not all(_is_known(n) for n in behind) or sum(map(_elements, behind)) > _MOST_ELEMENTS:
        return None
    values: dict[fx.Node, Any] = {}
    with unset_fake_temporarily(), torch._C._DisableTorchDispatch(), torch.no_grad():
        for n in behind:
            value_of = _of_that_size if n.target in _OF_SIZES else values.__getitem__
            args, kwargs = fx.node.map_arg((n.args, n.kwargs), value_of)
            values[n] = _constant(n).clone() if n.op == "placeholder" else _again(n.target, args, kwargs)
        return values[node].item()  # type: ignore[no-any-return]


def _behind(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    """The node, all that it is computed from and the calls that write into those, as recorded."""
    order = list(graph.nodes)
    wanted = {node}
    while True:
        before = len(wanted)
        storages = {key for n in wanted for key in _storages(n)}
        for n in reversed(order):
            if n not in wanted and _writes(n) and storages.intersection(_storages(n)):
                wanted.add(n)
            if n in wanted and n.target not in _OF_SIZES:
                wanted.update(n.all_input_nodes)
        if len(wanted) == before:
            return [n for n in order if n in wanted]


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    value = node.meta["val"]
    return [t for t in (value if isinstance(value, list | tuple) else [value]) if isinstance(t, torch.Tensor)]


def _storages(node: fx.Node) -> list[int]:
    return [int(t.untyped_storage()._cdata) for t in _tensors(node)]


def _elements(node: fx.Node) -> int:
    return sum(t.numel() for t in _tensors(node))


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _of_that_size(node: fx.Node) -> torch.Tensor:
    fake = node.meta["val"]
    return torch.empty(fake.shape, dtype=fake.dtype)


def _constant(node: fx.Node) -> Any:
    """The real tensor that the model holds there or made of numbers, or None."""
    value = node.meta.get("constant", node.meta["val"])
    return None if isinstance(value, FakeTensor) else value


def _is_known(node: fx.Node) -> bool:
    if node.op == "placeholder":
        return _constant(node) is not None
    random = isinstance(node.target, torch._ops.OpOverload) and (
        torch.Tag.nondeterministic_seeded in node.target.tags
    )
    return node.target in _ON_AVERAGE or not random


def _again(target: Any, args: Any, kwargs: Any) -> Any:
    return _ON_AVERAGE.get(target, target)(*args, **kwargs)
