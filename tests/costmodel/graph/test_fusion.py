"""What fusion may and may not change: arithmetic, products, what leaves a kernel, and the order of work."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from costmodel.graph import trace, trace_module
from costmodel.graph.fusion import FUSIONS, fuse
from costmodel.graph.liveness import saved_bytes
from costmodel.graph.model_graph import ModelGraph, Operator, Phase, Segment
from costmodel.models import resolve
from tests.costmodel.graph.test_tracing import LLAMA, SMALL

MEMORY_BOUND = ("elementwise", "softmax", "norm", "reduction")


class TanhGelu(nn.Module):
    """A chain of eight element-wise operators between two products."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.up(x)
        h = 0.5 * h * (1.0 + torch.tanh(0.79788456 * (h + 0.044715 * torch.pow(h, 3.0))))
        return self.down(h)


class Dropped(nn.Module):
    """Attention's middle: scale, softmax, dropout, product."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.values(torch.dropout(torch.softmax(0.125 * x, -1), 0.1, train=True))


class RootMeanSquare(nn.Module):
    """A normalisation written out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def whole(graph: ModelGraph) -> Segment:
    assert len(graph.segments) == 1
    return graph.segments[0]


def traced(module: nn.Module, *shape: int) -> Segment:
    graph = trace_module(module, (torch.randn(*shape, requires_grad=True),), reduce=False)
    return whole(graph)


def memory_bound(operators: tuple[Operator, ...], phase: Phase) -> list[Operator]:
    return [op for op in operators if op.phase is phase and op.kind in MEMORY_BOUND]


def test_a_cpu_runs_what_was_traced() -> None:
    segment = traced(TanhGelu(), 32, 64)
    expected = tuple(op for op in segment.operators if op.phase is not Phase.OPTIMIZER)
    assert fuse(segment, "as_traced").operators == expected
    assert fuse(segment, "as_traced").unwritten == frozenset()


@pytest.mark.parametrize("fusion", ["fused", "compiled"])
def test_a_chain_between_products_is_one_kernel(fusion: str) -> None:
    segment = traced(TanhGelu(), 32, 64)
    kernels = fuse(segment, fusion).operators
    chain = [op for op in memory_bound(kernels, Phase.FORWARD) if "tanh" in op.target]
    assert len(chain) == 1
    assert chain[0].bytes_read == 32 * 256 * 4
    assert chain[0].bytes_written == 32 * 256 * 4
    back = [op for op in memory_bound(kernels, Phase.BACKWARD) if "tanh_backward" in op.target]
    assert len(back) == 1
    # reads the gradient and the forward chain's input; a compiler sums the bias's gradient in the same sweep
    assert back[0].bytes_read == 2 * 32 * 256 * 4
    assert back[0].bytes_written == 32 * 256 * 4


def test_a_hand_written_softmax_takes_its_scale_and_leaves_the_dropout() -> None:
    segment = traced(Dropped(), 32, 64)
    size = 32 * 64
    softmax, dropout, *_ = memory_bound(fuse(segment, "fused").operators, Phase.FORWARD)
    assert (softmax.kind, softmax.bytes_read, softmax.bytes_written) == ("softmax", 4 * size, 4 * size)
    assert (dropout.bytes_read, dropout.bytes_written) == (4 * size, 4 * size + size)
    eager = memory_bound(fuse(segment, "eager").operators, Phase.FORWARD)
    assert [op.kind for op in eager[:3]] == ["elementwise", "softmax", "elementwise"]
    assert eager[2].bytes_written == 5 * size
    one, *_ = memory_bound(fuse(segment, "compiled").operators, Phase.FORWARD)
    assert one.bytes_read == 4 * size
    assert "softmax" in one.target
    assert "bernoulli" in one.target


@pytest.mark.parametrize(
    ("fusion", "kernels"), [("as_traced", 1), ("eager", 2), ("fused", 1), ("compiled", 1)]
)
def test_a_gpus_softmax_backward_multiplies_in_a_kernel_of_its_own(fusion: str, kernels: int) -> None:
    segment = traced(Dropped(), 32, 64)
    found = [op for op in fuse(segment, fusion).operators if "_softmax_backward_data" in op.target]
    assert len(found) == kernels
    if kernels == 2:
        product = next(op for op in found if op.kind == "elementwise")
        assert (product.bytes_read, product.bytes_written) == (2 * 4 * 32 * 64, 4 * 32 * 64)
        assert product.outputs == ()
    assert not [op for op in found if "_log_softmax" in op.target]


