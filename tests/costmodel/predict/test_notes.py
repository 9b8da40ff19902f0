"""What a forecast says beside its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from costmodel.framework import load_framework
from costmodel.models.images import UNSEEN
from costmodel.plan import Plan
from planner import api
from tests.costmodel.models.test_images import LLAVA


def test_a_dtype_without_units_is_named_with_the_rate_it_gets() -> None:
    answer = api.infer("gpt2", hardware="t4", prompt_len=64, output_len=8)
    assert any("no units for bf16" in note and "fp32 rate" in note for note in answer.warnings)
    half = api.infer("gpt2", hardware="t4", prompt_len=64, output_len=8, framework="fastertransformer")
    assert not any("no units" in note for note in half.warnings)
    assert answer.latency_s > half.latency_s


@pytest.mark.parametrize(
    ("hardware", "field", "dtype", "noted"),
    [
        ("h200", "half_products", "nvfp4", True),
        ("h200", "half_products", "fp8", False),
        ("h200", "half_products", "int4_wo", False),
        ("a100-sxm4-80gb", "half_products", "fp8_block", True),
        ("a100-sxm4-80gb", "expert_products", "fp8", True),
        ("b200", "half_products", "nvfp4", False),
    ],
)
def test_products_in_a_type_without_units_are_named(
    tmp_path: Path, hardware: str, field: str, dtype: str, noted: bool
) -> None:
    own = tmp_path / "own.json"
    own.write_text(load_framework("vllm").model_copy(update={field: dtype}).model_dump_json())
    asked = {"hardware": hardware, "framework": str(own), "overrides": {"n_layer": 2}}
    for warnings in (
        api.infer("gpt2", prompt_len=64, output_len=8, **asked).warnings,
        api.predict("gpt2", plan="dp1", seq_len=64, **asked).prediction.warnings,
    ):
        said = [note for note in warnings if f"no units for {field} {dtype}: priced in bf16" in note]
        assert len(said) == noted


@pytest.mark.parametrize(("hardware", "noted"), [("v100-sxm2-32gb", True), ("h200", False)])
def test_a_narrow_cache_that_nobody_measured_is_named(hardware: str, noted: bool) -> None:
    asked = {"prompt_len": 64, "output_len": 8, "cache_dtype": "fp8", "overrides": {"n_layer": 2}}
    answer = api.infer("gpt2", hardware=hardware, framework="tensorrt-llm", **asked)
    assert any("keys and values in fp8" in note for note in answer.warnings) == noted


@pytest.mark.parametrize(("prompt_len", "noted"), [(1000, False), (1001, True)])
def test_a_sequence_past_the_positions_is_noted(prompt_len: int, noted: bool) -> None:
    answer = api.infer("gpt2", hardware="a100-sxm4-80gb", prompt_len=prompt_len, output_len=24)
    assert any("1024 positions" in note for note in answer.warnings) == noted
    assert answer.to_dict()["warnings"] == answer.warnings


@pytest.mark.parametrize(("seq_len", "noted"), [(1024, False), (2048, True)])
def test_training_past_the_positions_is_noted_too(seq_len: int, noted: bool) -> None:
    step = api.predict("gpt2", hardware="a100-sxm4-80gb", plan="dp1", seq_len=seq_len).prediction
    assert any("1024 positions" in note for note in step.warnings) == noted


@pytest.mark.parametrize(
    ("model", "recompute", "said"),
    [
        ("gpt2", "modules-nosuch", " attn, "),
        ("gpt2", "modules-mlp", ""),
        ("gpt2", "full4", ""),
        ("mlp-mnist", "selective", "changes nothing"),
    ],
)
def test_recomputation_of_nothing_is_noted(model: str, recompute: str, said: str) -> None:
    step = api.predict(model, hardware="a100-sxm4-80gb", plan=f"dp1.{recompute}").prediction
    found = [note for note in step.warnings if note.startswith("recomputation")]
    assert len(found) == bool(said)
    assert all(said in note for note in found)


@pytest.mark.parametrize(("plan", "noted"), [("tp4.mbs2", True), ("dp4.mbs2", False), ("tp4.tp2d", False)])
def test_what_tensor_parallelism_leaves_whole_is_noted(plan: str, noted: bool) -> None:
    step = api.predict("gpt2", hardware="a100-sxm4-80gb", plan=plan).prediction
    assert any("kept whole on every rank: transformer.wpe.weight" in note for note in step.warnings) == noted


def test_inference_says_what_its_trace_took_for_granted(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAVA))
    answer = api.infer(str(path), hardware="a100-sxm4-80gb", prompt_len=64, output_len=8)
    assert [note for note in answer.warnings if note.startswith(UNSEEN)] == [
        f"{UNSEEN}: prompts are taken to be text"
    ]


def many_samples() -> tuple[torch.nn.Module, tuple[torch.Tensor]]:
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()), (torch.randn(32, 8),)


@pytest.mark.parametrize(("plan", "noted"), [("dp2", True), ("dp2.mbs4", False), ("dp2.mbs32", False)])
def test_example_samples_that_a_plan_leaves_out_are_noted(plan: str, noted: bool) -> None:
    model = f"{__name__}:many_samples"
    step = api.predict(model, hardware="t4", plan=plan).prediction
    said = [note for note in step.warnings if "hold 32 samples and mbs1 takes one" in note]
    assert len(said) == noted


@pytest.mark.parametrize(
    ("framework", "batch", "noted"),
    [("pytorch", 1, True), ("pytorch", 4096, False), ("pytorch-amp", 1, False), ("static-graph", 1, False)],
)
def test_short_kernels_of_unknown_host_time_are_noted(framework: str, batch: int, noted: bool) -> None:
    step = api.predict("mlp-mnist", hardware="t4", plan=f"dp1.mbs{batch}", framework=framework).prediction
    assert any("no host time for GPUs" in note for note in step.warnings) == noted


def recurrent() -> tuple[torch.nn.Module, tuple[torch.Tensor]]:
    return torch.nn.LSTM(64, 256, num_layers=2), (torch.randn(100, 16, 64),)


def test_a_recurrent_layer_is_one_call_to_dispatch() -> None:
    step = api.predict(f"{__name__}:recurrent", hardware="t4", plan="mbs100").prediction
    assert step.step_time_s > 1e-3
    assert not any("no host time for GPUs" in note for note in step.warnings)


def test_a_quantised_configuration_is_noted_where_it_is_not_priced(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    stored = {"quantization_config": {"quant_method": "fp8"}, "architectures": ["LlamaForCausalLM"]}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "llama", "vocab_size": 512, **sizes, **stored}))
    server = load_framework("vllm").model_copy(update={"half_products": "fp8", "parameter_bytes": 1})
    priced = tmp_path / "fp8.json"
    priced.write_text(server.model_dump_json())
    answers = [
        api.infer(str(config), hardware="h200", prompt_len=64, output_len=8, framework=name)
        for name in ("vllm", str(priced))
    ]
    assert [any("quantisation (fp8)" in w for w in a.warnings) for a in answers] == [True, False]
    assert answers[1].parameter_bytes == pytest.approx(answers[0].parameter_bytes / 2)


def test_inference_says_what_stays_whole() -> None:
    sizes = {"num_hidden_layers": 2}
    answer = api.infer(
        "llama-3.1-8b", hardware="h200", plan="tp3", prompt_len=64, output_len=8, overrides=sizes
    )
    assert any(note.startswith("tp(3): kept whole on every rank") for note in answer.warnings)


@pytest.mark.parametrize(
    ("plan", "fits"), [("pp2.vpp2.gbs4.interleaved", True), ("pp2.vpp2.gbs4.zb-v", False)]
)
def test_the_host_holds_what_each_rank_of_a_schedule_has(plan: str, fits: bool) -> None:
    """Folded pipelines have the embedding and the head on one rank, others on two."""
    sizes = ["hidden_size=64", "intermediate_size=128", "num_hidden_layers=4", "vocab_size=8192"]
    made = api.forecaster("llama-2-7b", hardware="a100-sxm4-80gb", seq_len=32, overrides=sizes)
    n_parameters = sum(s.count * s.n_parameters for s in made.graph(1).segments)
    memory_bytes = 1.3 * 16.0 * n_parameters  # both moments, the fp32 copy and gradients of all ranks
    small = made.on(host=made.host.model_copy(update={"memory_bytes": memory_bytes}))
    step = small.forecast(Plan.parse(f"{plan}.zero-offload")).prediction
    assert step.host_fits == fits
    assert any("DOES NOT FIT the host" in note for note in step.warnings) == (not fits)


@pytest.mark.parametrize(("batch", "noted"), [(1, True), (64, False)])
def test_a_pass_of_short_operators_on_an_unknown_host_is_noted(batch: int, noted: bool) -> None:
    answer = api.infer("resnet-50", hardware="a100-sxm4-80gb", batch_size=batch, framework="pytorch-fp16")
    assert any("no host time" in note for note in answer.warnings) == noted


@pytest.mark.parametrize("paged", [True, False])
def test_a_server_on_an_unknown_host_is_noted_as_answers_are(paged: bool) -> None:
    asked = {"prompt_len": 64, "output_len": 8, "overrides": {"n_layer": 2}, "framework": "pytorch-fp16"}
    answer = api.infer("gpt2", hardware="a100-sxm4-80gb", rate_per_s=1.0, paged=paged, **asked)
    assert any("no host time" in note for note in answer.warnings)
