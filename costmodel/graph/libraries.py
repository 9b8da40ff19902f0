"""Libraries that look at tensors' values on their way: fake ones have none, so the answer is given here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["as_on_real_tensors", "fused_where_written_out", "written_out_by_library"]

_MASKS = "transformers.masking_utils"
_LAYERS = "torch.nn.modules.transformer"
_DISTRIBUTIONS = "torch.distributions.distribution"
_MODELS = "transformers.modeling_utils"
_FUSED = "foreshard_fused"


def _one_sequence(position_ids: Any) -> None:
    """Positions count up from zero: one sequence in each row, as in the inputs made here."""
    return


def _causal_where_square(
    mask: torch.Tensor | None, is_causal: bool | None = None, size: int | None = None
) -> bool:
    """A mask of queries by keys of one length hides the later ones, as nn.Transformer's own mask does."""
    if is_causal is not None or mask is None:
        return is_causal is True
    length = mask.shape[-2] if size is None else size
    return tuple(mask.shape) == (length, length)


@contextmanager
def as_on_real_tensors() -> Iterator[None]:
    """Inside, libraries take the way that they take in a real run, where tensors have values to look at.

    transformers reads position ids to find packed sequences; where it cannot, it builds a mask, which keeps
    attention from the causal kernel and repeats grouped keys and values. Here rows hold one sequence each.
    torch's nn.Transformer compares a mask that it is given with the causal one; here a square mask is that.
    torch.distributions looks whether its parameters are allowed; here they are.
    Experts are looked up by names with a number in them, which a tensor prints as where it is one.
    """
    answers = (
        (sys.modules.get(_MASKS), "find_packed_sequence_indices", _one_sequence),
        (sys.modules.get(_LAYERS), "_detect_is_causal_mask", _causal_where_square),
        (getattr(sys.modules.get(_DISTRIBUTIONS), "Distribution", None), "_validate_args", False),
        (FakeTensor, "__format__", _as_a_number),
    )
    before = []
    for library, function, answer in answers:
        if hasattr(library, function):
            before.append((library, function, getattr(library, function)))
            setattr(library, function, answer)
    try:
        yield
    finally:
        for library, function, own in before:
            setattr(library, function, own)


def _as_a_number(tensor: FakeTensor, spec: str) -> str:
    try:
        return format(tensor.item(), spec) if tensor.ndim == 0 else object.__format__(tensor, spec)
    except DataDependentOutputException:
        return object.__format__(tensor, spec)


@contextmanager
def fused_where_written_out(module: nn.Module) -> Iterator[None]:
    """Inside, a transformers model trains with one attention kernel although the library writes it out.

    Some attentions (with sinks beside the keys, say) have no kernel in torch, while training frameworks bring
    their own: they work as plain causal ones do. A sliding window of w does the work of w keys a query.
    """
    models = sys.modules.get(_MODELS)
    config = getattr(module, "config", None)
    written_out = getattr(config, "_attn_implementation", None) == "eager"
    exchangeable = getattr(module, "_supports_attention_backend", False)
    if models is None or not written_out or not exchangeable or getattr(module, "_supports_sdpa", True):
        yield
        return
    models.ALL_ATTENTION_FUNCTIONS.register(_FUSED, _causal)
    config._attn_implementation = _FUSED  # type: ignore[union-attr]
    try:
        yield
    finally:
        config._attn_implementation = "eager"  # type: ignore[union-attr]


@contextmanager
def written_out_by_library(module: nn.Module) -> Iterator[None]:
    """Inside, a transformers model runs attention as the library writes it out (attn_implementation="eager").

    Scores are scaled and masked in kernels of their own, where torch's `scaled_dot_product_attention` scales
    queries and keys and adds a mask only where there is one. Models of whole sequences get their mask too, as
    in a run on padded ones. Other models are left as they are.
    """
    masks = sys.modules.get(_MASKS)
    configs = {id(c): c for child in module.modules() if (c := getattr(child, "config", None)) is not None}
    before = {
        key: config._attn_implementation
        for key, config in configs.items()
        if getattr(config, "_attn_implementation", None) is not None
    }
    if masks is None or not before:
        yield
        return
    skips = masks._ignore_bidirectional_mask_sdpa
    masks._ignore_bidirectional_mask_sdpa = _never  # type: ignore[attr-defined]
    try:
        for key in before:
            configs[key]._attn_implementation = "eager"
        yield
    finally:
        masks._ignore_bidirectional_mask_sdpa = skips  # type: ignore[attr-defined]
        for key, how in before.items():
            configs[key]._attn_implementation = how


def _never(*_: Any, **__: Any) -> bool:
    return False


def _causal(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of queries [b, h, s, d] on keys and values [b, h_kv, s, d], as transformers calls it."""
    from torch.nn.functional import scaled_dot_product_attention

    windowed = sliding_window is not None and sliding_window < key.shape[2]
    if windowed:
        key, value = key[:, :, :sliding_window], value[:, :, :sliding_window]
    grouped = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(
        query, key, value, is_causal=not windowed, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2).contiguous(), None
