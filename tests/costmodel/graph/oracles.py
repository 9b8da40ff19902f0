"""What a real step on the CPU does: FLOP by torch's counter, bytes by saved-tensor hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from costmodel.graph.tracing import default_loss

__all__ = ["real_step"]


def real_step(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """FLOP of forward and backward, and bytes that autograd saves (parameters and buffers aside)."""
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    storages: dict[int, int] = {}
    keep = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        key = t.untyped_storage()._cdata
        if key not in own:
            storages[key] = t.untyped_storage().nbytes()
            keep.append(t)
        return t

    counter = FlopCounterMode(display=False)
    with counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = default_loss(module(*args, **kwargs))
        loss.backward()
    return counter.get_total_flops(), sum(storages.values())
