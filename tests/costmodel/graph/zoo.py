"""Small modules of many families: transformers' and diffusers' own code, and plain torch.

Each entry makes (module, args, kwargs) that run on a CPU in a moment; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["ZOO", "Made", "add"]

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
ZOO: dict[str, Callable[[], Made]] = {}

_TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
_DECODER = {**_TEXT, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
_TWO_STACKS = {
    "vocab_size": 128,
    "d_model": 64,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
}
_BATCH, _LENGTH = 2, 16


def _ids(vocab: int = 128) -> torch.Tensor:
    return torch.randint(3, vocab, (_BATCH, _LENGTH))


def _pixels(size: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(_BATCH, channels, size, size)


def add(name: str) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    def keep(make: Callable[[], Made]) -> Callable[[], Made]:
        ZOO[name] = make
        return make

    return keep


def _transformers(
    config: str, module: str, sizes: dict[str, Any], inputs: Callable[[], dict[str, Any]]
) -> Made:
    import transformers

    made = getattr(transformers, module)(getattr(transformers, config)(**sizes))
    return made, (), {**inputs(), "return_dict": True}


def _language() -> dict[str, Any]:
    return {"input_ids": _ids(), "labels": _ids(), "use_cache": False}


def _masked() -> dict[str, Any]:
    return {"input_ids": _ids(), "labels": _ids()}


def _image(size: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"pixel_values": _pixels(size), "labels": torch.randint(0, 2, (_BATCH,))}


_NAMED: dict[str, tuple[str, str, dict[str, Any], Callable[[], dict[str, Any]]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _DECODER, _language),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_DECODER, "sliding_window": 8}, _language),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _DECODER, _language),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _DECODER, _language),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _DECODER, _language),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**_DECODER, "sliding_window": 8}, _language),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _DECODER, _language),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_layer": 4, "n_embd": 64, "n_head": 4, "vocab_size": 128, "n_positions": 32},
        _language,
    ),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _TEXT, _language),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {**_TEXT, "ffn_dim": 96, "word_embed_proj_dim": 64, "layerdrop": 0.0},
        _language,
    ),
    "bloom": (
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": 128, "hidden_size": 64, "n_layer": 4, "n_head": 4},
        _language,
    ),
    "falcon": ("FalconConfig", "FalconForCausalLM", _TEXT, _language),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {**_DECODER, "num_local_experts": 4, "experts_implementation": "grouped_mm"},
        _language,
    ),
    "deepseek-v3": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {
            **_TEXT,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "n_routed_experts": 16,
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 2,
            "q_lora_rank": 32,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_hidden_layers": 5,
            "experts_implementation": "grouped_mm",
        },
        _language,
    ),
    "mamba": (
        "MambaConfig",
        "MambaForCausalLM",
        {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
        _language,
    ),
    "bert": ("BertConfig", "BertForMaskedLM", _TEXT, _masked),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", {**_TEXT, "max_position_embeddings": 80}, _masked),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForMaskedLM",
        {"vocab_size": 128, "dim": 64, "n_layers": 4, "n_heads": 4, "hidden_dim": 96},
        _masked,
    ),
    "electra": ("ElectraConfig", "ElectraForMaskedLM", {**_TEXT, "embedding_size": 32}, _masked),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "vocab_size": 128,
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 96,
            "num_layers": 4,
            "num_decoder_layers": 4,
            "num_heads": 4,
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
        },
        _language,
    ),
    "bart": (
        "BartConfig",
        "BartForConditionalGeneration",
        {
            **_TWO_STACKS,
            "max_position_embeddings": 64,
        },
        _language,
    ),
    "whisper": (
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {
            **_TWO_STACKS,
            "num_mel_bins": 16,
            "max_source_positions": 32,
            "max_target_positions": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        lambda: {"input_features": torch.randn(_BATCH, 16, 64), "labels": _ids(), "use_cache": False},
    ),
    "vit": (
        "ViTConfig",
        "ViTForImageClassification",
        {**_TEXT, "image_size": 32, "patch_size": 8},
        _image(32),
    ),
    "deit": (
        "DeiTConfig",
        "DeiTForImageClassification",
        {**_TEXT, "image_size": 32, "patch_size": 8},
        _image(32),
    ),
    "swin": (
        "SwinConfig",
        "SwinForImageClassification",
        {
            "image_size": 64,
            "patch_size": 4,
            "embed_dim": 24,
            "depths": [2, 4],
            "num_heads": [2, 4],
            "window_size": 4,
            "drop_path_rate": 0.0,
        },
        _image(64),
    ),
    "resnet": (
        "ResNetConfig",
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [3, 4, 6, 3]},
        _image(64),
    ),
    "convnext": (
        "ConvNextConfig",
        "ConvNextForImageClassification",
        {"hidden_sizes": [16, 32, 48, 64], "depths": [2, 2, 4, 2], "image_size": 64},
        _image(64),
    ),
    "mobilenet-v2": (
        "MobileNetV2Config",
        "MobileNetV2ForImageClassification",
        {"image_size": 64, "depth_multiplier": 0.35},
        _image(64),
    ),
    "clip": (
        "CLIPConfig",
        "CLIPModel",
        {
            "text_config": {**_TEXT, "eos_token_id": 2},
            "vision_config": {
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 8,
            },
            "projection_dim": 32,
        },
        lambda: {"input_ids": _ids(), "pixel_values": _pixels(32), "return_loss": True},
    ),
    "wav2vec2": (
        "Wav2Vec2Config",
        "Wav2Vec2Model",
        {
            **_TEXT,
            "conv_dim": (16, 16, 16),
            "conv_kernel": (10, 3, 3),
            "conv_stride": (5, 2, 2),
            "num_feat_extract_layers": 3,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
            "mask_time_prob": 0.0,
            "layerdrop": 0.0,
        },
        lambda: {"input_values": torch.randn(_BATCH, 1600)},
    ),
}


def _named(name: str) -> Callable[[], Made]:
    return lambda: _transformers(*_NAMED[name])


for _name in _NAMED:
    ZOO[_name] = _named(_name)


@add("unet-2d")
def _unet() -> Made:
    from diffusers import UNet2DConditionModel

    module = UNet2DConditionModel(
        block_out_channels=(32, 64, 64, 64), sample_size=16, cross_attention_dim=64, attention_head_dim=8
    )
    return module, (_pixels(16, 4), torch.randint(0, 1000, (_BATCH,)), torch.randn(_BATCH, 7, 64)), {}


@add("dit")
def _dit() -> Made:
    from diffusers import DiTTransformer2DModel

    module = DiTTransformer2DModel(num_layers=4, num_attention_heads=2, attention_head_dim=16, sample_size=8)
    kwargs = {
        "timestep": torch.randint(0, 1000, (_BATCH,)),
        "class_labels": torch.randint(0, 1000, (_BATCH,)),
    }
    return module, (_pixels(8, 4),), kwargs


@add("autoencoder-kl")
def _autoencoder() -> Made:
    from diffusers import AutoencoderKL

    module = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
    )
    return module, (_pixels(32),), {}


class _Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, 32)
        self.cell = cell(32, 48, num_layers=2, batch_first=True)
        self.head = nn.Linear(48, 128)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(self.embed(ids))[0])


@add("lstm")
def _lstm() -> Made:
    return _Recurrent(nn.LSTM), (_ids(),), {}


@add("gru")
def _gru() -> Made:
    return _Recurrent(nn.GRU), (_ids(),), {}


class _Bags(nn.Module):
    """A recommendation model: bags of ids beside dense features, pairwise products, an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(100, 16, mode="sum") for _ in range(4))
        self.dense = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16))
        self.top = nn.Sequential(nn.Linear(16 + 10, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        x = self.dense(dense)
        stack = torch.stack([x, *(bag(ids) for bag in self.bags)], dim=1)
        products = torch.bmm(stack, stack.transpose(1, 2))
        rows, cols = torch.triu_indices(5, 5, offset=1)
        return torch.sigmoid(self.top(torch.cat([x, products[:, rows, cols]], dim=1)))


@add("embedding-bag")
def _bags() -> Made:
    return _Bags(), (torch.randn(_BATCH, 8), torch.randint(0, 100, (_BATCH, 5))), {}


@add("grouped-convolutions")
def _grouped() -> Made:
    module = nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1, groups=4),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 32, 1),
        nn.GroupNorm(4, 32),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return module, (_pixels(16, 4),), {}


