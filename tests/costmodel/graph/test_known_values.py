"""Branches on numbers that are the same on any run are taken as a run takes them, and sizes that follow from
choices are those of even choices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

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
    "odd numbers": (lambda m, x: bool(torch.isnan(x).any() | torch.isinf(m.layer(x)).any()), False),
    "finite numbers": (lambda m, x: bool(torch.isfinite(m.layer(x)).all()), True),
    "unlike itself": (lambda m, x: bool((x != x).any()), False),
    "its own infinity": (lambda m, x: bool((torch.full((2,), -torch.inf) == -torch.inf).all()), True),
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


def _by_mask(m: _Routed, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    mask = nn.functional.one_hot(chosen, num_classes=len(m.experts)).permute(2, 1, 0)
    for number, expert in enumerate(m.experts):
        _, rows = torch.where(mask[number])
        out.index_add_(0, rows, expert(x[None, rows].reshape(-1, x.shape[-1])))
    return out


def _by_hits(m: _Routed, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    mask = nn.functional.one_hot(chosen, num_classes=len(m.experts)).permute(2, 1, 0)
    for hit in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
        _, rows = torch.where(mask[hit].squeeze(0))
        out.index_add_(0, rows, getattr(m.experts, f"{hit[0]}")(x[rows]))
    return out


def _by_selection(m: _Routed, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    for number, expert in enumerate(m.experts):
        mine = (chosen == number).any(-1)
        out[mine] = out[mine] + expert(x[mine])
    return out


def _by_counts(m: _Routed, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    rows = chosen.view(-1).argsort() // chosen.shape[1]
    counts = torch.bincount(chosen.view(-1), minlength=len(m.experts)).tolist()
    made = [expert(part) for expert, part in zip(m.experts, x[rows].split(counts), strict=True)]
    return torch.zeros_like(x).index_add(0, rows, torch.cat(made))


def _by_written_counts(m: _Routed, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    rows = chosen.view(-1).argsort() // chosen.shape[1]
    counts = chosen.new_zeros((len(chosen), len(m.experts)))
    counts.scatter_(1, chosen, 1)
    made, start = [], 0
    for expert, count in zip(m.experts, counts.sum(0).tolist(), strict=True):
        if count:
            made.append(expert(x[rows][start : start + count]))
        start += count
    return torch.zeros_like(x).index_add(0, rows, torch.cat(made))


class _Routed(nn.Module):
    """Experts on the tokens that choose them, in one of the usual ways of writing that."""

    def __init__(self, way: Callable[[_Routed, torch.Tensor, torch.Tensor], torch.Tensor], n: int) -> None:
        super().__init__()
        self.way = way
        self.gate = nn.Linear(16, n)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(n)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        _, chosen = torch.topk(self.gate(rows).softmax(-1), 2, -1)
        return self.way(self, rows, chosen).reshape(x.shape)


WAYS = [_by_mask, _by_hits, _by_selection, _by_counts, _by_written_counts]


@pytest.mark.parametrize("n", [4, 3])
@pytest.mark.parametrize("way", WAYS)
def test_experts_take_even_shares(
    way: Callable[[_Routed, torch.Tensor, torch.Tensor], torch.Tensor], n: int
) -> None:
    module, x = _Routed(way, n), torch.randn(2, 32, 16)
    with FlopCounterMode(display=False) as real:
        module(x).sum().backward()
    graph = trace_module(module, (x,))
    assert sum(graph.flop(phase) for phase in Phase) == real.get_total_flops()
    assert any("taken to fall on all in turn" in note for note in graph.notes)
    segments = [segment for segment in graph.segments for _ in range(segment.count)]
    rows = sorted(
        op.dims["m"]
        for segment in segments
        for op in segment.operators
        if op.kind == "gemm" and op.phase is Phase.FORWARD and 32 in (op.dims["n"], op.dims["k"])
    )
    assert sum(rows) == 2 * 2 * 64  # both layers of both choices of every token
    assert rows[-1] - rows[0] <= 1


@pytest.mark.parametrize(
    "choose",
    [
        lambda x: x.topk(2, 0).indices,
        lambda x: x.sort(dim=0, stable=True).indices[:2],
        lambda x: x.argmax(0, keepdim=True),
        lambda x: x.max(0, keepdim=True).indices,
    ],
    ids=["topk", "sort", "argmax", "max"],
)
def test_choices_fall_along_their_dimension(choose: Callable[[torch.Tensor], torch.Tensor]) -> None:
    asked = _Asks(lambda m, x: bool(choose(x).max() == 2))  # of three rows, not of eight columns
    graph = trace_module(asked, (torch.ones(3, 8),), training=False)
    assert any("mul" in op.target for segment in graph.segments for op in segment.operators)


def test_a_few_tokens_reach_a_few_experts() -> None:
    graph = trace_module(_Routed(_by_hits, 8), (torch.randn(1, 2, 16),), training=False)
    products = sum(s.count * sum(op.kind == "gemm" for op in s.operators) for s in graph.segments)
    assert products == 1 + 2 * 4  # the gate, and two layers of as many experts as there are choices
