"""Repeated blocks: found from structure, traced twice (or three times, where the last is not as the others),
counted.

A unit is an element of a module list (or a group of elements, where they alternate): a decoder layer, a
residual block. Lists nested in an element may be descended into where they are nearly all of it (the stages
of a ResNet). Two elements are equal when their module trees have the same classes, parameter shapes,
types and flags and the same attributes, their place in the list aside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from costmodel.graph.attributes import attributes

__all__ = ["Unit", "find_units", "reduced", "signature"]

_MAX_PERIOD = 8
_KEPT_PERIODS = 2
_DOMINANT_FRACTION = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A traced unit. `elements`: the paths of its elements; `instances`: one path per block it stands for
    (elements of a group joined by "+"). `run`: of units of one shortened run the same number, else None."""

    elements: tuple[str, ...]
    instances: tuple[str, ...]
    run: int | None = None


def signature(module: nn.Module, known: dict[Any, Any] | None = None) -> tuple[Any, ...]:
    """Structure of a module tree: classes, attributes, tensors, children.

    `known`: by identity, signatures found before; what is found is added.
    """
    known = {} if known is None else known
    if id(module) not in known:
        known[id(module)] = _signature(module, known)
    found: tuple[Any, ...] = known[id(module)]
    return found


def _signature(module: nn.Module, known: dict[Any, Any]) -> tuple[Any, ...]:
    own = attributes(module, known)
    tensors = tuple(
        (name, tuple(t.shape), str(t.dtype), t.requires_grad)
        for store in (module._parameters, module._buffers)
        for name, t in store.items()
        if t is not None
    )
    children = tuple((name, signature(child, known)) for name, child in module.named_children())
    return (type(module).__qualname__, own, tensors, children)


def _integers(tree: tuple[Any, ...], path: str = "") -> dict[str, int]:
    """Every integer attribute of a signature, by its place."""
    _, own, _, children = tree
    found = {f"{path}/{key}": value for key, value in own if type(value) is int}
    for name, child in children:
        found |= _integers(child, f"{path}/{name}")
    return found


def _without(tree: tuple[Any, ...], keys: set[str], path: str = "") -> tuple[Any, ...]:
    kind, own, tensors, children = tree
    return (
        kind,
        tuple((key, value) for key, value in own if f"{path}/{key}" not in keys),
        tensors,
        tuple((name, _without(child, keys, f"{path}/{name}")) for name, child in children),
    )


def _signatures(found: nn.Module, known: dict[Any, Any]) -> list[tuple[Any, ...]]:
    """Signatures of a list's elements; attributes that are the element's place in every element are left
    out (a layer index)."""
    key = ("elements", id(found))
    if key not in known:
        known[key] = _elements_signatures([child for _, child in found.named_children()], known)
    elements: list[tuple[Any, ...]] = known[key]
    return elements


def _elements_signatures(elements: Sequence[nn.Module], known: dict[Any, Any]) -> list[tuple[Any, ...]]:
    trees = [signature(element, known) for element in elements]
    integers = [_integers(tree) for tree in trees]
    places = {
        key
        for key in integers[0]
        if all(found.get(key, i) == i for i, found in enumerate(integers)) and len(elements) > 1
    }
    return [_without(tree, places) for tree in trees] if places else trees


