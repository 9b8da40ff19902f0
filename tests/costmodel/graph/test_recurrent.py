"""Recurrent layers as a GPU runs them, against what their cells compute step by step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from costmodel.graph import trace_module
from costmodel.graph.model_graph import Phase

STEPS, BATCH, WIDTH, HIDDEN = 7, 3, 20, 32


@pytest.mark.parametrize(("cls", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize(("directions", "bias"), [(1, True), (2, False)])
def test_one_call_a_layer_and_direction(
    cls: type[nn.Module], gates: int, directions: int, bias: bool
) -> None:
    module = cls(WIDTH, HIDDEN, 2, bias=bias, batch_first=True, bidirectional=directions == 2)
    graph = trace_module(module, (torch.randn(BATCH, STEPS, WIDTH),), attention="flash")
    calls = {op.target for _, op in graph.operators() if "recurrent" in op.target}
    assert calls == {"foreshard.recurrent_layer.default", "foreshard.recurrent_layer_backward.default"}
    inputs = WIDTH + directions * HIDDEN
    products = 2 * STEPS * BATCH * directions * gates * HIDDEN * (inputs + 2 * HIDDEN)
    assert graph.flop(Phase.FORWARD) == products
    assert graph.flop(Phase.BACKWARD) == 2 * products
    assert graph.n_parameters == sum(p.numel() for p in module.parameters())
    gradients = {t.shape for s in graph.segments for t in s.tensors if t.role == "gradient"}
    assert gradients >= {tuple(p.shape) for p in module.parameters()}
    assert graph.unmodelled_fraction == 0.0


def test_results_have_the_shapes_of_the_layer() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(WIDTH, HIDDEN, 2, bidirectional=True, dropout=0.1)
            self.head = nn.Linear(4 * HIDDEN, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out, (state, cell) = self.rnn(x)
            assert state.shape == cell.shape == (4, BATCH, HIDDEN)
            return self.head(torch.cat([out[-1], state[0], cell[1]], -1))

    graph = trace_module(Head(), (torch.randn(STEPS, BATCH, WIDTH),), attention="flash")
    assert sum(
        "recurrent_layer.default" in op.target and op.kind == "gemm" for _, op in graph.operators()
    ) == 4 * (STEPS + 1)
