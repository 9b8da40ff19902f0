"""Images beside text: what models take that read a text with images in it.

Tokens of an image stand in the text as placeholders, as many as the vision part makes of the image. One image
a sample, of the size that the configuration names; a model that takes any size sees it at 224 pixels a side
(assumed), or as many as its text has room for.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from math import isqrt
from typing import Any

from costmodel.errors import ModelArgumentError

__all__ = ["UNSEEN", "has_placeholders", "image_sides", "text_alone", "with_images"]

UNSEEN = "the vision part is not run"
"""How a note begins on a call without images."""
_SIDE = 224
"""Pixels a side where the configuration names no size."""
_PIXELS, _GRID, _SIZES = "pixel_values", "image_grid_thw", "image_sizes"
_KINDS, _PLACES = "mm_token_type_ids", "position_ids"
_OF_IMAGES = (_PIXELS, _GRID, _SIZES, _KINDS, _PLACES)
_PLACEHOLDERS = ("image_token_id", "image_token_index")


def image_sides(vision: Any) -> tuple[int, int]:
    """Height and width of images in pixels."""
    size = getattr(vision, "image_size", None) or _SIDE
    return (size, size) if isinstance(size, int) else tuple(size)


def has_placeholders(module: Any, config: Any) -> bool:
    """Whether the module reads text in which placeholders stand for images."""
    names = inspect.signature(module.forward).parameters
    return _PIXELS in names and "input_ids" in names and _placeholder(config) is not None


def _placeholder(config: Any) -> int | None:
    return next((t for t in (getattr(config, name, None) for name in _PLACEHOLDERS) if t is not None), None)


def text_alone(kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """A call's inputs without images; None where it has no images or no text beside them."""
    left = {name: value for name, value in kwargs.items() if name not in _OF_IMAGES}
    return left if _PIXELS in kwargs and "input_ids" in left else None


def with_images(module: Any, config: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's inputs on text with an image in each sample: pixels, their layout, placeholders in the text.

    `inputs` where the model has no placeholders. What the numbers of tokens and patches follow from keeps its
    values where a trace makes tensors without any. Raises ModelArgumentError where there is no such call.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    token, names = _placeholder(config), set(inspect.signature(module.forward).parameters)
    if token is None or not has_placeholders(module, config) or "input_ids" not in inputs:
        return dict(inputs)
    batch, seq_len = inputs["input_ids"].shape
    if _GRID in names:
        images, n_tokens = _patches(getattr(config, "vision_config", config), batch, seq_len)
    else:
        images, n_tokens = _pictures(module, config, names, batch)
    if n_tokens > seq_len:
        raise ModelArgumentError(
            f"an image takes {n_tokens} tokens, more than a sequence of {seq_len}; give a longer one"
        )
    vocab = max(2, getattr(getattr(config, "text_config", config), "vocab_size", 0))
    traced = isinstance(torch.empty(0), FakeTensor)
    with _of_numbers():
        words = torch.randint(0, vocab, (batch, seq_len))
        ids = torch.where(words == token, (words + 1) % vocab, words)
        ids[:, :n_tokens] = token
        if _KINDS in names:
            images[_KINDS] = (ids == token).long()
        if traced:
            images.update(_places(module, names, {"input_ids": ids, **images}))
    return {**inputs, "input_ids": ids, **images}


def _places(module: Any, names: set[str], images: Mapping[str, Any]) -> dict[str, Any]:
    """Positions of tokens in texts and images, by the model's own function, which reads values one by one."""
    locate = _method(module, "get_rope_index")
    if locate is None or _PLACES not in names:
        return {}
    takes = inspect.signature(locate).parameters
    try:
        return {_PLACES: locate(**{name: value for name, value in images.items() if name in takes})[0]}
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, StopIteration) as error:
        raise ModelArgumentError(f"positions of an image's tokens: {error}") from None


