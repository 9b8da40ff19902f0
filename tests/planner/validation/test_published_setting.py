"""What a row's wording changes: links, kernels, data, heads, plans; no forecast is made here."""

from __future__ import annotations

import pytest

from costmodel.hardware.store import load_profile
from planner.validation.published.model_map import RowModel, row_model
from planner.validation.published.rows import PublishedRow, says
from planner.validation.published.setting import (
    counted_step_share,
    in_rows_nodes,
    row_arguments,
    row_framework,
    row_hardware,
    row_plan,
    row_variant,
)

BERT = {"model_family": "bert", "layers": "24", "hidden": "1024", "heads": "16", "task": "train"}


def published(**cells: str) -> PublishedRow:
    return PublishedRow(id="x-1", cells={"framework": "Megatron-DeepSpeed", "dtype": "fp16", **cells})


def model_of(**cells: str) -> RowModel:
    found = row_model(published(**{**BERT, **cells}))
    assert isinstance(found, RowModel)
    return found


def test_a_rows_link_is_there_though_its_gpus_usual_nodes_have_others() -> None:
    row = published(gpu="V100-SXM2-16GB", inter_node_link="1x InfiniBand EDR 100 Gb/s per node")
    network = row_hardware(row).network
    assert network is not None
    inter = network.links(row_variant(row))[1]
    assert inter is not None
    assert (inter.bytes_per_s, inter.nics_per_node) == (12.5e9, 1)
    usual = row_hardware(published(gpu="V100-SXM2-16GB")).network
    assert usual is not None
    assert row_variant(published(gpu="V100-SXM2-16GB")) is None
    assert usual.links()[1] != inter
    rack = published(gpu="GB200", inter_node_link="InfiniBand 400 Gb/s")  # 72 GPUs are one node there
    assert row_variant(rack) is None


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ({"gpu": "RTX 3090 Ti", "intra_node_link": "NVLink bridge (NV4)"}, "nvlink_bridge"),
        ({"gpu": "RTX 3090 Ti", "intra_node_link": "PCIe 4.0 x8, P2P disabled"}, "pcie_host"),
        ({"gpu": "RTX A5000"}, "pcie_peer"),
        ({"gpu": "A100-SXM4-80GB", "intra_node_link": "NVLink", "year": "2024"}, "nvswitch"),
        (
            {
                "gpu": "A100-SXM4-80GB",
                "intra_node_link": "NVLink",
                "year": "2024",
                "framework": "NVIDIA DeepLearningExamples (PyTorch, NGC container)",
            },
            "pcie_host",
        ),
    ],
)
def test_a_row_says_how_its_gpus_are_joined_inside_a_node(cells: dict[str, str], kind: str) -> None:
    row = published(**cells, inter_node_link="1x InfiniBand EDR 100 Gb/s per node")
    network = row_hardware(row).network
    assert network is not None
    intra, inter = network.links(row_variant(row))
    assert intra.kind == kind
    assert inter is not None
    assert inter.nics_per_node == 1


def nodes_of(**cells: str) -> tuple[int, int]:
    """GPUs and interfaces of a node of the row."""
    row = published(**cells)
    network = row_hardware(row).network
    assert network is not None
    inter = network.links(row_variant(row))[1]
    return network.ranks_per_node, 0 if inter is None else inter.nics_per_node


def test_rows_are_placed_on_nodes_of_as_many_gpus_as_they_say() -> None:
    sxm = {"gpu": "A100-SXM4-80GB", "n_gpus": "16"}
    assert nodes_of(**sxm) == (8, 8)
    assert nodes_of(**sxm, gpus_per_node="8") == (8, 8)
    assert nodes_of(**sxm, gpus_per_node="4") == (4, 4)
    assert nodes_of(**sxm, gpus_per_node="4", inter_node_link="2x 200 Gb/s InfiniBand") == (4, 2)
    assert nodes_of(gpu="RTX A4000", n_gpus="16", gpus_per_node="16")[0] == 16
    assert nodes_of(gpu="A100-SXM4-80GB", n_gpus="2", gpus_per_node="4")[0] == 8  # on one node in any case
    assert nodes_of(gpu="GB200", n_gpus="64", gpus_per_node="4")[0] == 72  # trays of one rack
    quad = published(gpu="GH200-96GB", n_gpus="8", gpus_per_node="4")
    network = row_hardware(quad).network
    assert network is not None
    assert (network.ranks_per_node, network.links(row_variant(quad))[0].kind) == (4, "nvlink_mesh")
    sixteen = published(gpu="V100-SXM2-32GB", n_gpus="16", gpus_per_node="16")
    network = row_hardware(sixteen).network
    assert network is not None
    assert (network.ranks_per_node, network.links(row_variant(sixteen))[0].kind) == (16, "nvswitch")


