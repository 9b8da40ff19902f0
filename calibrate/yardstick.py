"""The yardstick: a small training step, always the same, that says how fast the machine is just now.

A shared machine changes by 10 to 30 % within minutes (clock, neighbours on the same core or memory). The
yardstick is measured while a profile is, and again beside each real run; the ratio is what the machine lost
in between, whatever model runs. It holds products, a convolution, streams through memory, small operators and
an update, and nothing that waits for another rank: waiting is too irregular to measure anything by.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Yardstick"]

_SEED = 11
_ROWS, _WIDTH = 64, 384
_IMAGES, _CHANNELS, _SIDE = 4, 32, 24
_STREAM_ELEMENTS = 1 << 20
_SMALL_OPERATORS = 60


class Yardstick:
    """Calling it runs one step and returns its seconds."""

    def __init__(self, device: torch.device) -> None:
        import torch

        generator = torch.Generator().manual_seed(_SEED)

        def numbers(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        self._device = device
        self._x, self._image = numbers(_ROWS, _WIDTH), numbers(_IMAGES, _CHANNELS, _SIDE, _SIDE)
        self._small = numbers(16)
        self._stream, self._other = numbers(_STREAM_ELEMENTS), numbers(_STREAM_ELEMENTS)
        self._matrices = [torch.nn.Parameter(numbers(_WIDTH, _WIDTH)) for _ in range(3)]
        self._kernel = torch.nn.Parameter(numbers(_CHANNELS, _CHANNELS, 3, 3))
        self._optimizer = torch.optim.AdamW([*self._matrices, self._kernel], lr=1e-6)
        self()  # allocates, and builds what libraries build once

    def __call__(self) -> float:
        """Seconds of one step."""
        import torch

        self._settle()
        start = time.perf_counter()
        with torch.enable_grad():
            x = self._x
            for matrix in self._matrices:
                x = torch.nn.functional.layer_norm(x @ matrix, (_WIDTH,))
            image = torch.nn.functional.conv2d(self._image, self._kernel, padding=1)
            (x.sum() + image.relu().sum()).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for _ in range(2):
                torch.add(self._stream, self._other, out=self._other)
                torch.mul(self._other, 0.5, out=self._stream)
            small = self._small
            for _ in range(_SMALL_OPERATORS):
                small = small + 1.0
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._settle()
        return time.perf_counter() - start

    def _settle(self) -> None:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
