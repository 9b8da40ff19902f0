"""Branches on numbers that are the same on any run are taken as a run takes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from costmodel.errors import TraceError
from costmodel.graph.model_graph import Phase
from costmodel.graph.tracing import trace_module


class _Asks(nn.Module):
    """Doubles its product where `asked` says so."""

    def __init__(self, asked: Callable[[_Asks, torch.Tensor], bool]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.asked = asked

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.layer(x)
        return out * 2 if self.asked(self, x) else out


def _is_doubled(asked: Callable[[_Asks, torch.Tensor], bool]) -> bool:
    graph = trace_module(_Asks(asked), (torch.ones(2, 8),), training=False)
    return any("mul" in op.target for segment in graph.segments for op in segment.operators)


def _written(first: float) -> bool:
    mask = torch.zeros(3, 4)
    mask[:, 2:] = first
    mask[0].add_(1.0)
    return bool((mask > 1.5).flatten().any().item())


ANSWERS: dict[str, tuple[Callable[[_Asks, torch.Tensor], bool], bool]] = {
    "dropped at random": (lambda m, x: bool(torch.rand([]) < 0.1), False),
    "kept at random": (lambda m, x: bool(torch.rand(1) < 0.9), True),
    "as random as another": (lambda m, x: bool(torch.rand_like(x).mean() > 0.6), False),
    "uniform between": (lambda m, x: bool(torch.empty(3).uniform_(1, 3).sum() == 6), True),
    "written into a part": (lambda m, x: _written(1.0), True),
    "not written": (lambda m, x: _written(0.5), False),
    "of sizes": (lambda m, x: bool(torch.arange(x.shape[0]).sum() == 1), True),
    "of a constant": (lambda m, x: bool((torch.tensor([1.0, 2.0]) + 1).max() > 2.5), True),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_any_run_finds_is_found(case: str) -> None:
    asked, answer = ANSWERS[case]
    assert _is_doubled(asked) is answer


@pytest.mark.parametrize(
    "asked",
    [
        lambda m, x: bool(x.sum() > 0),
        lambda m, x: bool(m.layer.weight.max() > 0),
        lambda m, x: bool(torch.randn(3).sum() > 0),
        lambda m, x: bool(torch.zeros(1 << 13, 1 << 13).sum() > 0),
    ],
    ids=["input", "parameter", "normal", "large"],
)
def test_what_depends_on_more_is_refused(asked: Callable[[_Asks, torch.Tensor], bool]) -> None:
    with pytest.raises(TraceError, match="reads a value out of a tensor"):
        _is_doubled(asked)


def test_layers_dropped_at_random_all_count() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                if not (self.training and torch.rand([]) < 0.1):
                    x = layer(x)
            return x

    graph = trace_module(Dropping(), (torch.ones(2, 8),))
    product = 2 * 2 * 8 * 8
    assert graph.flop(Phase.FORWARD) == 6 * product
    assert graph.flop(Phase.BACKWARD) == 11 * product  # the input needs no gradient
