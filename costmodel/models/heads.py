"""Heads that predict fewer positions than the sequence has, as masked language models are trained.

BERT's pre-training hides 15 % of the tokens, at most 20 of 128 and 80 of 512; implementations after Google's
gather those positions before the layers that lead to the vocabulary (arXiv 1810.04805, appendix A.1;
run_pretraining.py, max_predictions_per_seq). Others run the head on every position.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from costmodel.errors import ModelArgumentError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from costmodel.models.source import BuiltModel, ModelSource

__all__ = ["with_fewer_predictions"]


def with_fewer_predictions(source: ModelSource, head: str, share: float) -> ModelSource:
    """The same model whose module `head` sees ceil(share x positions) of each sequence, and as many labels.

    Raises ModelArgumentError where the share is no part of one, on building where there is no such module.
    """
    if not 0.0 < share <= 1.0:
        raise ModelArgumentError(f"share({share:g}) of predicted positions: must be above 0 and at most 1")

    def build(micro_batch_size: int, seq_len: int) -> BuiltModel:
        built = source.builder(micro_batch_size, seq_len)
        positions = math.ceil(share * seq_len)
        _gather_before(built.module, head, positions)
        labels = built.kwargs.get("labels")
        if labels is None:
            return built
        return replace(built, kwargs={**built.kwargs, "labels": labels[:, :positions].contiguous()})

    identity = f"{source.identity}/{head}:{share:g}" if source.identity else ""
    return replace(source, builder=build, identity=identity)


def _gather_before(module: nn.Module, head: str, positions: int) -> None:
    """Let `head` see the first `positions` of a sequence (which ones are gathered costs the same)."""
    try:
        layer = module.get_submodule(head)
    except AttributeError:
        known = ", ".join(name for name, _ in module.named_children())
        raise ModelArgumentError(
            f"model {type(module).__name__} has no module {head!r}; its modules are {known}"
        ) from None
    if not layer._forward_pre_hooks:  # fake parameters, and so the module, serve every trace
        layer.register_forward_pre_hook(partial(_first, positions))


def _first(positions: int, layer: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (args[0][:, :positions].contiguous(), *args[1:])
