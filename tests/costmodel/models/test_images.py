"""Models that see images, of small configurations: traced with one in each text, as a real step runs it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from costmodel.graph import trace
from costmodel.graph.model_graph import ModelGraph, Phase
from costmodel.models import ModelSource, resolve_config
from costmodel.models.images import UNSEEN
from tests.costmodel.graph.oracles import real_step

ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "vocab_size": 300,
    "head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {"model_type": "llama", **TEXT}
PATCHES = {
    "depth": 2,
    "num_heads": 2,
    "hidden_size": 32,
    "out_hidden_size": 64,
    "intermediate_size": 48,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
PICTURES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
TOKENS = {"image_token_id": 290, "video_token_id": 291, "vision_start_token_id": 292}
QWEN2_VL = {
    "model_type": "qwen2_vl",
    "architectures": ["Qwen2VLForConditionalGeneration"],
    **TOKENS,
    "text_config": {**TEXT, "rope_parameters": ROPE},
    "vision_config": {**PATCHES, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
}
LLAMA4 = {
    "model_type": "llama4",
    "architectures": ["Llama4ForConditionalGeneration"],
    "image_token_index": 290,
    "text_config": {**TEXT, "intermediate_size_mlp": 96, "num_local_experts": 2, "num_experts_per_tok": 1},
    "vision_config": {
        **PICTURES,
        "intermediate_size": 128,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
        "vision_output_dim": 64,
    },
}
LLAVA = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 290,
    "text_config": LLAMA,
    "vision_config": {"model_type": "clip_vision_model", **PICTURES},
}
SEEN: dict[str, dict[str, Any]] = {
    "patches in rows": QWEN2_VL,
    "windows of patches": {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        **TOKENS,
        "text_config": {**TEXT, "rope_parameters": ROPE},
        "vision_config": {**PATCHES, "window_size": 56, "fullatt_block_indexes": [1]},
    },
    "features in several layers": {
        "model_type": "qwen3_vl",
        "architectures": ["Qwen3VLForConditionalGeneration"],
        **TOKENS,
        "text_config": {**TEXT, "rope_parameters": ROPE},
        "vision_config": {**PATCHES, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    },
    "whole images": LLAVA,
    "several tiles": LLAMA4,
    "a number of tokens an image": {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "image_token_index": 290,
        "mm_tokens_per_image": 4,
        "text_config": TEXT,
        "vision_config": {"model_type": "siglip_vision_model", **PICTURES},
    },
    "sizes of images": {
        "model_type": "mistral3",
        "architectures": ["Mistral3ForConditionalGeneration"],
        "image_token_index": 290,
        "spatial_merge_size": 2,
        "text_config": {**LLAMA, "model_type": "mistral"},
        "vision_config": {"model_type": "pixtral", **PICTURES, "head_dim": 16},
    },
    "several images a sample": {
        "model_type": "idefics3",
        "architectures": ["Idefics3ForConditionalGeneration"],
        "image_token_id": 290,
        "scale_factor": 2,
        "text_config": LLAMA,
        "vision_config": PICTURES,
    },
}


def source(config: dict[str, Any], *, seq_len: int = 128, task: str = "train") -> ModelSource:
    return resolve_config(config, name="seeing", micro_batch_size=2, seq_len=seq_len, task=task)


def flop(graph: ModelGraph) -> int:
    return graph.flop(Phase.FORWARD) + graph.flop(Phase.BACKWARD)


def unseen(graph: ModelGraph) -> list[str]:
    return [note for note in graph.notes if note.startswith(UNSEEN)]


@pytest.mark.parametrize("name", SEEN)
def test_an_image_in_each_text_counts_as_in_a_real_step(name: str) -> None:
    torch.manual_seed(0)
    built = source(SEEN[name]).build("cpu")
    assert "pixel_values" in built.kwargs
    real, _ = real_step(built.module.train(), built.args, built.kwargs)
    graph = trace(source(SEEN[name]))
    assert not unseen(graph)
    assert flop(graph) == real
    assert graph.n_parameters == sum(p.numel() for p in built.module.parameters())


def test_an_image_for_which_a_text_is_too_short_is_left_out() -> None:
    graph = trace(source(LLAVA, seq_len=8))
    assert [n.partition(";")[0] for n in unseen(graph)] == [
        f"{UNSEEN}: an image takes 16 tokens, more than a sequence of 8"
    ]
    assert 0 < flop(graph) < flop(trace(source(LLAVA, seq_len=32)))


def test_patches_are_as_many_as_a_text_has_room_for() -> None:
    built = source(QWEN2_VL, seq_len=9).build("cpu")
    assert built.kwargs["image_grid_thw"].tolist() == [[1, 6, 6]] * 2
    assert (built.kwargs["input_ids"] == 290).sum() == 2 * 9


def test_text_alone_is_traced_where_images_cannot_be() -> None:
    wrong = {**QWEN2_VL, "vision_config": {**QWEN2_VL["vision_config"], "hidden_size": 32}}  # type: ignore[dict-item]
    graph = trace(source(wrong))
    assert "do not match" in unseen(graph)[0]
    assert 0 < flop(graph) < flop(trace(source(QWEN2_VL)))


def test_inference_is_on_prompts_of_text() -> None:
    assert "pixel_values" not in source(LLAVA, task="inference").build("meta").kwargs
    graph = trace(source(LLAVA, task="inference"), training=False)
    assert unseen(graph) == [f"{UNSEEN}: prompts are taken to be text"]


def test_a_class_for_text_takes_that_part_of_a_configuration() -> None:
    built = source({**LLAMA4, "architectures": ["Llama4ForCausalLM"]}).build("meta")
    assert type(built.module).__name__ == "Llama4ForCausalLM"
    assert not {"pixel_values", "image_sizes"} & set(built.kwargs)
    assert not built.notes


def test_what_stops_a_models_own_positions_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AttributeError("no such token")

    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

    monkeypatch.setattr(Qwen2VLModel, "get_rope_index", fail)
    assert unseen(trace(source(QWEN2_VL))) == [f"{UNSEEN}: positions of an image's tokens: no such token"]
