"""Experts of a fixed capacity, as they can be traced: each takes as many tokens as it may.

How many tokens an expert gets is in the data, which a trace has not. A router with a capacity (Switch
Transformers, arXiv 2101.03961, section 2.2) bounds it: tokens above are left out. With more tokens than
experts can take, or rows padded to the capacity, every expert runs on exactly so many.
"""

from __future__ import annotations

from inspect import signature
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["with_full_experts"]


def with_full_experts(module: nn.Module) -> None:
    """Let layers whose router has an `expert_capacity` and whose experts are modules run each on that many
    tokens of a sequence (all of a shorter one), in place of those that the data decides on. Layers that take
    more than their tokens route by rules of their own and are left alone."""
    from torch import nn

    for layer in module.modules():
        router, experts = getattr(layer, "router", None), getattr(layer, "experts", None)
        if not isinstance(experts, nn.ModuleDict) or not hasattr(router, "expert_capacity"):
            continue
        if len(signature(layer.forward).parameters) == 1:
            layer.forward = MethodType(_forward, layer)


def _forward(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """[batch, tokens, width] -> the same: route, run each expert on its capacity, add up by token."""
    import torch

    router, experts = layer.router, layer.experts
    n_tokens, width = hidden_states.shape[-2:]
    capacity = min(n_tokens, router.expert_capacity)
    logits = router.classifier(hidden_states)
    shares = torch.nn.functional.softmax(logits, dim=-1, dtype=router.dtype).to(hidden_states.dtype)
    chosen = torch.nn.functional.one_hot(shares.argmax(dim=-1), num_classes=len(experts))
    chosen = chosen * (torch.cumsum(chosen, dim=-2) <= capacity)
    weights = shares.max(dim=-1).values.reshape(-1, 1)
    rows = hidden_states.reshape(-1, width)
    added = torch.zeros_like(rows)
    starts = n_tokens * torch.arange(len(rows) // n_tokens, device=rows.device).reshape(-1, 1)
    for number, expert in enumerate(experts.values()):
        first = chosen[..., number].reshape(-1, n_tokens).argsort(dim=-1, descending=True)[:, :capacity]
        taken = (first + starts).reshape(-1)
        made = expert(rows[taken]) * weights[taken]
        added = added.index_add(0, taken, made.to(added.dtype))
    return added.reshape(hidden_states.shape)
