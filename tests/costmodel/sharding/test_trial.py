"""Trying local shapes: what a module's own code refuses."""

from __future__ import annotations

import torch
from torch import nn

from costmodel.graph import trace_module
from costmodel.sharding.module_plan import executable_styles
from costmodel.sharding.trial import runs_locally, tied_modules


class Pinned(nn.Module):
    """Two pairs of layers; the first has its whole width written between them."""

    def __init__(self, pinned: bool) -> None:
        super().__init__()
        self.pinned = pinned
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)
        self.c, self.d = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        h = h.view(-1, 2, 8).tanh().view(-1, 16) if self.pinned else h.tanh()
        return self.d(self.c(self.b(h)).tanh()).sum()


def test_a_pinned_size_is_refused_and_left_whole() -> None:
    x = torch.zeros(4, 8)
    pair = {"a": "colwise", "b": "rowwise"}
    assert runs_locally(Pinned(False), (x,), {}, pair, 2)
    assert not runs_locally(Pinned(True), (x,), {}, pair, 2)
    assert not runs_locally(Pinned(False), (x,), {}, {"a": "colwise"}, 2)
    module = Pinned(True)
    styles = executable_styles(module, (x,), {}, trace_module(module, (x,)), tp=2)
    assert styles == {"c": "colwise", "d": "rowwise"}
    assert next(module.parameters()).device.type == "cpu"


def test_sizes_that_do_not_divide() -> None:
    assert not runs_locally(Pinned(False), (torch.zeros(4, 8),), {}, {"a": "colwise", "b": "rowwise"}, 3)


def test_tied_modules() -> None:
    module = Pinned(False)
    assert tied_modules(module) == set()
    module.c.weight = module.a.weight
    assert tied_modules(module) == {"a", "c"}


class Checked(nn.Module):
    """Looks at numbers on its way, or at what only a run has."""

    def __init__(self, needs_a_run: bool) -> None:
        super().__init__()
        self.needs_a_run = needs_a_run
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        if torch.isnan(h).any() or (self.needs_a_run and h.sum() > 0):
            raise ValueError("no numbers")
        return self.b(h.tanh()).sum()


def test_values_are_looked_at_as_in_a_trace() -> None:
    pair = {"a": "colwise", "b": "rowwise"}
    assert runs_locally(Checked(False), (torch.zeros(4, 8),), {}, pair, 2)
    assert not runs_locally(Checked(True), (torch.zeros(4, 8),), {}, pair, 2)


def test_transposed_convolutions_are_left_whole() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose1d(4, 4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(x)

    assert not runs_locally(Up(), (torch.zeros(1, 4, 4),), {}, {"up": "colwise_gather"}, 2)
