"""Models that the tests of real runs name as `module:callable`."""

from __future__ import annotations

import os
import signal
import time
from itertools import pairwise

import torch
from torch import nn

__all__ = [
    "conv_net",
    "dies_for_two",
    "dies_on_rank_1",
    "hangs_on_rank_1",
    "mixed",
    "perceptron",
    "raises",
    "tied",
    "unused_branch",
    "wide_perceptron",
]


def perceptron() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Four linear layers, batch 8."""
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(32, 32), nn.Tanh()]
    return nn.Sequential(*layers), (torch.randn(8, 32),)


class _ConvBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)
        self.down = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.norm(self.up(x))))


class _FusedAttention(nn.Module):
    """A fused query-key-value projection that is cut by `split`, as GPT-2's code does."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.head = width, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            t.view(*t.shape[:-1], -1, self.head).transpose(1, 2) for t in self.qkv(x).split(self.width, dim=2)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class _Mixed(nn.Module):
    """A parameter outside any layer, a mask made in the forward, a skip over blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))
        self.blocks = nn.ModuleList(_FusedAttention(16, 4) for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        mask = torch.arange(x.shape[1])[None] < lengths[:, None]
        first = x * self.scale
        y = first
        for block in self.blocks:
            y = y + block(y)
        y = torch.where(mask[..., None], self.head(y + first), torch.zeros(()))
        return y.square().sum() / (x.shape[0] * x.shape[1])


def mixed() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """Attention blocks with a long skip and a mask, batch 4."""
    return _Mixed(), (torch.randn(4, 6, 16), torch.tensor([6, 3, 5, 1]))


class _Tied(nn.Module):
    """A head that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), tokens.flatten())


def tied() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """A tiny language model with tied embeddings, batch 4."""
    return _Tied(), (torch.randint(0, 11, (4, 5)),)


def conv_net() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Two residual convolution blocks, batch 4."""
    return nn.Sequential(_ConvBlock(4), _ConvBlock(4)), (torch.randn(4, 4, 8, 8),)


class _UnusedBranch(nn.Module):
    """The loss does not depend on one of its layers, called in its first half."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(128, 128) for _ in range(4))
        self.aside = nn.Linear(128, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, block in enumerate(self.blocks):
            x = torch.tanh(block(x))
            if number == 1:
                self.aside(x)
        return x.square().mean()


def unused_branch() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Four layers and one beside them whose result nothing reads, batch 8."""
    return _UnusedBranch(), (torch.randn(8, 128),)


class _Sick(nn.Module):
    """Misbehaves on rank 1 at its third forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how, self.calls = nn.Linear(4, 4), how, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if os.environ.get("RANK") == "1" and self.calls == 3:
            print("about to misbehave", flush=True)
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3600)
        return self.layer(x)


def dies_on_rank_1() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Kills rank 1 in its third forward."""
    return _Sick("die"), (torch.randn(2, 4),)


def hangs_on_rank_1() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Stops rank 1 in its third forward."""
    return _Sick("hang"), (torch.randn(2, 4),)


class _SickForTwo(nn.Module):
    """Kills rank 1 in its third forward where a micro-batch has two samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if os.environ.get("RANK") == "1" and self.calls == 3 and x.shape[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(x)


def dies_for_two() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Kills rank 1 under micro-batches of two, batch 4."""
    return _SickForTwo(), (torch.randn(4, 4),)


def raises() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Cannot be built."""
    raise RuntimeError("no weights today")


def wide_perceptron() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Eight wide linear layers, 16 MB in all, with a narrow waist in the middle, batch 1: replicas exchange
    much, the halves of a pipeline little."""
    sizes = [704, 704, 704, 704, 704, 32, 704, 704, 704, 704, 704]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers), (torch.randn(1, 704),)