def _method(module: Any, name: str) -> Any:
    return getattr(module, name, None) or getattr(getattr(module, "base_model", None), name, None)


def _of_numbers() -> Any:
    """Inside, tensors have values, also where fake ones are made."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    return unset_fake_temporarily()


def _patches(vision: Any, batch: int, room: int) -> tuple[dict[str, Any], int]:
    """Patches of all images in rows [patches, values], the images' grids [images, 3], and tokens an image."""
    import torch

    patch, merge = _first(vision, "patch_size"), _first(vision, "spatial_merge_size", default=1)
    frames = _first(vision, "temporal_patch_size", default=1)
    channels = _first(vision, "in_channels", "num_channels", "in_chans", default=3)
    merged = [min(-(-side // (patch * merge)), isqrt(room)) for side in image_sides(vision)]
    height, width = (merge * side for side in merged)
    pixels = torch.randn(batch * height * width, channels * frames * patch * patch)
    with _of_numbers():
        grid = torch.tensor([[1, height, width]] * batch)
    return {_PIXELS: pixels, _GRID: grid}, merged[0] * merged[1]


def _first(config: Any, *names: str, default: int = 0) -> int:
    found = next((v for v in (getattr(config, name, None) for name in names) if isinstance(v, int)), default)
    if not found:
        raise ModelArgumentError(f"images do not follow from a configuration without {names[0]}")
    return found


def _pictures(module: Any, config: Any, names: set[str], batch: int) -> tuple[dict[str, Any], int]:
    """Whole images in the first layout that the model makes features of, and tokens an image."""
    import torch

    vision = getattr(config, "vision_config", config)
    height, width = image_sides(vision)
    channels = _first(vision, "num_channels", "in_channels", "in_chans", default=3)
    with _of_numbers():
        sizes = torch.tensor([[height, width]] * batch)
    for more in ({}, {_SIZES: sizes}) if _SIZES in names else ({},):
        for shape in ((batch,), (batch, 1)):  # some take several images of a sample
            shape = (*shape, channels, height, width)
            try:
                n_tokens = _features(module, shape, more)
            except _NeedsValues:
                merge = _first(config, "spatial_merge_size", "scale_factor", default=1)
                unit = merge * _first(vision, "patch_size")
                with _of_numbers():
                    return {_PIXELS: torch.randn(shape), **more}, (height // unit) * (width // unit)
            if n_tokens and not n_tokens % batch:
                return {_PIXELS: torch.randn(shape), **more}, n_tokens // batch
    raise ModelArgumentError(f"images of {type(module).__name__} do not follow from its configuration")


class _NeedsValues(Exception):
    """Features depend on what images hold, not on their layout alone."""


def _features(module: Any, shape: tuple[int, ...], more: Mapping[str, Any]) -> int:
    """Tokens that the vision part makes of images; 0 where it cannot take them so. Raises _NeedsValues."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.fx.experimental import _config
    from torch.utils import _pytree as pytree

    see, weight = _method(module, "get_image_features"), next(module.parameters(), None)
    if see is None or weight is None:
        return 0
    try:
        with (
            nullcontext() if isinstance(weight, FakeTensor) else _of_numbers(),
            torch.no_grad(),
            torch.device(weight.device),
            _config.patch(meta_nonzero_assume_all_nonzero=True),  # type: ignore[attr-defined]  # none is padding
        ):
            found = see(**{_PIXELS: torch.rand(shape), **more})
    except Exception as error:  # libraries raise all kinds of errors on another layout than theirs
        if "meta tensor" in str(error):
            raise _NeedsValues from None
        return 0
    features = getattr(found, "pooler_output", None)
    features = getattr(found, "last_hidden_state", found) if features is None else features
    tensors = [t for t in pytree.tree_leaves(features) if isinstance(t, torch.Tensor)]
    return sum(t.numel() // t.shape[-1] for t in tensors if t.ndim > 1)
