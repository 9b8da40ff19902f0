"""The model argument: what a callable's example inputs and a configuration's words come to."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from costmodel.errors import ModelArgumentError
from costmodel.graph import scalable_graph, trace
from costmodel.graph.model_graph import ModelGraph, Phase
from costmodel.models import resolve, resolve_config
from planner.validation.model_source import load_model
from planner.validation.run_spec import ModelSpec
from tests.costmodel.graph.oracles import real_step

PERCEPTRON = "tests.planner.validation.sample_models:perceptron"  # example inputs of 8 samples
MIXED = "tests.planner.validation.sample_models:mixed"  # two inputs of 4 samples
GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 64}


def folder(tmp_path: Path, **changes: object) -> str:
    (tmp_path / "config.json").write_text(json.dumps({**GPT2, **changes}))
    return str(tmp_path)


@pytest.mark.parametrize("batch", [1, 3, 4, 9])
def test_a_callables_samples_are_counted_one_by_one(batch: int) -> None:
    built = resolve(MIXED, micro_batch_size=batch).build()
    assert [t.shape[0] for t in built.args] == [batch, batch]
    if batch == 9:
        assert torch.equal(built.args[0][8], built.args[0][0]), "further samples repeat the first"


def test_a_callables_inputs_stand_as_given_where_no_batch_is_asked_for() -> None:
    built = resolve(PERCEPTRON, micro_batch_size=None).build()
    assert built.args[0].shape[0] == 8
    assert trace(resolve(PERCEPTRON, micro_batch_size=None)).micro_batch_size == 8
    assert trace(resolve("mlp-mnist", micro_batch_size=None)).micro_batch_size == 1


def test_a_sequence_that_example_inputs_cannot_take_is_refused() -> None:
    with pytest.raises(ModelArgumentError, match=r"a sequence of their own: 7 asked for"):
        resolve(PERCEPTRON, seq_len=7).build("meta")


def test_a_transformers_module_alone_takes_batch_and_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_from_a_library.py").write_text(
        "import transformers\n\n\ndef build():\n"
        "    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64)\n"
        "    return transformers.GPT2LMHeadModel(config)\n"
    )
    monkeypatch.chdir(tmp_path)
    built = resolve("mine_from_a_library:build", micro_batch_size=3, seq_len=7).build("meta")
    assert built.kwargs["input_ids"].shape == (3, 7)


def flop(graph: ModelGraph) -> int:
    return graph.flop(Phase.FORWARD) + graph.flop(Phase.BACKWARD)


def test_the_forecasts_batch_is_the_real_runs() -> None:
    graphs = scalable_graph(resolve(PERCEPTRON))
    for batch in (1, 2, 6):
        real = load_model(ModelSpec(model=PERCEPTRON), batch=batch).inputs["input"]
        assert real.shape == (batch, 32)
        assert flop(graphs.at(micro_batch_size=batch)) == batch * flop(graphs.at(micro_batch_size=1))
        assert graphs.at(micro_batch_size=batch).flop(Phase.FORWARD) == 4 * 2 * real.numel() * 32


def test_a_module_that_needs_two_samples_is_forecast_at_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_with_statistics.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16)), (torch.randn(4, 8),)\n"
    )
    monkeypatch.chdir(tmp_path)
    graphs = scalable_graph(resolve("mine_with_statistics:build"))
    assert 2 * flop(graphs.at(micro_batch_size=1)) == flop(graphs.at(micro_batch_size=2))


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_framework_says_the_type_not_the_stored_weights(tmp_path: Path, key: str) -> None:
    source = resolve(folder(tmp_path, **{key: "bfloat16"}), seq_len=8)
    assert {p.dtype for p in source.build("meta").module.parameters()} == {torch.float32}
    operators = [op for s in trace(source, dtype="bf16").segments for op in s.operators]
    assert {op.dtype for op in operators if op.kind == "gemm"} == {"bf16"}


@pytest.mark.parametrize("model", ["gpt2", "dit-xl", "mlp-mnist"])
def test_a_misspelt_override_is_refused(model: str) -> None:
    with pytest.raises(ModelArgumentError, match="n_layers"):
        resolve(model, overrides={"n_layers": 3}).build("meta")


def test_negative_sizes_are_refused() -> None:
    with pytest.raises(ModelArgumentError, match=r"n_layer=-3 must not be negative"):
        resolve("gpt2", overrides={"n_layer": -3})
    assert resolve("gpt2", overrides={"pad_token_id": -1, "n_layer": 1})


def test_a_file_with_a_size_below_zero_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "gpt2", "n_layer": -3, "pad_token_id": -1}')
    with pytest.raises(ModelArgumentError, match=r"n_layer=-3 must not be negative"):
        resolve(str(file))


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises(ModelArgumentError, match=r"n_layer.*expected int"):
        resolve("gpt2", overrides={"n_layer": "two"})


def test_overrides_by_any_name_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelArgumentError, match=r"no 'n_layers' to set; there are n_layer"):
        resolve("gpt2", overrides={"n_layers": 3})
    for name in ("n_layer", "num_hidden_layers"):  # the second is what transformers calls it elsewhere
        module = resolve(folder(tmp_path), overrides={name: 3}, seq_len=8).build("meta").module
        assert len(module.transformer.h) == 3


@pytest.mark.parametrize(
    "config",
    [
        {
            "_class_name": "FluxTransformer2DModel",
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 48,
            "pooled_projection_dim": 24,
            "axes_dims_rope": [8, 12, 12],
            "guidance_embeds": True,
        },
        {
            "_class_name": "SD3Transformer2DModel",
            "sample_size": 16,
            "in_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 48,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 24,
        },
    ],
)
def test_transformers_of_images_beside_text(config: dict[str, object]) -> None:
    built = resolve_config(config, name="images").build("cpu")
    out = built.module(*built.args, **built.kwargs).sample
    assert out.shape[0] == 1


def test_what_a_library_asserts_of_sizes_is_a_message() -> None:
    config = {"model_type": "marian", "architectures": ["MarianMTModel"], "vocab_size": 1000}
    with pytest.raises(ModelArgumentError, match="check its sizes"):
        resolve_config(config, name="marian").build("meta")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("it requires the natten library"), "a package that it needs is missing: it requires"),
        (AssertionError(), "building it fails: AssertionError; check its sizes"),
    ],
)
def test_what_stops_a_library_is_told(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules[resolve.__module__], "_instance", fail)
    with pytest.raises(ModelArgumentError, match=said):
        resolve(folder(tmp_path)).build("meta")


@dataclass
class _Samples:
    pictures: torch.Tensor
    labels: torch.Tensor


def of_a_dataclass() -> tuple[torch.nn.Module, tuple[_Samples]]:
    """Inputs in an object of the model's own."""

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(6, 3)

        def forward(self, samples: _Samples) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.head(samples.pictures), samples.labels)

    return Classifier(), (_Samples(torch.randn(4, 6), torch.zeros(4, dtype=torch.long)),)