class Masked(nn.Module):
    """Half of a product's results are masked, in place or not."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.in_place = in_place
        self.register_buffer("mask", torch.ones(64, dtype=torch.bool))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        return (x.masked_fill_(self.mask, 0.0) if self.in_place else x.masked_fill(self.mask, 0.0)).square()


@pytest.mark.parametrize(
    ("fusion", "in_place", "copies"),
    [("eager", False, 2), ("eager", True, 1), ("as_traced", False, 0), ("compiled", False, 0)],
)
def test_a_gpu_masks_a_copy(fusion: str, in_place: bool, copies: int) -> None:
    """In backward too: a gradient is masked out of place."""
    segment = traced(Masked(in_place=in_place), 32, 64)
    found = [op for op in fuse(segment, fusion).operators if "(copy)" in op.target]
    size = 4 * 32 * 64
    assert [(op.bytes_read, op.bytes_written) for op in found] == [(size, size)] * copies


@pytest.mark.parametrize(
    ("fusion", "groups", "added", "summed"),
    [
        ("as_traced", 1, 0, 0),
        ("eager", 1, 1, 1),
        ("eager", 8, 0, 0),
        ("fused", 1, 0, 0),
        ("compiled", 1, 0, 0),
    ],
)
def test_a_gpu_adds_a_convolutions_bias_in_a_kernel_of_its_own(
    fusion: str, groups: int, added: int, summed: int
) -> None:
    segment = traced(nn.Conv2d(8, 8, 3, padding=1, groups=groups), 4, 8, 16, 16)
    beside = [op for op in fuse(segment, fusion).operators if "(bias)" in op.target]
    size = 4 * 4 * 8 * 16 * 16
    found = [(op.kind, op.bytes_read, op.bytes_written) for op in beside]
    assert found == [("elementwise", size, size)] * added + [("reduction", size, 0)] * summed
    assert not any(op.inputs or op.outputs for op in beside)  # parts of a call: nobody dispatches them
    without = traced(nn.Conv2d(8, 8, 3, padding=1, bias=False), 4, 8, 16, 16)
    assert not [op for op in fuse(without, fusion).operators if "(bias)" in op.target]


def test_a_normalisation_in_pieces_is_one_kernel() -> None:
    segment = traced(RootMeanSquare(), 32, 64)
    kernels = memory_bound(fuse(segment, "fused").operators, Phase.FORWARD)
    normalising = [op for op in kernels if "rsqrt" in op.target]
    assert len(normalising) == 1
    assert normalising[0].bytes_written <= 32 * 64 * 4 + 2 * 32 * 4


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", ["gpt2", "bert-large", "t5-small", "resnet-50", "llama"])
def test_fusion_keeps_arithmetic_and_products_and_never_moves_more(name: str, fusion: str) -> None:
    overrides = LLAMA if name == "llama" else SMALL[name]
    graph = trace(
        resolve(
            "llama-3.1-8b" if name == "llama" else name, micro_batch_size=2, seq_len=16, overrides=overrides
        )
    )
    for segment in graph.segments:
        eager = fuse(segment, "as_traced").operators
        kernels = fuse(segment, fusion).operators
        assert sum(op.flop for op in kernels) == sum(op.flop for op in eager)
        products = [op for op in eager if op.kind not in (*MEMORY_BOUND, "embedding")]
        assert [op for op in kernels if op.kind not in (*MEMORY_BOUND, "embedding")] == products
        # torch's softmax backward on a GPU is two kernels of as many bytes, and so is masking
        twice = ("aten._softmax_backward", "aten.masked_fill.")
        again = [op for op in eager if any(t in op.target for t in twice) and fusion == "eager"]
        assert sum(op.bytes_read + op.bytes_written for op in kernels) <= 1.001 * sum(
            op.bytes_read + op.bytes_written for op in (*eager, *again)
        )
        assert len(kernels) <= len(eager) + len(again)
        assert saved_bytes(segment, fused=fuse(segment, fusion)) <= saved_bytes(segment)


@pytest.mark.parametrize("fusion", ["fused", "compiled"])
def test_every_kernel_runs_after_what_it_reads(fusion: str) -> None:
    graph = trace(resolve("gpt2", micro_batch_size=2, seq_len=16, overrides=SMALL["gpt2"]))
    for segment in graph.segments:
        kernels = fuse(segment, fusion).operators
        made = {t for op in kernels for t in op.outputs}
        internal = fuse(segment, fusion).unwritten
        storage = {t.index: t.index if t.view_of is None else t.view_of for t in segment.tensors}
        for op in kernels:
            if op.kind != "host":  # a view moves nothing
                assert not {storage[t] for t in op.inputs} & internal, op.target
        assert made
