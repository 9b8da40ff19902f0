"""Chains of blocks that the host's cases train, at once or with the gradients of weights taken apart.

On a CPU, buffers larger than a core's own caches are written between the blocks: in a step the operators'
data drive the wrappers' code out of them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from calibrate.benchmarks.base import Bench, Call

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["BLOCKS", "PIECES", "WIDTH", "chain", "chain_input", "colder_identity", "trained", "trained_apart"]

BLOCKS = 8
"""Blocks of the training chain; a block is linear, GELU, add."""
PIECES = (2, 6)
"""Small and large number of buckets, FSDP units and micro-batches that are compared."""
WIDTH = 8
"""Width and rows of a tiny block."""
_FLUSHED_BYTES = 4 << 20
"""More than the first two caches of a core."""
_RINGS: WeakKeyDictionary[Bench, cycle[torch.Tensor]] = WeakKeyDictionary()
"""Buffers that all cases flush in turn: one alone would stay in the last cache where pieces are few."""


def _flush(bench: Bench) -> Callable[[], None]:
    """Writes a buffer that pushes code and data out of the core's own caches; nothing with a device."""
    import torch

    if bench.cuda:
        return lambda: None
    ring = _RINGS.setdefault(bench, cycle(torch.zeros(PIECES[-1], _FLUSHED_BYTES // 4).unbind()))

    def flush() -> None:
        with torch.no_grad():
            next(ring).add_(1.0)

    return flush


def colder_identity(bench: Bench) -> nn.Module:
    """An identity that flushes in forward, and in backward from a hook on its input's gradient."""
    from torch import nn

    flush = _flush(bench)

    class Colder(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flush()
            if x.requires_grad:
                x.register_hook(lambda gradient: flush())
            return x

    return nn.Identity() if bench.cuda else Colder()


def chain(bench: Bench, n: int = BLOCKS, *, colder: bool = False, width: int = WIDTH) -> nn.Sequential:
    """Blocks of linear, GELU and the addition of a constant, as modules; each flushes last if `colder` (its
    output has a gradient, which the first block's input has not)."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(width, width, device=bench.device)
            self.gelu = nn.GELU()
            self.last = colder_identity(bench) if colder else nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.last(torch.add(self.gelu(self.linear(x)), x))
            return y

    return nn.Sequential(*(Block() for _ in range(n)))


def chain_input(bench: Bench, width: int = WIDTH) -> torch.Tensor:
    return bench.take((width, width)).clone()


def trained(model: nn.Module, x: torch.Tensor) -> Call:
    """Forward and backward with gradients dropped afterwards."""
    import torch

    gradient = torch.ones_like(x)
    parameters = list(model.parameters())

    def call() -> None:
        with torch.enable_grad():
            model(x).backward(gradient)
        for parameter in parameters:
            parameter.grad = None

    return call


def trained_apart(model: nn.Module, x: torch.Tensor) -> Call:
    """`trained` with gradients of inputs and of weights taken apart, as torch's zero-bubble schedules do."""
    import torch
    from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight

    gradient = torch.ones_like(x)
    parameters = list(model.parameters())

    def call() -> None:
        with torch.enable_grad():
            y = model(x)
            _, groups = stage_backward_input([y], [gradient], [x], iter(parameters))
            stage_backward_weight(iter(parameters), groups)
        for tensor in (x, *parameters):
            tensor.grad = None

    return call
