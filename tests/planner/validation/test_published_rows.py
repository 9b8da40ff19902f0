"""What a published row's wording means: model, plan, framework; rows that give memory alone."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from costmodel.plan import Plan
from planner.validation.published.memory import METRIC
from planner.validation.published.model_map import RowModel, row_model
from planner.validation.published.rows import PublishedRow
from planner.validation.published.score import validate_published
from planner.validation.published.setting import row_framework, row_plan

BLOCK = {"layers": "4", "hidden": "64", "heads": "4", "ffn_hidden": "256", "vocab": "512", "seq_len": "32"}
RUN = {"gpu": "A100-SXM4-80GB", "task": "train", "framework": "Megatron-LM (mcore)", "dtype": "bf16"}


def row(**cells: str) -> PublishedRow:
    return PublishedRow(id="made-1", cells={**RUN, **BLOCK, **cells})


def model(**cells: str) -> RowModel:
    found = row_model(row(**cells))
    assert isinstance(found, RowModel), found
    return found


def plan(**cells: str) -> Plan:
    found = row_plan(row(**cells))
    assert isinstance(found, Plan), found
    return found


def test_targets_of_another_length() -> None:
    assert model(model_family="t5", notes="decoder-seq-length=8; kv-channels=64").target_len == 8
    assert model(model_family="t5").target_len == 0


def test_experts_of_two_matrices_where_the_notes_say_so() -> None:
    moe = {"model_family": "moe", "n_experts": "8", "top_k": "2", "kv_heads": "4"}
    plain = model(**moe)
    assert plain.config["model_type"] == "mixtral"
    said = model(**moe, notes="CI golden values; disable-bias-linear=True")
    assert said.config["layers_block_type"] == ["full_attention", "moe"] * 4
    assert said.config["head_dim"] == 16
    assert said.config["tie_word_embeddings"] is True
    untied = model(**moe, notes="CI golden values; untie-embeddings-and-output-weights=True")
    assert untied.config["tie_word_embeddings"] is False
    gated = model(**moe, notes="CI golden values; swiglu=True")
    assert gated.config["model_type"] == "mixtral"


def test_a_batch_that_only_the_notes_name() -> None:
    assert plan(n_gpus="8", dp="8", notes="script default 256/GPU").micro_batch_size == 256
    assert row_plan(row(n_gpus="8", dp="8")) == "the source does not say the batch"


def test_copies_of_the_optimizer_are_kept() -> None:
    given = {"n_gpus": "8", "dp": "8", "micro_batch": "1", "global_batch": "8"}
    said = "num-distributed-optimizer-instances=2"
    assert plan(**given, zero_stage="1", notes=said).dp_shard == 4
    assert plan(**given, zero_stage="0", notes=said).dp_shard == 0
    assert plan(**given, zero_stage="1").dp_shard == 0


def test_what_deepspeed_keeps() -> None:
    given = {"framework": "Megatron-DeepSpeed", "zero_stage": "1"}
    half, brain = row_framework(row(**given, dtype="fp16")), row_framework(row(**given, dtype="bf16"))
    assert (half.gradient_bytes, half.optimizer_state_bytes) == (2, 16)
    assert (brain.gradient_bytes, brain.optimizer_state_bytes) == (6, 12)
    assert row_framework(row(framework="Megatron-DeepSpeed", dtype="fp16")).gradient_bytes == 4


@pytest.mark.parametrize("option", ["cross-entropy-loss-fusion=True", "defer-embedding-wgrad-compute=True"])
def test_a_loss_that_holds_more(option: str) -> None:
    assert row_framework(row(notes=option)).loss_copy_bytes == 4
    assert row_framework(row()).loss_copy_bytes == 0


def test_a_row_that_gives_memory_alone_is_forecast(tmp_path: Path) -> None:
    cells = row(model_family="gpt", n_gpus="1", micro_batch="2", global_batch="2", peak_mem_gb="1.0").cells
    plain = {**cells, "id": "made-1", "source": "made"}
    fused = {**plain, "id": "made-2", "notes": "cross-entropy-loss-fusion=True; mem-max-allocated"}
    eager = {**plain, "id": "made-3", "notes": "mem-max-allocated"}
    nothing = {**plain, "id": "made-4", "peak_mem_gb": ""}
    names = list(dict.fromkeys(name for cells in (plain, fused) for name in cells))
    with (tmp_path / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows([plain, fused, eager, nothing])
    found = {r.id: r for r in validate_published(tmp_path / "runs.csv").rows}
    assert found["made-4"].skipped == "the row gives no metric"
    gib = {name: found[name].predicted for name in ("made-1", "made-2", "made-3")}
    assert all(found[name].metric == METRIC for name in gib)
    assert gib["made-1"] > gib["made-3"]  # type: ignore[operator]
    # a device reading holds the context, the allocator's figure does not; logits: 2 x 32 x 512
    more = (gib["made-2"] - gib["made-3"]) * 2**30  # type: ignore[operator]
    assert more == pytest.approx(4 * 2 * 32 * 512, rel=0.05)
