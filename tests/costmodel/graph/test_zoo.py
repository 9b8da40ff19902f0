"""Modules of many families against what a real step on the CPU counts and keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from costmodel.graph import trace_module
from costmodel.graph.model_graph import Phase
from tests.costmodel.graph.oracles import real_step
from tests.costmodel.graph.zoo_plain import ZOO

EXPERTS = ("mixtral", "deepseek-v3")


def test_there_are_fifty() -> None:
    assert len(ZOO) >= 50


@pytest.mark.parametrize("name", ZOO)
def test_flop_parameters_and_saved_bytes(name: str) -> None:
    torch.manual_seed(0)
    module, args, kwargs = ZOO[name]()
    module.train()
    flop, saved_bytes = real_step(module, args, kwargs)
    if name in EXPERTS:
        # FlopCounterMode does not see into the library's grouped product on a CPU: count its loop instead
        module.config._experts_implementation = "eager"  # type: ignore[union-attr,assignment]
        flop, _ = real_step(module, args, kwargs)
        module.config._experts_implementation = "grouped_mm"  # type: ignore[union-attr,assignment]
    module.zero_grad()
    graph = trace_module(module, args, kwargs)
    assert graph.flop(Phase.FORWARD) + graph.flop(Phase.BACKWARD) == pytest.approx(flop, rel=0.005)
    assert graph.n_parameters == sum(p.numel() for p in module.parameters())
    assert graph.saved_activation_bytes == pytest.approx(saved_bytes, rel=0.02)
    assert graph.unmodelled_fraction < 0.01


def test_branches_of_equal_structure_are_all_counted() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([branch(x) for branch in self.branches], dim=-1)

    module, args = Branches(), (torch.randn(4, 8),)
    flop, saved_bytes = real_step(module, args, {})
    graph = trace_module(module, args)
    assert graph.flop(Phase.FORWARD) + graph.flop(Phase.BACKWARD) == flop
    assert graph.saved_activation_bytes == saved_bytes
    assert (
        sum(s.count * sum(op.target == "aten.cat.default" for op in s.operators) for s in graph.segments) == 1
    )


def test_recurrent_layers_keep_what_their_library_keeps_at_any_length() -> None:
    module, args = nn.LSTM(24, 40), (torch.randn(100, 3, 24),)
    _, saved_bytes = real_step(module, args, {})
    graph = trace_module(module, args)
    assert graph.saved_activation_bytes == pytest.approx(saved_bytes, rel=0.02)
    assert not graph.notes
    products = [op for _, op in graph.operators() if op.kind == "gemm" and op.phase is Phase.FORWARD]
    assert len(products) == 1 + 100


def test_the_last_block_of_a_run_is_traced_where_it_is_unlike_the_others() -> None:
    module, args, _ = ZOO["two-streams"]()
    blocks = [s for s in trace_module(module, args).segments if s.is_block]
    assert sum(s.count for s in blocks) == len(module)
    assert [s.count for s in blocks[-2:]] == [5, 1]
    assert [s.modules[-1] for s in blocks[-2:]] == ["5", "6"]


@pytest.mark.parametrize("name", ["penalised-weights", "moving-average"])
def test_parameters_that_are_read_elsewhere_count_once_each(name: str) -> None:
    module, args, _ = ZOO[name]()
    graph = trace_module(module, args)
    assert graph.n_parameters == sum(p.numel() for p in module.parameters())
    reads = {i for s in graph.segments for op in s.operators for i in op.inputs}
    parameters = {t.index for s in graph.segments for t in s.parameters}
    assert len(parameters & reads) == len(list(module.parameters()))
