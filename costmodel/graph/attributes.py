"""What a module holds beside parameters and children, as something to compare: two blocks whose attributes
differ in a list, a configuration of their own or a function need not do the same work.

Tensors count by size and type, functions by their code and what they close over, other objects by their class
and attributes. Long containers count by their length and deep ones down to a few levels.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

__all__ = ["attributes", "described"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_LISTS = (list, tuple, deque)
_LONGEST = 256
_DEEPEST = 5
_OF_TORCH = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SEEN = "(seen above)"


def attributes(module: nn.Module, known: dict[Any, Any]) -> tuple[tuple[str, Any], ...]:
    """(name, description) of a module's own attributes and hooks, sorted; `known`: those found before."""
    own = vars(module)
    found = [(key, described(value, known)) for key, value in own.items() if key not in _OF_TORCH]
    hooks = [(key, described(list(own[key].values()), known)) for key in _HOOKS if own.get(key)]
    return tuple(sorted([("training", module.training), *found, *hooks], key=lambda item: item[0]))


def described(value: Any, known: dict[Any, Any], depth: int = 0) -> Any:
    """A hashable description, equal for values that a module's forward would use alike."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (type, *_NAMED)):
        return str(value)
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape), str(value.dtype))
    if isinstance(value, nn.Module):
        return (_name(value), tuple(tuple(p.shape) for p in value.parameters()))
    key = ("value", id(value))
    if key not in known:
        known[key] = (_SEEN, value)  # the value too: while it lives, nothing else has its identity
        known[key] = (_opened(value, known, depth + 1), value)
    return known[key][0]


def _opened(value: Any, known: dict[Any, Any], depth: int) -> Any:
    if depth > _DEEPEST:
        return _name(value)

    def inside(*values: Any) -> tuple[Any, ...]:
        return tuple(described(v, known, depth) for v in values)

    if isinstance(value, (*_LISTS, set, frozenset, dict)) and len(value) > _LONGEST:
        return (_name(value), len(value))
    if isinstance(value, _LISTS):
        return (_name(value), *inside(*value))
    if isinstance(value, (set, frozenset)):
        return (_name(value), frozenset(inside(*value)))
    if isinstance(value, dict):
        return (_name(value), inside(*value), inside(*value.values()))
    if isinstance(value, MethodType):
        return inside(value.__func__, _name(value.__self__))
    if isinstance(value, partial):
        return inside(value.func, value.args, value.keywords)
    if isinstance(value, FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        return (value.__code__, *inside(value.__defaults__, value.__kwdefaults__, *cells))
    if hasattr(type(value), "shape"):
        return (_name(value), tuple(value.shape))
    held = getattr(value, "__dict__", None)
    held = held if isinstance(held, dict) else {}
    return (_name(value), tuple(held), inside(*held.values()))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was put into it
        return None


def _name(value: Any) -> str:
    """Its own name where it has one, as built-in functions do, else its class's."""
    own = getattr(value, "__qualname__", None)
    return own if isinstance(own, str) else type(value).__qualname__