def _lists(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Outermost lists of at least two elements below (or at) a module."""
    if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) >= 2:
        yield path, module
        return
    for name, child in module.named_children():
        yield from _lists(child, f"{path}.{name}" if path else name)


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _inner(element: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    """Lists inside an element that are nearly all of its parameters and hold modules with children."""
    total = _numel(element)
    found = [
        (p, m)
        for p, m in _lists(element, path)
        if any(next(child.children(), None) is not None for child in m.children())
    ]
    return found if total and sum(_numel(m) for _, m in found) >= _DOMINANT_FRACTION * total else []


def _all_inner(elements: Sequence[tuple[str, nn.Module]]) -> list[list[tuple[str, nn.Module]]]:
    """`_inner` of every element; empty where one has none."""
    found = []
    for path, element in elements:
        found.append(_inner(element, path))
        if not found[-1]:
            return []
    return found


def _unit_lists(module: nn.Module, depth: int, known: dict[Any, Any]) -> list[tuple[str, nn.Module]]:
    """The lists whose elements are units: outermost, or dominant nested ones up to `depth` levels down."""
    result: list[tuple[str, nn.Module]] = []
    pending = [(path, found, 0) for path, found in _lists(module, "")]
    while pending:
        path, found, level = pending.pop(0)
        elements = [(f"{path}.{name}" if path else name, child) for name, child in found.named_children()]
        inner = _all_inner(elements) if level < depth else []
        if inner and len(set(_signatures(found, known))) == len(elements):
            pending = [(*item, level + 1) for lists in inner for item in lists] + pending
        else:
            result.append((path, found))
    return result


def _runs(signatures: Sequence[Any]) -> list[tuple[int, int, int]]:
    """(start, period, repeats) of the sequence, left to right; a single element has period = repeats = 1."""
    runs = []
    i = 0
    while i < len(signatures):
        best = (1, 1)
        for period in range(1, _MAX_PERIOD + 1):
            length = period
            while i + length < len(signatures) and signatures[i + length] == signatures[i + length - period]:
                length += 1
            repeats = length // period
            if repeats > _KEPT_PERIODS and repeats * period > best[0] * best[1]:
                best = (period, repeats)
        runs.append((i, *best))
        i += best[0] * best[1]
    return runs


def find_units(
    module: nn.Module,
    *,
    reduce: bool = True,
    depth: int = 0,
    known: dict[Any, Any] | None = None,
    last_too: bool = False,
) -> tuple[list[Unit], dict[str, list[int]]]:
    """Units in list order, and for each reduced list (by path) the element positions that are kept.

    `depth`: how many times lists nested in an element are descended into. `known`: signatures found before.
    `last_too`: the second of a run stands for all but the first and the last, not for all that follow.
    """
    known = {} if known is None else known
    units: list[Unit] = []
    kept: dict[str, list[int]] = {}
    for path, found in _unit_lists(module, depth, known):
        children = list(found.named_children())
        names = [f"{path}.{name}" if path else name for name, _ in children]
        runs = _runs(_signatures(found, known)) if reduce else [(i, 1, 1) for i in range(len(children))]
        positions: list[int] = []
        for start, period, repeats in runs:
            groups = [tuple(names[start + g * period : start + (g + 1) * period]) for g in range(repeats)]
            last = groups[-1:] if last_too and repeats > _KEPT_PERIODS else []
            kept_periods = min(repeats, _KEPT_PERIODS + len(last))
            run = len(units) if kept_periods < repeats else None
            for number, group in enumerate(groups[:kept_periods]):
                stands_for = [group]
                if number == _KEPT_PERIODS - 1:
                    stands_for = groups[number : repeats - len(last)]
                elif number == _KEPT_PERIODS:
                    stands_for = last
                instances = tuple("+".join(g) for g in stands_for)
                units.append(Unit(elements=group, instances=instances, run=run))
            positions.extend(range(start, start + kept_periods * period))
        if len(positions) < len(children):
            kept[path] = positions
    return units, kept


@contextmanager
def reduced(module: nn.Module, kept: dict[str, list[int]]) -> Iterator[None]:
    """Shorten the lists to the kept positions for the time of the block."""
    before: list[tuple[nn.Module, dict[str, Any]]] = []
    try:
        for path, positions in kept.items():
            found = module.get_submodule(path) if path else module
            children = list(found._modules.values())
            before.append((found, dict(found._modules)))
            found._modules.clear()
            found._modules.update({str(i): children[p] for i, p in enumerate(positions)})
        yield
    finally:
        for found, modules in before:
            found._modules.clear()
            found._modules.update(modules)
