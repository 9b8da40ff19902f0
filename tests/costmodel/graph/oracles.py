"""What a real step on the CPU does: FLOP by torch's counter, bytes by saved-tensor hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_backward_flop

from costmodel.graph.loss import default_loss

__all__ = ["real_step"]


def _grouped_too(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
    """torch's count with a weight gradient that meets the channels of its own group only."""
    *front, groups, mask = args
    of_inputs, of_weights = (
        conv_backward_flop(*front, groups, asked, out_val=out_val) if asked[at] else 0
        for at, asked in enumerate(([mask[0], False, False], [False, mask[1], False]))
    )
    return int(of_inputs + of_weights // groups)


_grouped_too._get_raw = True  # type: ignore[attr-defined]


def _recurrent(x: Sequence[int], w_input: Sequence[int], w_state: Sequence[int], *_: Any, **__: Any) -> int:
    """A layer's products over all steps, as if written out."""
    return 2 * x[0] * x[1] * w_state[0] * (w_input[1] + w_state[1])


def _recurrent_backward(*args: Any, **_: Any) -> int:
    return 2 * _recurrent(*args[:3])


_FORMULAS = {
    torch.ops.aten.convolution_backward: _grouped_too,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
    torch.ops.aten.mkldnn_rnn_layer_backward: _recurrent_backward,
}
"""What torch's counter counts too high and what it passes over."""


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

    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = default_loss(module(*args, **kwargs))
        loss.backward()
    return counter.get_total_flops(), sum(storages.values())
