"""Example inputs that follow from a transformers or diffusers configuration."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from costmodel.errors import ModelArgumentError
from costmodel.models.images import has_placeholders, image_sides

if TYPE_CHECKING:
    import torch

__all__ = ["default_seq_len", "diffusers_inputs", "transformers_inputs"]

_TEXT_SEQ = 512
"""Sequence length where neither the caller nor the configuration says one."""


def default_seq_len(config: Any) -> int:
    """The length a configuration names (n_positions, max_position_embeddings, ...), at most 4096."""
    text = getattr(config, "text_config", config)
    for key in ("n_positions", "max_position_embeddings", "max_seq_len", "max_target_positions"):
        value = getattr(text, key, None)
        if isinstance(value, int) and value > 0:
            return min(value, 4096)
    return _TEXT_SEQ


def _signature(module: Any) -> set[str]:
    return set(inspect.signature(module.forward).parameters)


def transformers_inputs(
    module: Any, config: Any, batch: int, seq_len: int, *, training: bool, target_len: int = 0
) -> dict[str, Any]:
    """Keyword inputs by the module's main input and the parameters of its forward.

    Text alone where images stand in it as placeholders: `costmodel.models.images` adds them.
    `target_len`: tokens of an encoder-decoder's targets; 0: as many as its inputs.
    """
    import torch

    names = _signature(module)
    main = getattr(module, "main_input_name", "input_ids")
    text = getattr(config, "text_config", config)
    vocab = getattr(text, "vocab_size", 0)
    inputs: dict[str, Any] = {}

    made_len = (target_len or seq_len) if getattr(config, "is_encoder_decoder", False) else seq_len

    def ids(length: int = seq_len) -> torch.Tensor:
        return _words(text, vocab, (batch, length))

    if (main == "pixel_values" or "pixel_values" in names) and not has_placeholders(module, config):
        vision = getattr(config, "vision_config", config)
        height, width = image_sides(vision)
        inputs["pixel_values"] = torch.randn(batch, getattr(vision, "num_channels", 3), height, width)
    if main == "input_features":
        length = 2 * getattr(config, "max_source_positions", 1500)
        inputs["input_features"] = torch.randn(batch, getattr(config, "num_mel_bins", 80), length)
        inputs["decoder_input_ids"] = ids()
    if "input_ids" in names and main != "input_features":
        inputs["input_ids"] = ids()
    if not inputs:
        raise ModelArgumentError(
            f"inputs of {type(module).__name__} do not follow from its configuration (main input {main!r}); "
            "give module:callable returning (module, args, kwargs)"
        )
    if "use_cache" in names:
        inputs["use_cache"] = False
    if (
        getattr(config, "is_encoder_decoder", False)
        and "labels" not in names
        and "decoder_input_ids" in names
    ):
        inputs["decoder_input_ids"] = ids(made_len)
    if training:
        inputs.update(_labels(module, config, names, batch, made_len, vocab))
    elif getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        inputs.setdefault("decoder_input_ids", ids(made_len))
    if "return_loss" in names and "labels" not in names and training:
        inputs["return_loss"] = True
    return inputs


def _words(text: Any, vocab: int, shape: tuple[int, int]) -> torch.Tensor:
    """Token ids without padding; made without values, they know theirs (`known_values`): some models look
    whether there is padding."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    padding = getattr(text, "pad_token_id", None)
    with unset_fake_temporarily():
        words = torch.randint(0, max(2, vocab), shape)
        if padding is not None:
            words = torch.where(words == padding, (words + 1) % max(2, vocab), words)
        if mode is None:
            return words
        fake: torch.Tensor = FakeTensor(mode, torch.empty_like(words, device="meta"), torch.device("cpu"))
    fake.known_values = words  # type: ignore[attr-defined]
    return fake


def _labels(
    module: Any, config: Any, names: set[str], batch: int, seq_len: int, vocab: int
) -> dict[str, Any]:
    """Labels as long as the logits: one per sample for classification heads, one per token else."""
    import torch

    labels: dict[str, Any] = {}
    if "labels" in names:
        head = getattr(module, "classifier", None) or getattr(module, "score", None)
        per_sample = vocab == 0 or (head is not None and "Token" not in type(module).__name__)
        if per_sample:
            labels["labels"] = torch.randint(0, max(2, getattr(config, "num_labels", 2)), (batch,))
        else:
            labels["labels"] = _words(getattr(config, "text_config", config), vocab, (batch, seq_len))
    if "next_sentence_label" in names:
        labels["next_sentence_label"] = torch.randint(0, 2, (batch,))
    if "start_positions" in names:
        labels["start_positions"] = torch.randint(0, seq_len, (batch,))
        labels["end_positions"] = torch.randint(0, seq_len, (batch,))
    return labels


def diffusers_inputs(module: Any, config: Any, batch: int) -> dict[str, Any]:
    """Inputs of a denoising model by the parameters of its forward."""
    import torch

    names = _signature(module)
    size = config.get("sample_size") or 64
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    main = "sample" if "sample" in names else "hidden_states"
    inputs: dict[str, Any] = {main: torch.randn(batch, int(config.get("in_channels", 4)), height, width)}
    if "timestep" in names:
        inputs["timestep"] = torch.randint(0, 1000, (batch,))
    width_context = (
        config.get("cross_attention_dim")
        or config.get("caption_channels")
        or config.get("joint_attention_dim")
    )
    if "encoder_hidden_states" in names and width_context:
        depth = width_context[0] if isinstance(width_context, (list, tuple)) else width_context
        inputs["encoder_hidden_states"] = torch.randn(batch, 77, int(depth))
    if "class_labels" in names and config.get("num_embeds_ada_norm"):
        inputs["class_labels"] = torch.randint(0, int(config["num_embeds_ada_norm"]), (batch,))
    if "pooled_projections" in names and config.get("pooled_projection_dim"):
        inputs["pooled_projections"] = torch.randn(batch, int(config["pooled_projection_dim"]))
    if "guidance" in names and config.get("guidance_embeds"):
        inputs["guidance"] = torch.rand(batch)
    if {"img_ids", "txt_ids"} <= names:  # patches of two by two latents in a row, each with its place
        patches = (height // 2) * (width // 2)
        inputs[main] = torch.randn(batch, patches, int(config.get("in_channels", 4)))
        inputs["img_ids"] = torch.zeros(patches, 3)
        inputs["txt_ids"] = torch.zeros(77, 3)
    return inputs
