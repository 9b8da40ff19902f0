"""One number of a model's output to compute gradients of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from costmodel.errors import TraceError

__all__ = ["default_loss"]


def default_loss(output: Any) -> torch.Tensor:
    """The `loss` of the output where it has one, a single number itself, else the mean of its first
    floating-point tensor. Raises TraceError where there is none."""
    loss = getattr(output, "loss", None)
    if isinstance(loss, torch.Tensor):
        return loss
    first = next((t for t in _tensors_in(output) if t.is_floating_point()), None)
    if first is None:
        raise TraceError(
            "the model's output holds no floating-point tensor to make a loss of: return one, or ask for "
            "inference (`trace --inference`, `infer`)"
        )
    return first if first.ndim == 0 else first.float().mean()


def _tensors_in(output: Any) -> Iterator[torch.Tensor]:
    """Tensors in lists, dictionaries and in what other objects hold (dataclasses), in order."""
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif is_dataclass(leaf):
            yield from _tensors_in([getattr(leaf, field.name) for field in fields(leaf)])
