"""Blocks that differ in anything that a forward can look at are not taken for equal."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from costmodel.graph import trace_module
from costmodel.graph.attributes import attributes, described
from costmodel.graph.blocks import signature
from costmodel.graph.model_graph import Phase
from tests.costmodel.graph.oracles import real_step


@dataclass
class _Settings:
    twice: bool = False


class _Kind(enum.Enum):
    ONCE = 1
    TWICE = 2


class _Block(nn.Module):
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return x + (self.layer(y) if self.is_twice() else y)

    def is_twice(self) -> bool:
        return False


class _Listed(_Block):
    times: list[int]

    def is_twice(self) -> bool:
        return self.times[0] == 2


class _Configured(_Block):
    settings: Any

    def is_twice(self) -> bool:
        return bool(self.settings.twice)


class _Named(_Block):
    kind: _Kind

    def is_twice(self) -> bool:
        return self.kind is _Kind.TWICE


class _Private(_Block):
    _twice: int

    def is_twice(self) -> bool:
        return self._twice == 1


class _Optional(_Block):
    extra: Any

    def is_twice(self) -> bool:
        return self.extra is not None


class _Functional(_Block):
    ask: Any

    def is_twice(self) -> bool:
        return bool(self.ask())


_BLOCKS: dict[str, Callable[[bool], _Block]] = {
    "list": lambda twice: _Listed(times=[1 + twice]),
    "dictionary": lambda twice: _Configured(settings=SimpleNamespace(twice=twice)),
    "dataclass": lambda twice: _Configured(settings=_Settings(twice)),
    "enumeration": lambda twice: _Named(kind=_Kind.TWICE if twice else _Kind.ONCE),
    "private": lambda twice: _Private(_twice=int(twice)),
    "none": lambda twice: _Optional(extra=object() if twice else None),
    "closure": lambda twice: _Functional(ask=lambda: twice),
    "partial": lambda twice: _Functional(ask=partial(bool, twice)),
}


@pytest.mark.parametrize("how", _BLOCKS)
def test_flop_of_blocks_that_differ_are_those_of_a_real_step(how: str) -> None:
    module = nn.Sequential(*(_BLOCKS[how](index in (4, 5, 8)) for index in range(10)))
    args = (torch.randn(3, 16),)
    flop, saved_bytes = real_step(module, args, {})
    graph = trace_module(module, args)
    assert graph.flop(Phase.FORWARD) + graph.flop(Phase.BACKWARD) == flop
    assert graph.saved_activation_bytes == saved_bytes


@pytest.mark.parametrize("how", _BLOCKS)
def test_equal_blocks_are_equal(how: str) -> None:
    blocks = [_BLOCKS[how](twice) for twice in (True, True, False)]
    known: dict[Any, Any] = {}
    one, other, different = (signature(block, known) for block in blocks)
    assert one == other != different


def test_hooks_and_forwards_of_their_own_count() -> None:
    plain, hooked, patched = _Block(), _Block(), _Block()
    hooked.register_forward_hook(lambda module, args, out: out @ (out.mT @ out))
    patched.forward = MethodType(lambda self, x: self.layer(self.layer(x)), patched)  # type: ignore[method-assign]
    known: dict[Any, Any] = {}
    found = [attributes(block, known) for block in (plain, hooked, patched, _Block())]
    assert found[0] == found[3]
    assert len(set(found)) == 3


def test_objects_that_hold_each_other_and_long_ones_have_an_end() -> None:
    one, other = SimpleNamespace(), SimpleNamespace()
    one.other, other.one = other, one
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    found = [described(value, {}) for value in (one, deep, list(range(10_000)))]
    assert len({hash(value) for value in found}) == 3


def test_tensors_outside_buffers_count_by_size() -> None:
    sizes = [described(torch.randn(n), {}) for n in (3, 3, 4)]
    assert sizes[0] == sizes[1] != sizes[2]
