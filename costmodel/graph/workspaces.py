"""Results whose size torch's shape functions do not tell: asked from the library that makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

__all__ = ["of_known_size", "with_workspace"]

_STEPS = {"small": (128, 256), "large": (16, 32)}
"""Lengths at which a recurrent layer's workspace is asked: it grows by the same bytes each step, up to the
page it is rounded to, which a small one feels."""
_SMALL_WEIGHTS = 2**20
"""Batch times weights of a step up to which a real call is cheap."""


def _asked_bytes(args: Sequence[Any], steps: int) -> int:
    """Bytes of the workspace that a real call of so many steps makes; none without gradients."""
    real = [
        torch.zeros((steps, *a.shape[1:]) if place == 0 else tuple(a.shape), dtype=a.dtype)
        if isinstance(a, torch.Tensor)
        else a
        for place, a in enumerate(args)
    ]
    workspace = torch.ops.aten.mkldnn_rnn_layer.default(*real)[3]
    return 0 if workspace is None else int(workspace.numel())


def _recurrent_layer(args: Sequence[Any], out: Any) -> Any:
    """oneDNN's recurrent layer on [steps, batch, features] keeps gates and states of every step."""
    steps, batch = args[0].shape[:2]
    first, second = _STEPS["small" if batch * args[2].numel() <= _SMALL_WEIGHTS else "large"]
    with unset_fake_temporarily():
        if steps <= second:
            size = _asked_bytes(args, steps)
        else:
            low, high = (_asked_bytes(args, n) for n in (first, second))
            size = low + (high - low) * (steps - first) // (second - first)
    return (*out[:3], args[0].new_empty(size, dtype=torch.uint8))


_SIZES: dict[Any, Callable[[Sequence[Any], Any], Any]] = {
    torch.ops.aten.mkldnn_rnn_layer.default: _recurrent_layer
}


def _ctc(args: Sequence[Any]) -> Any:
    """Losses and a table of [samples, steps, blanks around labels], as for targets of full length."""
    log_probs, targets = args[:2]
    steps, batch = log_probs.shape[:2]
    longest = targets.shape[1] if targets.ndim == 2 else -(-targets.shape[0] // batch)
    return log_probs.new_empty(batch), log_probs.new_empty(batch, steps, 2 * longest + 1)


_OF_DATA: dict[Any, Callable[[Sequence[Any]], Any]] = {torch.ops.aten._ctc_loss.Tensor: _ctc}


def of_known_size(func: Any, args: Sequence[Any]) -> Any:
    """The results of a call whose sizes depend on data but are taken to be the largest; None for others."""
    make = _OF_DATA.get(func)
    return None if make is None else make(args)


def with_workspace(func: Any, args: Sequence[Any], out: Any) -> Any:
    """`out` with its workspace in the size that a real run keeps for backward."""
    complete = _SIZES.get(func)
    return out if complete is None else complete(args, out)