def test_the_node_of_a_row_places_its_groups() -> None:
    cells = BERT | {"gpu": "A100-SXM4-80GB", "n_gpus": "16", "gpus_per_node": "4"}
    model = model_of()
    keys = {row_arguments(published(**cells | {"gpus_per_node": n}), model)[0] for n in ("4", "8")}
    assert len(keys) == 2
    profile = row_arguments(published(**cells), model)[1]()["profile"]
    assert profile.network.ranks_per_node == 4
    given = in_rows_nodes(load_profile("h100-sxm5-80gb"), published(**cells))
    assert given.name == "H100-SXM5-80GB"
    assert given.network is not None
    assert given.network.ranks_per_node == 4


def test_a_source_that_divides_by_steps_it_did_not_run_is_read_so() -> None:
    squad = {"framework": "NVIDIA DeepLearningExamples (PyTorch)", "model_name": "SQuAD", "year": "2025"}
    samples, steps = 2 * 88641, 100
    assert counted_step_share(published(**squad), samples // steps) == 1.0
    assert counted_step_share(published(**squad), 2 * samples // steps) == pytest.approx(0.5, rel=1e-3)
    assert counted_step_share(published(model_name="SQuAD", year="2025"), 10 * samples) == 1.0


def test_what_a_note_says_of_the_launches_is_done() -> None:
    assert row_framework(published(notes="CUDA_LAUNCH_BLOCKING=1 was used")).launch_blocking
    assert not row_framework(published()).launch_blocking


def test_question_answering_has_its_own_head_optimizer_and_gradients() -> None:
    said = {"framework": "NVIDIA DeepLearningExamples (PyTorch)", "model_name": "BERT-large SQuAD"}
    assert model_of(**said, seq_len="384").config["architectures"] == ["BertForQuestionAnswering"]
    full, half = (row_framework(published(**BERT, **said, dtype=d)) for d in ("tf32", "fp16"))
    assert full.update_kernels > 0
    assert full.gradient_comm_bytes == 4.0
    assert half.update_kernels == 0
    assert half.gradient_comm_bytes == 2.0


def test_a_library_that_writes_attention_out_is_traced_as_it_does() -> None:
    assert (
        row_framework(published(notes="attn_implementation=eager", flash_attention="false")).attention
        == "eager"
    )
    assert row_framework(published(notes="no flash", flash_attention="false")).attention == "unfused"
    assert (
        row_framework(published(notes="attn_implementation=eager", flash_attention="true")).attention
        == "flash"
    )


def test_a_trainers_half_precision_is_autocast_over_fp32_parameters() -> None:
    half = row_framework(published(framework="HF Trainer", dtype="bf16", year="2022"))
    assert (half.casts_to, half.parameter_bytes) == ("bf16", 4.0)
    for named in ("OpenCLIP", "PyTorch autocast", "PyTorch (AMP)"):
        assert row_framework(published(framework=named, dtype="bf16", year="2022")).casts_to == "bf16", named
    full = row_framework(published(framework="HF Trainer", dtype="tf32", year="2022"))
    assert (full.casts_to, full.compute_dtype) == ("", "fp32")
    sharded = row_framework(published(framework="HF Trainer + DeepSpeed ZeRO-2", dtype="bf16", year="2022"))
    assert (sharded.casts_to, sharded.compute_dtype, sharded.attention) == ("", "bf16", "eager")


def test_a_compiled_run_fuses() -> None:
    assert (
        row_framework(published(framework="PyTorch + HF transformers + torch.compile")).fusion == "compiled"
    )
    assert row_framework(published(framework="PyTorch + HF transformers eager")).fusion == "eager"


def test_a_forward_pass_of_bert_has_no_head_over_the_vocabulary() -> None:
    said = {"framework": "PyTorch + HF transformers eager", "model_name": "bert_large", "seq_len": "512"}
    assert model_of(**said).config["architectures"] == ["BertForPreTraining"]
    assert model_of(**{**said, "task": "forward"}).config["architectures"] == [
        "BertForSequenceClassification"
    ]


def test_opt_is_its_own_architecture() -> None:
    sizes = {"layers": "24", "hidden": "2048", "heads": "32", "ffn_hidden": "8192", "seq_len": "2048"}
    found = row_model(published(model_family="gpt", model_name="opt_13", vocab="50272", **sizes))
    assert isinstance(found, RowModel)
    assert (found.config["model_type"], found.config["ffn_dim"]) == ("opt", 8192)


@pytest.mark.parametrize(("seq", "mean"), [("512", 512 // 2 + 32), ("128", 128)])
def test_sequences_sorted_by_length_are_padded_less(seq: str, mean: int) -> None:
    sorted_ = {"framework": "PyTorch DDP + apex (NGC pytorch 21.11)", "notes": "pre-training, LAMB"}
    assert model_of(**sorted_, seq_len=seq).seq_len == mean
    assert model_of(framework="NGC PyTorch", seq_len=seq).seq_len == int(seq)


def test_masked_positions_are_gathered_where_the_code_does() -> None:
    assert model_of(framework="OneFlow", model_name="BERT-base").predicted_share == 20 / 128
    assert model_of(framework="LiBai", model_name="BERT-base").predicted_share == 1.0
    assert model_of(framework="NGC PyTorch", model_name="BERT-base").head == "cls.predictions"
    assert model_of(framework="PyTorch DDP + apex", model_name="BERT-base").head == ""


@pytest.mark.parametrize(
    ("cells", "split"),
    [({"tp": "2"}, True), ({"tp": "1"}, False), ({"tp": "2", "sequence_parallel": "false"}, False)],
)
def test_recipes_split_the_sequence_with_the_tensors_unless_the_row_says_otherwise(
    cells: dict[str, str], split: bool
) -> None:
    row = published(framework="Megatron-Bridge", n_gpus="8", global_batch="64", micro_batch="1", **cells)
    plan = row_plan(row)
    assert not isinstance(plan, str)
    assert plan.sequence_parallel is split


def test_a_row_says_what_all_patterns_hold() -> None:
    row = published(notes="Adam, ZeRO")
    assert says(row, {"notes": "zero", "dtype": "^fp16$"})
    assert not says(row, {"notes": "zero", "dtype": "^bf16$"})
    assert says(row, {"gpu": "^$"})  # what is not said is empty


@pytest.mark.parametrize(("note", "shard"), [("zero1=8; micro_num 4", 8), ("zero1=-1 (all)", 0), ("", 0)])
def test_the_ranks_that_share_optimizer_states_are_read(note: str, shard: int) -> None:
    cells = {"dp": "16", "n_gpus": "16", "zero_stage": "1", "micro_batch": "1", "global_batch": "64"}
    plan = row_plan(published(notes=note, **cells))
    assert not isinstance(plan, str)
    assert plan.dp_shard == shard


def test_a_pipeline_whose_batch_is_not_stated_is_filled() -> None:
    plan = row_plan(published(tp="1", pp="4", n_gpus="8", micro_batch="2"))
    assert not isinstance(plan, str)
    assert plan.num_microbatches == 4 * 4


def test_what_a_sources_scripts_set_counts_where_the_row_does_not_say() -> None:
    cells = {"n_gpus": "8", "dp": "8", "micro_batch": "1", "global_batch": "8", "source": "FlagOpen/FlagPerf"}
    assert row_plan(published(framework="Megatron-Core", **cells)).zero_stage == 1  # type: ignore[union-attr]
    said = published(framework="Megatron-Core", zero_stage="0", **cells)
    assert row_plan(said).zero_stage == 0  # type: ignore[union-attr]
    other = published(framework="Megatron-Core", **{**cells, "source": "elsewhere"})
    assert row_plan(other).zero_stage == 0  # type: ignore[union-attr]
    script = row_framework(published(**{**cells, "dtype": "bf16"}))
    assert (script.gradient_bytes, script.optimizer_state_bytes) == (2, 16)


@pytest.mark.parametrize(("said", "recompute"), [("", "full"), ("none", "none"), ("selective", "selective")])
def test_what_a_codes_configurations_recompute_stands_in_where_the_row_does_not_say(
    said: str, recompute: str
) -> None:
    notes = "seq 2048, dims and remat policy live in the repo configs"
    cells = {"framework": "PAXML (JAX)", "zero_stage": "3", "n_gpus": "8", "micro_batch": "4"}
    plan = row_plan(published(**cells, notes=notes, recompute=said))
    assert not isinstance(plan, str)
    assert plan.recompute == recompute


def test_a_job_whose_steps_stall_is_told_by_its_setting() -> None:
    job = {"framework": "Megatron-LM (mcore)", "gpu": "GB200", "dtype": "bf16", "tp": "1", "pp": "1"}
    usual = row_framework(published(**job, n_gpus="8")).step_overhead_s
    waiting = row_framework(published(**{**job, "tp": "2"}, n_gpus="4")).step_overhead_s
    alone = row_framework(published(**job, n_gpus="4")).step_overhead_s
    assert usual < alone < waiting


def test_exchanges_overlap_where_experts_span_nodes_and_pipelines_interleave() -> None:
    row = {"framework": "Megatron-Bridge", "gpu": "H100-SXM5-80GB", "framework_version": "26.02", "ep": "32"}
    assert row_framework(published(**row, vpp="4")).overlap_ep
    assert not row_framework(published(**row)).overlap_ep
    assert not row_framework(published(**{**row, "ep": "8"}, vpp="4")).overlap_ep


def test_steps_timed_without_an_optimizer_are_forecast_without_one() -> None:
    cells = {**BERT, "gpu": "V100-PCIe-32GB"}
    plain, without = published(**cells), published(**cells, notes="fw+bw only, NO optimizer step; fw 83 ms")
    model = model_of(**cells)
    keys, given = zip(*(row_arguments(row, model) for row in (plain, without)), strict=True)
    assert keys[0] != keys[1]
    assert "optimizer" not in given[0]()
    assert given[1]()["optimizer"] == "none"
    # a pass without gradients has no optimizer to leave out
    forward = published(**cells | {"task": "forward"}, notes="NO optimizer step")
    assert "optimizer" not in row_arguments(forward, model)[1]()


def test_only_training_has_a_loss() -> None:
    cells = {"gpu": "A100-SXM4-80GB", "seq_len": "128"}
    model = model_of(**cells)
    train, forward, prefill = (
        row_arguments(published(**BERT | cells | {"task": task}), model)[0]
        for task in ("train", "forward", "prefill")
    )
    assert forward == prefill != train


@pytest.mark.parametrize(("gpu", "waits"), [("A100-PCIe-80GB", "segment_s"), ("MI210", "wiped_bytes_per_s")])
def test_passes_from_an_emptied_pool_wait_for_the_allocator_or_the_driver(gpu: str, waits: str) -> None:
    cells = {"framework": "PyTorch + HF transformers eager", "gpu": gpu, "dtype": "fp32"}
    notes = "fw+bw only, NO optimizer step; mean of best 5 of 25; attn_implementation=eager"
    found = row_framework(PublishedRow(id="x-1", cells={**BERT, **cells, "notes": notes}))
    waiting = {name for name in ("segment_s", "wiped_bytes_per_s") if getattr(found, name)}
    assert waiting == {waits}
    usual = row_framework(PublishedRow(id="x-1", cells={**BERT, **cells}))
    assert not usual.segment_s + usual.wiped_bytes_per_s


def test_what_a_sources_own_times_contradict_is_corrected() -> None:
    one_node = published(
        source="vTrain data/ground_truth_single.csv", recompute="full", n_gpus="1", micro_batch="1"
    )
    plan = row_plan(one_node)
    assert not isinstance(plan, str)
    assert plan.recompute == "selective"
    several = published(
        source="vTrain data/ground_truth_multi.csv", recompute="full", n_gpus="1", micro_batch="1"
    )
    plan = row_plan(several)
    assert not isinstance(plan, str)
    assert plan.recompute == "full"


def test_a_vocabulary_that_was_not_padded_stays_odd() -> None:
    cells = {"model_family": "gpt", "layers": "12", "hidden": "1024", "heads": "16", "seq_len": "1024"}
    said = {**cells, "notes": "vocab (vTrain default 50257)", "source": "vTrain data/ground_truth_single.csv"}
    for tp, multiple in (("1", 1), ("2", 128)):
        row = published(**said, tp=tp)
        framework = row_framework(row)
        assert framework.vocab_multiple == multiple
        model = row_model(row, vocab_multiple=framework.vocab_multiple)
        assert isinstance(model, RowModel)
        assert model.vocab % 128 == 50257 % 128 if multiple == 1 else model.vocab % 128 == 0


def test_a_batch_that_only_the_scripts_name_is_accumulated() -> None:
    source = "FlagOpen/FlagPerf training/nvidia/aquila2_7b-flagscale/README.md"
    cells = {"framework": "FlagScale (Megatron)", "source": source, "n_gpus": "8", "micro_batch": "4"}
    plan = row_plan(published(**cells, pp="8", dp="1"))
    assert not isinstance(plan, str)
    assert plan.num_microbatches == 9
    assert not row_framework(published(**cells)).overlap_dp


def test_overlaps_that_a_row_lists_are_done() -> None:
    cells = {
        "framework": "Megatron-Core",
        "source": "Megatron-LM README images/model_table.png",
        "notes": "overlap-grad-reduce, overlap-param-gather, tp-comm-overlap on",
        "global_batch": "384",
        "tp": "8",
        "dp": "48",
        "layers": "84",
    }
    whole = row_plan(published(**cells, pp="1", n_gpus="384"))
    split = row_plan(published(**cells, pp="2", n_gpus="768"))
    assert not isinstance(whole, str)
    assert not isinstance(split, str)
    assert (whole.zero_stage, split.zero_stage, split.vpp) == (1, 1, 1)
    assert row_framework(published(**cells)).overlap_gather
    assert not row_framework(
        published(**{**cells, "source": "a report", "notes": "tp-comm-overlap on"})
    ).overlap_gather
    said = row_plan(published(**cells, pp="2", vpp="2", n_gpus="768"))
    assert not isinstance(said, str)
    assert said.vpp == 2


def test_replicas_that_cannot_hold_a_model_shard_it_however_the_row_splits_it() -> None:
    """LLaMA's 65B on 2,048 GPUs: split by tensors and sequence, but not a word on how."""
    cells = {"task": "train", "gpu": "A100-SXM4-80GB", "n_gpus": "2048", "global_batch": "2048"}
    cells |= {"model_family": "llama", "layers": "80", "hidden": "8192", "heads": "64", "vocab": "32000"}
    for wording in ("own code", "own code (model+sequence parallelism)"):
        plan = row_plan(published(framework=wording, dtype="bf16", seq_len="2048", **cells))
        assert not isinstance(plan, str)
        assert (plan.dp, plan.zero_stage) == (2048, 3), wording


@pytest.mark.parametrize(("stage", "beside"), [("1", False), ("2", False), ("3", True)])
def test_deepspeed_under_a_trainer_reduces_halves_after_backward_but_for_stage_three(
    stage: str, beside: bool
) -> None:
    cells = {"framework": "HF Trainer + DeepSpeed", "dtype": "fp16", "year": "2021", "zero_stage": stage}
    framework = row_framework(published(**cells))
    assert framework.overlap_dp is beside
    assert framework.gradient_comm_bytes == 2.0
