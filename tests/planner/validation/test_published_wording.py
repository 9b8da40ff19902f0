"""Rows of other sources: what they call GPUs, types, schedules and models, and what they leave open."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from costmodel.hardware.store import load_profile
from costmodel.plan import Plan
from planner.validation.published.conventions import Sizes, flop_per_step, formula_of
from planner.validation.published.labels import plan_labels
from planner.validation.published.model_map import RowModel, row_model
from planner.validation.published.rows import PublishedRow, in_our_words, read_rows
from planner.validation.published.score import validate_published
from planner.validation.published.setting import (
    heavier_plans,
    overfull,
    row_framework,
    row_hardware,
    row_plan,
)

LLAMA = {"model_family": "llama", "layers": "32", "hidden": "4096", "heads": "32", "ffn_hidden": "14336"}
RUN = {"task": "train", "gpu": "H100-SXM5-80GB", "dtype": "bf16", "seq_len": "8192", **LLAMA}


def said(**cells: str) -> PublishedRow:
    return in_our_words(PublishedRow(id="x-1", cells={k: v for k, v in cells.items() if v}))


def plan_of(**cells: str) -> Plan:
    found = row_plan(said(**{**RUN, "n_gpus": "8", "global_batch": "16", **cells}))
    assert isinstance(found, Plan), found
    return found


def model_of(**cells: str) -> RowModel:
    found = row_model(said(task="train", **cells))
    assert isinstance(found, RowModel), found
    return found


@pytest.mark.parametrize(
    ("written", "profile"),
    [
        ("NVIDIA H100 80GB HBM3", "H100-SXM5-80GB"),
        ("H100-SXM5-80GB", "H100-SXM5-80GB"),
        ("H100 PCIe 80GB", "H100-PCIe-80GB"),
        ("H100 (96 GB HBM2e, 500 W)", "H100-SXM5-96GB"),
        ("NVIDIA GB200 NVL72", "GB200"),
        ("H200 SXM 141GB", "H200-SXM"),
        ("A800 80GB", "A800-SXM4-80GB"),
        ("A100 SXM 40 GB", "A100-SXM4-40GB"),
        ("A100 PCIE", "A100-PCIe-40GB"),
        ("NVIDIA H20", "H20-96GB"),
        ("RTX TITAN", "Titan-RTX"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX-3090-Ti"),
        ("Tesla T4 16GB", "T4"),
        ("AMD Instinct MI300X OAM", "MI300X"),
    ],
)
def test_gpus_as_sources_write_them(written: str, profile: str) -> None:
    assert row_hardware(said(gpu=written)).name == profile


def test_a_gpu_that_no_table_knows_stays_as_it_is_written() -> None:
    assert said(gpu="Gaudi2").text("gpu") == "Gaudi2"
    assert not said(gpu="Gaudi2").written


@pytest.mark.parametrize(
    ("column", "written", "meant"),
    [
        ("dtype", "BF16", "bf16"),
        ("dtype", "FP8 (E4M3)", "fp8"),
        ("dtype", "mxfp8", "fp8"),
        ("dtype", "nvfp4", "fp4"),
        ("dtype", "fp8 blockwise", "fp8_block"),
        ("dtype", "int4-awq", "int4"),
        ("task", "pretraining", "train"),
        ("recompute", "full (uniform, 1 layer)", "full"),
        ("recompute", "selective (core_attn)", "selective"),
        ("recompute", "full4", "full4"),
        ("zero_stage", "ZeRO-2", "2"),
        ("zero_stage", "FSDP", "3"),
        ("pipeline_schedule", "Interleaved1F1B", "interleaved"),
        ("pipeline_schedule", "ZBVZeroBubble", "zb-v"),
        ("model_family", "Mistral", "llama"),
        ("model_family", "qwen3_moe", "moe"),
    ],
)
def test_words_of_a_column(column: str, written: str, meant: str) -> None:
    assert said(**{column: written}).text(column) == meant


def test_inference_is_what_its_lengths_and_its_model_make_it() -> None:
    assert said(task="inference", output_len="128", model_family="llama").text("task") == "decode"
    assert said(task="inference", model_family="llama").text("task") == "prefill"
    assert said(task="inference", model_family="resnet").text("task") == "forward"


@pytest.mark.parametrize(
    ("written", "number"),
    [("1,024", 1024), ("8k", 8192), ("7B", 7e9), ("70 GiB", 70), ("45%", 45), ("25.4-50.6", None)],
)
def test_numbers_with_units(written: str, number: float | None) -> None:
    assert said(n_params=written).number("n_params") == number


def test_a_share_of_the_peak_is_read_in_percent() -> None:
    assert said(mfu_reported="0.45").metric == ("mfu_reported", pytest.approx(45.0))
    assert said(mfu_reported="45").metric == ("mfu_reported", 45.0)


def test_a_float8_run_with_compiled_blocks_is_priced_so() -> None:
    run = {"framework": "torchtitan", "year": "2024", "source": "torchtitan benchmarks", **RUN}
    eager = row_framework(said(**run))
    compiled = row_framework(said(**run, notes="FSDP, torch.compile"))
    float8 = row_framework(said(**run, notes="FSDP + torch.compile + float8"))
    assert (eager.fusion, compiled.fusion) == ("eager", "compiled")
    assert (compiled.half_products, float8.half_products) == ("same", "fp8")
    assert row_framework(said(**run, notes="without torch.compile")).fusion == "eager"
    assert not eager.overlap_tp
    assert row_framework(said(**run, notes="AsyncTP")).overlap_tp


def test_torchtitan_shards_fully_and_recomputes_by_operator() -> None:
    plan = plan_of(framework="torchtitan", tp="2")
    assert (plan.zero_stage, plan.sequence_parallel, plan.recompute) == (3, True, "ops2")
    assert plan_of(framework="torchtitan", recompute="selective").recompute == "ops2"
    assert plan_of(framework="torchtitan", recompute="none").recompute == "none"
    replicated = plan_of(framework="torchtitan", notes="HSDP: dp_replicate 4, dp_shard 2")
    assert (replicated.dp, replicated.dp_shard) == (8, 2)


@pytest.mark.parametrize(
    ("wording", "year", "profile"),
    [
        ("NeMo 25.02", "2025", "megatron-bridge"),
        ("SimuMax", "2025", "megatron-core"),
        ("Megatron-LM", "2021", "megatron"),
        ("Megatron-LM", "2025", "megatron-core"),
        ("vLLM 0.6.3", "2024", "vllm"),
        ("SGLang", "2025", "sglang"),
        ("gpt-fast", "2024", "gpt-fast"),
        ("MaxText", "2024", "jax"),
        ("something new", "2026", "pytorch-bf16"),
    ],
)
def test_the_nearest_framework_by_kind(wording: str, year: str, profile: str) -> None:
    assert row_framework(said(framework=wording, year=year, dtype="bf16")).name == profile


@pytest.mark.parametrize(
    ("version", "profile"), [("v0.6.1", "tensorrt-llm"), ("v0.17", "tensorrt-llm-server")]
)
def test_a_server_of_later_years_takes_query_heads_together(version: str, profile: str) -> None:
    row = said(framework="TensorRT-LLM", framework_version=version, dtype="fp8")
    assert row_framework(row).name == profile


def test_sizes_follow_from_a_name_or_from_the_parameters() -> None:
    named = model_of(model_family="llama", model_name="Llama 3.1 405B")
    assert named.config["num_hidden_layers"] == 126
    assert named.config["num_key_value_heads"] == 8
    assert named.seq_len == 8192
    counted = model_of(model_family="gpt", n_params="175e9")
    assert counted.config["n_embd"] == 12288
    unnamed = model_of(model_name="Llama-2-13B")
    assert unnamed.config["num_hidden_layers"] == 40


def test_a_default_that_follows_from_a_named_size_is_taken_whatever_the_order() -> None:
    """Columns had been taken in the order of a set, which another process has otherwise."""
    for name, width in (("BERT-base", 768), ("BERT-large", 1024)):
        config = model_of(model_family="bert", model_name=name, seq_len="128").config
        assert config["intermediate_size"] == 4 * width


def test_what_a_row_says_is_kept_beside_what_its_name_means() -> None:
    cut = model_of(
        model_family="llama", model_name="llama3-70b-l12", layers="12", hidden="8192", seq_len="4096"
    )
    assert cut.config["num_hidden_layers"] == 12
    assert cut.config["intermediate_size"] == 28672
    other = row_model(
        said(task="train", model_family="gpt", model_name="GPT 20B", layers="40", hidden="6000")
    )
    assert other == "the source does not say heads, seq_len"


def test_a_prompts_length_does_not_follow_from_the_name() -> None:
    row = said(task="prefill", model_family="llama", model_name="Llama-2-7B")
    assert row_model(row) == "the source does not say seq_len"


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("ResNet-101", "depths", [3, 4, 23, 3]), ("ResNet-50 v1.5", "depths", [3, 4, 6, 3])],
)
def test_depths_of_residual_networks(name: str, field: str, value: list[int]) -> None:
    assert model_of(model_family="resnet", model_name=name).config[field] == value


def test_fewer_key_heads_than_query_heads() -> None:
    sizes = {"layers": "32", "hidden": "4096", "heads": "32", "seq_len": "4096"}
    grouped = model_of(model_family="gpt", **sizes, kv_heads="8").config
    plain = model_of(model_family="gpt", **sizes, kv_heads="32").config
    assert (grouped["num_key_value_heads"], plain["model_type"]) == (8, "gpt2")


def test_ranks_of_a_sequence_counted_as_replicas() -> None:
    plan = plan_of(n_gpus="8", dp="8", tp="1", pp="1", cp="2")
    assert (plan.dp, plan.cp, plan.world_size) == (4, 2, 8)
    plan = plan_of(framework="DeepSpeed-Ulysses", n_gpus="8", global_batch="2", zero_stage="3")
    assert (plan.dp, plan.cp) == (2, 4)


def test_a_schedule_by_its_name_and_the_chunks_it_needs() -> None:
    interleaved = plan_of(pp="2", pipeline_schedule="Interleaved 1F1B", framework="torchtitan")
    assert (interleaved.schedule, interleaved.vpp) == ("interleaved", 2)
    assert plan_of(pp="2", pipeline_schedule="DualPipe").schedule == "dualpipe-v"
    assert plan_of(pp="2", vpp="4", pipeline_schedule="1F1B").schedule == "interleaved"
    assert plan_of(pp="2", pipeline_schedule="unheard of").schedule == "1f1b"


def test_a_split_that_no_column_says_holds_the_model() -> None:
    big = {"layers": "96", "hidden": "12288", "n_params": "175e9", "n_gpus": "1024", "global_batch": "1536"}
    plan = plan_of(framework="Megatron-LM", year="2021", **big)
    state_bytes = 175e9 * 18 / (plan.tp * plan.pp)
    assert plan.tp == 8
    assert state_bytes < load_profile("h100").device.memory_bytes
    assert plan_of(framework="Megatron-LM", year="2021", n_params="1e9").tp == 1
    assert plan_of(**{**big, "framework": "PyTorch", "global_batch": "2048"}).zero_stage == 3
    assert plan_of(framework="PyTorch", n_params="1e9").zero_stage == 0


@pytest.mark.parametrize("framework", ["PyTorch", "Megatron-LM"])
def test_a_gpu_without_a_profile_leaves_the_split_alone(framework: str) -> None:
    plan = plan_of(gpu="TPU v4", framework=framework, n_params="175e9")
    assert (plan.dp, plan.tp, plan.pp) == (8, 1, 1)


def test_micro_batches_of_small_models_are_larger() -> None:
    small, large = (
        plan_of(framework="PyTorch FSDP", n_params=n, seq_len="2048", global_batch="512").micro_batch_size
        for n in ("1e9", "30e9")
    )
    assert small > large >= 1


def test_a_batch_is_moved_only_where_no_micro_batch_contradicts_it() -> None:
    cells = {"n_gpus": "96", "global_batch": "1000", "framework": "PyTorch FSDP"}
    assert plan_of(**cells).global_batch_size % 96 == 0
    assert isinstance(row_plan(said(**{**RUN, **cells, "dp": "96", "micro_batch": "2"})), str)


def test_a_run_that_was_measured_fitted() -> None:
    plan = plan_of(framework="PyTorch FSDP")
    assert [other.recompute for other in heavier_plans(said(**RUN, framework="PyTorch"), plan)] == [
        "selective",
        "full",
    ]
    assert not list(heavier_plans(said(**RUN, framework="PyTorch", recompute="none"), plan))
    assert overfull(2e11, 8e10)
    assert not overfull(9e10, 8e10)


def test_flop_that_count_what_runs_again() -> None:
    sizes = {
        "batch": 1,
        "seq": 8,
        "layers": 1,
        "hidden": 8,
        "vocab": 8,
        "n_parameters": 1.0,
        "model_flop": 3.0,
    }
    counted = flop_per_step(formula_of("hardware FLOPs (HFU)"), Sizes(**sizes, recompute="full"))  # type: ignore[arg-type]
    assert counted == pytest.approx(4.0)


def test_a_forecast_says_what_it_assumed() -> None:
    row = said(
        **{**RUN, "gpu": "NVIDIA H100 80GB HBM3"}, framework="torchtitan", global_batch="16", n_gpus="8"
    )
    plan = row_plan(row)
    assert isinstance(plan, Plan)
    assumed = plan_labels(row, plan, row_hardware(row))["assumed"]
    for part in ("gpu", "dp=8", "zero_stage=3", "recompute=ops2"):
        assert part in assumed


def test_a_table_in_other_words_is_forecast(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    cells = {
        **RUN,
        "id": "a-1",
        "gpu": "NVIDIA H100 80GB HBM3",
        "framework": "torchtitan",
        "task": "pretraining",
    }
    cells |= {"n_gpus": "8", "global_batch": "8", "tokens_per_s_per_gpu": "6000", "layers": "2"}
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, cells)
        writer.writeheader()
        writer.writerow(cells)
    assert next(read_rows(table)).written["task"] == "pretraining"
    row = validate_published(table).rows[0]
    assert row.skipped is None
    assert row.predicted


def test_a_named_model_runs_as_its_launcher_configures_it() -> None:
    run = {"framework": "NeMo Megatron", "gpu": "A100 80GB", "task": "train", "dtype": "bf16", "year": "2023"}
    row = said(**run, model_family="bert", model_name="BERT 4B", n_gpus="16", seq_len="512")
    plan, model = row_plan(row), row_model(row)
    assert isinstance(plan, Plan)
    assert isinstance(model, RowModel)
    assert (plan.dp, plan.micro_batch_size, plan.global_batch_size) == (16, 8, 2048)
    assert model.config["num_hidden_layers"] == 48
    assert "micro_batch=8" in plan_labels(row, plan, row_hardware(row))["assumed"]
    own = row_plan(said(**run, model_family="bert", model_name="BERT 4B", n_gpus="16", micro_batch="4"))
    assert isinstance(own, Plan)
    assert own.micro_batch_size == 4  # what the row says itself stays


def test_the_first_years_of_nemo_ran_megatrons_kernels() -> None:
    run = {**RUN, "framework": "NeMo Megatron", "year": "2023", "gpu": "A100 80GB"}
    old, new = row_framework(said(**run)), row_framework(said(**{**run, "framework": "NeMo 25.02"}))
    assert (old.attention, new.attention) == ("unfused", "flash")
    assert old.gradient_comm_bytes == 4.0
    assert old.step_overhead_s > new.step_overhead_s


def test_adapters_alone_are_trained_where_the_words_say_so() -> None:
    run = {"model_family": "llama", "model_name": "Llama-2-7B", "dtype": "bf16", "seq_len": "4096"}
    adapted = row_model(said(**run, task="LoRA", framework="NeMo 24.07"))
    noted = row_model(said(**run, task="fine-tuning", framework="trl", notes="QLoRA, packed"))
    whole = row_model(said(**run, task="SFT", framework="NeMo 24.07", notes="no LoRA"))
    latent = row_model(
        said(**run, task="train", framework="Megatron-LM", notes="q-lora-rank=256; kv_lora_rank=128")
    )
    answers = row_model(said(**run, task="inference", output_len="8", notes="LoRA adapters served"))
    assert isinstance(adapted, RowModel)
    assert isinstance(noted, RowModel)
    assert isinstance(whole, RowModel)
    assert isinstance(answers, RowModel)
    assert adapted.adapter_rank == 16
    assert "q_proj" in adapted.adapted
    assert (noted.adapter_rank, noted.adapted) == (64, ())
    assert isinstance(latent, RowModel)
    assert whole.adapter_rank == answers.adapter_rank == latent.adapter_rank == 0


@pytest.mark.parametrize(
    ("family", "name", "sizes"),
    [
        ("falcon", "Falcon-40B", {"num_hidden_layers": 60, "hidden_size": 8192}),
        ("qwen3", "Qwen3-4B", {"hidden_size": 2560, "head_dim": 128}),
        ("gemma2", "Gemma-2-9B", {"num_hidden_layers": 42, "head_dim": 256}),
        ("phi", "Phi-2", {"n_layer": 32, "n_embd": 2560}),
        ("chatglm", "ChatGLM3-6B", {"num_key_value_heads": 2}),
        ("flan-t5", "Flan-T5-XXL", {"d_model": 4096, "d_ff": 10240}),
        ("dit", "DiT-L/2", {"num_layers": 24, "attention_head_dim": 64}),
        ("sdxl", "Stable Diffusion XL", {"transformer_layers_per_block": [1, 2, 10]}),
        ("distilbert", "DistilBERT", {"num_hidden_layers": 6}),
        ("moe", "GPT-OSS-20B", {"num_local_experts": 32}),
    ],
)
def test_more_names_say_sizes(family: str, name: str, sizes: dict[str, object]) -> None:
    config = model_of(model_family=family, model_name=name, seq_len="2048").config
    assert {key: config[key] for key in sizes} == sizes


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("unet", "U-Net (medical)"),
        ("stable-diffusion", "SD3-medium"),
        ("resnet", "SE-ResNeXt101-32x4d"),
        ("bert", "DeBERTa-v3-large"),
        ("falcon", "Falcon-RW"),
    ],
)
def test_a_model_that_a_family_only_resembles_is_refused(family: str, name: str) -> None:
    found = row_model(said(task="train", model_family=family, model_name=name, seq_len="512"))
    assert isinstance(found, str)


def test_pipelines_that_overlap_are_interleaved_to_single_layers() -> None:
    run = {"framework": "Megatron-Core", "source": "Megatron-LM README, table", "tp": "8", "pp": "4"}
    plan = plan_of(**run, n_gpus="64", global_batch="64", micro_batch="1")
    assert (plan.schedule, plan.vpp) == ("interleaved", 8)  # 32 layers on 4 stages
    elsewhere = plan_of(**{**run, "source": "a report"}, n_gpus="64", global_batch="64", micro_batch="1")
    assert (elsewhere.schedule, elsewhere.vpp) == ("1f1b", 1)


@pytest.mark.parametrize(
    ("cells", "width"),
    [
        ({"framework": "Megatron-LM (mcore)", "notes": "expert-tensor-parallel-size=1; x=2"}, 1),
        ({"framework": "Megatron-Bridge"}, 1),
        ({"framework": "Megatron-LM (mcore)"}, 0),
        ({"framework": "Megatron-Bridge", "ep": "1"}, 0),
        (
            {"framework": "Megatron-LM (mcore)", "notes": "etp=1", "tp": "4", "ep": "2"},
            0,
        ),  # not all of a replica
    ],
)
def test_how_many_ranks_split_an_expert(cells: dict[str, str], width: int) -> None:
    moe = {"model_family": "moe", "n_gpus": "16", "tp": "2", "ep": "4"}
    plan = plan_of(**{**moe, **cells})
    assert plan.expert_tp == width
    row = said(**{**moe, **cells}, gpu="H100")
    assert ("etp=1" in plan_labels(row, plan, row_hardware(row))["assumed"]) == (width == 1)
