"""The `compiled` view against what TorchInductor makes of the same modules: kernels and their bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch._inductor import config
from torch._inductor.async_compile import AsyncCompile

from costmodel.graph import trace_module
from costmodel.graph.fusion import fuse
from costmodel.graph.model_graph import Phase

MEMORY_BOUND = ("elementwise", "norm", "reduction", "softmax")
H = 64


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(H), nn.LayerNorm(H)
        self.qkv, self.out = nn.Linear(H, 3 * H), nn.Linear(H, H)
        self.wide, self.narrow = nn.Linear(H, 4 * H), nn.Linear(4 * H, H)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, h = x.shape
        q, k, v = self.qkv(self.first(x)).view(b, s, 3, 4, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, s, h))
        return x + self.narrow(nn.functional.gelu(self.wide(self.second(x))))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(H))
        self.up, self.gate = nn.Linear(H, 4 * H, bias=False), nn.Linear(H, 4 * H, bias=False)
        self.down = nn.Linear(4 * H, H, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Written(nn.Module):
    """Attention written out: scale, mask and softmax between two products."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(H, 3 * H), nn.Linear(H, H)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = torch.matmul(q, k.transpose(-1, -2)) * 0.125
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.out(torch.matmul(torch.softmax(scores.masked_fill(later, -1e4), -1), v))


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
    )


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(H, 4 * H), nn.GELU(approximate="tanh"), nn.Linear(4 * H, H))


class Loss(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).square().mean()


def inductor(module: nn.Module, x: torch.Tensor) -> list[tuple[int, int]]:
    """(kernels, bytes) of forward and of backward: what is left after fusion beside library calls.

    The kernels' source is not compiled: they leave their results as they are.
    """
    found: list[tuple[int, int]] = []

    def look(nodes: list[Any]) -> list[Any]:
        own = [n for n in nodes if not n.is_extern() and type(n).__name__ != "NopKernelSchedulerNode"]
        found.append((len(own), sum(n.get_read_write_buffers_sizes() for n in own)))
        return nodes

    torch._dynamo.reset()
    changed = config.patch(
        {"_post_fusion_custom_pass": look, "fx_graph_cache": False, "cpp.vec_isa_ok": True}
    )
    without_compiler = patch.object(AsyncCompile, "cpp_pybinding", lambda *_: lambda *_: None)
    with changed, without_compiler, torch.enable_grad():
        torch.compile(module)(x).backward()
    return found


def ours(module: nn.Module, x: torch.Tensor, fusion: str) -> list[tuple[int, int]]:
    graph = trace_module(module, (x,), loss_of=lambda loss: loss)
    kernels = [
        (s.count, op) for s in graph.segments for op in fuse(s, fusion).operators if op.kind in MEMORY_BOUND
    ]
    return [
        (
            sum(count for count, op in kernels if op.phase is phase),
            sum(count * (op.bytes_read + op.bytes_written) for count, op in kernels if op.phase is phase),
        )
        for phase in (Phase.FORWARD, Phase.BACKWARD)
    ]


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (Block, (2, 16, H)),
        (Gated, (2, 16, H)),
        (Written, (2, 16, H)),
        (_convolutions, (2, 3, 16, 16)),
        (_perceptron, (2, 16, H)),
    ],
    ids=["block", "gated", "written", "convolutions", "perceptron"],
)
@pytest.mark.slow
def test_kernels_and_bytes(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module, x = Loss(make()), torch.randn(shape)
    theirs, mine, eager = inductor(module, x), ours(module, x, "compiled"), ours(module, x, "eager")
    # on a CPU Inductor splits long reductions and running statistics into kernels of their own
    their_kernels, my_kernels, eager_kernels = (sum(n for n, _ in found) for found in (theirs, mine, eager))
    assert my_kernels == pytest.approx(their_kernels, rel=0.4)
    assert my_kernels < eager_kernels
    their_bytes, my_bytes, eager_bytes = (sum(size for _, size in found) for found in (theirs, mine, eager))
    assert my_bytes == pytest.approx(their_bytes, rel=0.25)
    assert eager_bytes > 1.2 * my_bytes
