"""Low-rank adapters beside frozen weights, as models are fine-tuned with few parameters.

Every parameter is frozen; each chosen linear layer W gets y = x W^T + (x A^T) B^T with A [rank, in] and
B [out, rank], which alone are trained (LoRA, arXiv 2106.09685, section 4.1; its scale is part of B here).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from costmodel.errors import ModelArgumentError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from costmodel.models.source import BuiltModel, ModelSource

__all__ = ["with_adapters"]


def with_adapters(source: ModelSource, layers: Sequence[str], rank: int) -> ModelSource:
    """The same model, frozen, with adapters of `rank` on the linear layers whose last name is in `layers`;
    on all linear layers but the last one where `layers` is empty.

    Raises ModelArgumentError where the rank is not positive, on building where there is no such layer.
    """
    if rank < 1:
        raise ModelArgumentError(f"rank({rank}) of adapters: must be at least 1")

    def build(micro_batch_size: int, seq_len: int) -> BuiltModel:
        built = source.builder(micro_batch_size, seq_len)
        _adapt(built.module, frozenset(layers), rank)
        return built

    names = ",".join(layers) or "linear"
    identity = f"{source.identity}/{names}:rank{rank}" if source.identity else ""
    return replace(source, builder=build, identity=identity)


def _adapt(module: nn.Module, layers: frozenset[str], rank: int) -> None:
    """Freeze the module and put adapters beside its layers, once: a built module serves every trace."""
    from torch import nn

    linear = [(name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear)]
    if any(hasattr(layer, "adapter_a") for _, layer in linear):
        return
    chosen = [m for name, m in linear if name.rpartition(".")[2] in layers] if layers else []
    if not layers:
        chosen = [layer for _, layer in linear[:-1]]
    if not chosen:
        known = ", ".join(sorted({name.rpartition(".")[2] for name, _ in linear}))
        raise ModelArgumentError(
            f"model {type(module).__name__} has no linear layer named {' or '.join(sorted(layers))}; "
            f"its linear layers are {known or 'none'}"
        )
    module.requires_grad_(False)
    for layer in chosen:
        layer.adapter_a = nn.Linear(layer.in_features, rank, bias=False, dtype=layer.weight.dtype)
        layer.adapter_b = nn.Linear(rank, layer.out_features, bias=False, dtype=layer.weight.dtype)
        layer.register_forward_hook(_add)


def _add(layer: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
    down, up = layer.get_submodule("adapter_a"), layer.get_submodule("adapter_b")
    adapted: torch.Tensor = up(down(args[0]))
    return out + adapted