def test_samples_in_a_dataclass_are_counted_and_cut() -> None:
    built = [resolve(f"{__name__}:of_a_dataclass", micro_batch_size=n).build() for n in (None, 2)]
    assert [b.args[0].pictures.shape[0] for b in built] == [4, 2]
    assert [b.args[0].labels.shape[0] for b in built] == [4, 2]
    assert all(b.example_samples == 4 for b in built)


@pytest.mark.parametrize("kind", ["xlm", "flaubert", "fsmt"])
def test_models_that_look_for_padding_see_none(kind: str, tmp_path: Path) -> None:
    sizes: dict[str, object] = {"vocab_size": 64, "emb_dim": 32, "n_layers": 2, "n_heads": 2}
    if kind == "fsmt":
        widths = ("encoder_ffn_dim", "decoder_ffn_dim", "d_model", "src_vocab_size", "tgt_vocab_size")
        heads = ("encoder_attention_heads", "decoder_attention_heads", "encoder_layers", "decoder_layers")
        sizes = {"langs": ["en", "de"], **dict.fromkeys(widths, 64), **dict.fromkeys(heads, 2)}
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": kind, **sizes}))
    source = resolve(str(file), micro_batch_size=2, seq_len=16)
    built = source.build()
    flop, _ = real_step(built.module.train(), built.args, built.kwargs)
    graph = trace(source)
    assert graph.flop(Phase.FORWARD) + graph.flop(Phase.BACKWARD) == flop
    padding = built.module.config.pad_token_id
    assert not (built.kwargs["input_ids"] == padding).any()


def args_a_tensor() -> tuple[torch.nn.Module, torch.Tensor]:
    return torch.nn.Linear(4, 4), torch.zeros(3, 4)


def kwargs_a_tuple() -> tuple[torch.nn.Module, tuple[torch.Tensor], tuple[str]]:
    return torch.nn.Linear(4, 4), (torch.zeros(3, 4),), ("mask",)


@pytest.mark.parametrize(
    ("name", "said"),
    [("args_a_tensor", "a Tensor .* args a tuple"), ("kwargs_a_tuple", "a tuple .* a mapping")],
)
def test_arguments_of_another_kind_are_named(name: str, said: str) -> None:
    with pytest.raises(ModelArgumentError, match=said):
        resolve(f"{__name__}:{name}").build("cpu")


VIT = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
}
WHISPER = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_source_positions": 20,
    "max_target_positions": 64,
}


def image_classifier() -> torch.nn.Module:
    """A transformers module alone, whose inputs follow from its configuration."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**VIT))


@pytest.mark.parametrize(
    ("config", "said"), [(VIT, True), (WHISPER, False), ({"model_type": "gpt2", "n_layer": 1}, False)]
)
def test_a_sequence_that_changes_no_input_is_said_once(
    config: dict[str, object], said: bool, tmp_path: Path
) -> None:
    """By the inputs that the model gets: images have no rows of tokens, whatever the model is called."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    graphs = scalable_graph(resolve(str(tmp_path), seq_len=32), training=True)
    for batch in (1, 3):
        notes = [n for n in graphs.at(micro_batch_size=batch).notes if "sequence length of 32" in n]
        assert len(notes) == said, notes
    assert len([n for n in graphs.notes if "changes nothing" in n]) == said
    assert not any("changes nothing" in n for n in trace(resolve(str(tmp_path))).notes)


def test_a_callables_images_have_no_sequence_either() -> None:
    (note,) = resolve(f"{__name__}:image_classifier", seq_len=32).build("meta").notes
    assert note.startswith("a sequence length of 32 changes nothing")
    assert "a sample is 3x32x32" in note