@add("transposed-convolutions")
def _transposed() -> Made:
    module = nn.Sequential(
        nn.Conv2d(3, 16, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1),
        nn.InstanceNorm2d(8),
        nn.Tanh(),
        nn.Conv2d(8, 3, 3, padding=1),
    )
    return module, (_pixels(16),), {}


@add("convolutions-1d-3d")
def _other_dimensions() -> Made:
    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.video = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2))
            self.sound = nn.Sequential(nn.Conv1d(2, 8, 5, stride=2), nn.GELU())
            self.head = nn.Linear(16, 4)

        def forward(self, video: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
            a = self.video(video).mean(dim=(2, 3, 4))
            return self.head(torch.cat([a, self.sound(sound).mean(-1)], dim=1))

    return Video(), (torch.randn(_BATCH, 3, 4, 8, 8), torch.randn(_BATCH, 2, 40)), {}


@add("torch-transformer")
def _torch_transformer() -> Made:
    module = nn.Transformer(
        d_model=32, nhead=4, num_encoder_layers=3, num_decoder_layers=3, dim_feedforward=64, batch_first=True
    )
    return module, (torch.randn(_BATCH, 8, 32), torch.randn(_BATCH, 6, 32)), {}


class _Straight(torch.autograd.Function):
    """Rounding with a gradient of one: a custom autograd function."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return grad


class _Odd(nn.Module):
    """Tied, frozen and unused parameters, a buffer, branches on shapes, in-place and custom operators, a
    dictionary out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 48)
        self.frozen = nn.Linear(48, 48).requires_grad_(False)
        self.mix = nn.Parameter(torch.randn(3, 48, 48) / 7)
        self.head = nn.Linear(48, 64, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Linear(5, 5)
        self.drop = nn.Dropout(0.1)
        self.register_buffer("scale", torch.rand(48))

    def forward(self, ids: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.frozen(self.embed(ids)) * self.scale
        if ids.shape[1] > 4:
            x = torch.einsum("bld,edf->blfe", x, self.mix).logsumexp(-1)
        x = _Straight.apply(self.drop(x)).add_(1.0)
        x = nn.functional.interpolate(x.transpose(1, 2), scale_factor=2).transpose(1, 2)[:, ::2]
        logits = self.head(torch.fft.rfft(x, dim=1).abs().mean(1)) * weight
        return {"logits": logits, "argmax": logits.argmax(-1)}


@add("odd")
def _odd() -> Made:
    return _Odd(), (torch.randint(0, 64, (_BATCH, 6)), torch.rand(_BATCH, 1)), {}


@add("mixed-precision")
def _autocast() -> Made:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.body(x)

    return Mixed(), (torch.randn(_BATCH, 32),), {}
