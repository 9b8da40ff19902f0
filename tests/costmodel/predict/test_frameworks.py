"""What a framework does apart from the machine: stages, transfers, host time, kernels and their types."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from costmodel.framework import framework_names, load_framework
from costmodel.graph.model_graph import Operator, Phase
from costmodel.hardware.host_machine import dispatch_factor
from costmodel.hardware.store import load_profile
from costmodel.models import resolve, resolve_config
from costmodel.plan import Plan
from costmodel.predict import Forecaster, Prediction
from costmodel.predict.optimizer_costs import written_out_s
from costmodel.predict.pricing import price_operators, price_runs
from planner.validation.memory_watch import MemoryWatch

GPT = {"n_layer": 8, "n_embd": 512, "n_head": 8, "vocab_size": 2048, "n_positions": 256}


def forecast(plan: Plan, name: str = "megatron", **changes: Any) -> Prediction:
    return (
        Forecaster(
            source=resolve("gpt2", seq_len=256, overrides=GPT),
            profile=load_profile("a100-sxm4-80gb"),
            framework=load_framework(name).model_copy(update=changes),
        )
        .forecast(plan)
        .prediction
    )


def test_runs_of_operators_priced_at_once_cost_what_each_does() -> None:
    made = Forecaster(
        source=resolve("gpt2", seq_len=256, overrides=GPT),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework("megatron"),
    )
    runs = [s.operators for s in made.graph(2).segments]
    runs.append(made.graph(2).segments[0].phase(Phase.FORWARD))  # without gradients hosts do other work
    found = price_runs(runs, made.profile, made.framework, long_run=True)
    assert len(found) == len(runs)
    for run, at_once in zip(runs, found, strict=True):
        alone = price_operators(run, made.profile, made.framework, long_run=True)
        assert at_once.fit == alone.fit
        for name in ("device_s", "contended_s", "host_s", "log_sigma", "common_log_sigma"):
            assert getattr(at_once, name) == pytest.approx(getattr(alone, name), rel=1e-5)


@pytest.mark.parametrize("name", framework_names())
def test_every_shipped_framework_forecasts_and_says_where_its_figures_come_from(name: str) -> None:
    framework = load_framework(name)
    assert framework.source
    fitted = ("host_operator_s", "host_collective_s", "host_late_s", "host_overlap_power")
    fitted += ("step_overhead_s", "memory_bound_efficiency")
    defaults = type(framework)(name="x", source="x")
    for field in fitted:
        if getattr(framework, field) != getattr(defaults, field):
            assert framework.notes.get(field), f"{name}.{field} has no source"
    prediction = forecast(Plan(dp=2, micro_batch_size=4, global_batch_size=8), name)
    assert sum(prediction.breakdown_s.values()) == pytest.approx(prediction.step_time_s, rel=1e-3)


def test_even_stages_have_as_many_blocks_each() -> None:
    plan = Plan(pp=4, micro_batch_size=1, global_batch_size=8)
    stages = forecast(plan, stages="even").stage_modules
    blocks = [sum(".h." in module for module in stage) for stage in stages]
    assert blocks == [2, 2, 2, 2]
    assert any("wte" in module for module in stages[0])
    assert "ln_f" in stages[-1][-1]


def test_blocks_that_do_not_divide_are_balanced() -> None:
    plan = Plan(pp=3, micro_batch_size=1, global_batch_size=6)
    assert forecast(plan, stages="even").stage_modules == forecast(plan, stages="balanced").stage_modules


def test_slices_cross_between_nodes_faster_than_whole_tensors() -> None:
    plan = Plan(tp=8, pp=2, micro_batch_size=16, global_batch_size=64)
    whole = forecast(plan, scatter_p2p=False).breakdown_s["pp_comm"]
    assert forecast(plan, scatter_p2p=True).breakdown_s["pp_comm"] < whole


def test_small_kernels_wait_for_the_host_and_large_ones_do_not() -> None:
    def host_s(batch: int, each_s: float) -> float:
        plan = Plan(micro_batch_size=batch, global_batch_size=batch)
        return forecast(plan, host_operator_s=each_s, step_overhead_s=0.0).breakdown_s["host"]

    assert host_s(1, 0.0) == 0.0
    assert host_s(1, 5e-5) > 0.0
    assert host_s(1, 1e-4) > 2 * host_s(1, 5e-5)
    assert host_s(512, 1e-5) == pytest.approx(0.0, abs=1e-6)


def test_slower_memory_bound_kernels_take_longer_and_products_do_not() -> None:
    plan = Plan(micro_batch_size=64, global_batch_size=64)
    quick, slow = (forecast(plan, memory_bound_efficiency=e).breakdown_s["compute"] for e in (1.0, 0.5))
    assert quick < slow < 2 * quick


def test_handling_values_one_by_one_costs_both_types_the_same() -> None:
    plan = Plan(micro_batch_size=64, global_batch_size=64)

    def extra_s(dtype: str, rate: float) -> float:
        times = [
            forecast(plan, compute_dtype=dtype, memory_bound_elements_per_cycle=r).breakdown_s["compute"]
            for r in (rate, 0.0)
        ]
        return times[0] - times[1]

    assert extra_s("bf16", 4.0) == pytest.approx(2 * extra_s("bf16", 8.0))
    assert extra_s("fp32", 4.0) == pytest.approx(extra_s("bf16", 4.0), rel=0.2)


def test_convolutions_on_matrix_units_alone_change_their_layout() -> None:
    sizes = {"batch": 64, "c_in": 64, "c_out": 64, "h": 56, "w": 56, "kh": 3, "kw": 3, "stride": 1}
    sizes |= {"padding": 1, "groups": 1, "transposed": 0}
    profile = load_profile("v100-sxm2-16gb")

    def times_s(dtype: str) -> list[float]:
        conv = Operator(
            index=0,
            target="aten.convolution.default",
            kind="conv",
            variant="fwd",
            dtype=dtype,
            dims=sizes,
            flop=0,
            bytes_read=0,
            bytes_written=0,
            inputs=(),
            outputs=(),
            phase=Phase.FORWARD,
            module="",
        )
        plain = load_framework("pytorch-amp")
        turning = [plain.model_copy(update={"conv_layout_passes": passes}) for passes in (0.0, 1.0, 2.0)]
        return [float(price_operators([conv], profile, f).device_s[0]) for f in turning]

    half, single = times_s("fp16"), times_s("fp32")
    values = 2 * 64 * 64 * 56 * 56
    assert half[1] - half[0] == pytest.approx(2 * 2 * values / 900e9, rel=0.05)
    assert half[2] - half[0] == pytest.approx(2 * (half[1] - half[0]))
    assert single[0] == single[2]


def test_tf32_products_are_faster_than_fp32_and_slower_than_half() -> None:
    plan = Plan(micro_batch_size=64, global_batch_size=64)
    fp32 = forecast(plan, compute_dtype="fp32").breakdown_s["compute"]
    tf32 = forecast(plan, compute_dtype="fp32", fp32_products="tf32").breakdown_s["compute"]
    half = forecast(plan, compute_dtype="bf16").breakdown_s["compute"]
    assert half < tf32 < fp32


@pytest.mark.parametrize(("gpu", "same"), [("a100-sxm4-80gb", False), ("t4", True)])
def test_torch_convolves_in_tf32_where_there_is_and_multiplies_in_fp32(gpu: str, same: bool) -> None:
    def times(model: str, **changes: str) -> tuple[float, float]:
        found = Forecaster(
            source=resolve(model),
            profile=load_profile(gpu),
            framework=load_framework("pytorch").model_copy(update=changes),
        ).forecast(Plan(micro_batch_size=16, global_batch_size=16))
        assert found.prediction.mfu is not None
        return found.prediction.breakdown_s["compute"], found.prediction.mfu

    plain = {"fp32_convolutions": "as products"}
    (torch_s, mfu), (plain_s, _) = times("resnet-50"), times("resnet-50", **plain)
    assert (torch_s == plain_s) if same else (torch_s < 0.7 * plain_s)
    assert mfu < 1.0
    assert times("mlp-mnist") == times("mlp-mnist", **plain)


def test_half_products_run_in_fp32_where_that_is_faster() -> None:
    def compute_s(gpu: str, dtype: str) -> float:
        forecaster = Forecaster(
            source=resolve("gpt2", seq_len=256, overrides=GPT),
            profile=load_profile(gpu),
            framework=load_framework("megatron").model_copy(update={"compute_dtype": dtype}),
        )
        plan = Plan(micro_batch_size=16, global_batch_size=16)
        return forecaster.forecast(plan).prediction.breakdown_s["compute"]

    assert compute_s("gtx-1080-ti", "fp16") < compute_s("gtx-1080-ti", "fp32")


def test_fusion_saves_time_and_memory() -> None:
    plan = Plan(micro_batch_size=64, global_batch_size=64)
    eager, fused, compiled = (forecast(plan, fusion=f) for f in ("eager", "fused", "compiled"))
    assert compiled.breakdown_s["compute"] <= fused.breakdown_s["compute"] < eager.breakdown_s["compute"]
    assert compiled.memory[0].activations <= fused.memory[0].activations < eager.memory[0].activations


def test_a_host_that_waits_for_every_kernel_adds_its_time_whole() -> None:
    plan = Plan(micro_batch_size=16, global_batch_size=16)
    timed = {"host_operator_s": 2e-5, "step_overhead_s": 0.0, "host_collective_s": 0.0}
    free, blocked = (forecast(plan, launch_blocking=b, **timed) for b in (False, True))
    assert blocked.breakdown_s["host"] > free.breakdown_s["host"]
    assert blocked.step_time_s - blocked.breakdown_s["host"] == pytest.approx(
        free.step_time_s - free.breakdown_s["host"]
    )
    smaller = forecast(Plan(micro_batch_size=8, global_batch_size=8), launch_blocking=True, **timed)
    assert blocked.breakdown_s["host"] == pytest.approx(smaller.breakdown_s["host"])  # as many kernels


def test_a_host_that_is_late_now_and_then_costs_more_than_the_longer_and_less_than_both() -> None:
    plan = Plan(micro_batch_size=16, global_batch_size=16)
    host = {"host_operator_s": 2e-5, "step_overhead_s": 0.0}
    device = forecast(plan, host_operator_s=0.0, step_overhead_s=0.0).step_time_s
    longer, smooth, even = (
        forecast(plan, host_overlap_power=p, **host).step_time_s for p in (0.0, 3.0, 50.0)
    )
    waited = forecast(plan, launch_blocking=True, **host).step_time_s
    assert device < longer < smooth < waited
    assert even == pytest.approx(longer, rel=0.02)


def test_the_more_ranks_a_collective_waits_for_the_later_the_last_host() -> None:
    late = {"host_operator_s": 1e-3, "host_overlap_power": 0.0, "host_collective_s": 0.0}

    def lateness_s(tp: int) -> float:
        plan = Plan(tp=tp, micro_batch_size=2, global_batch_size=2)
        with_it, without = (forecast(plan, host_late_s=s, **late).step_time_s for s in (1e-4, 0.0))
        return with_it - without

    assert lateness_s(1) == pytest.approx(0.0)
    assert lateness_s(2) > 0.0
    assert lateness_s(4) == pytest.approx(lateness_s(2) * (1 / 2 + 1 / 3 + 1 / 4) / (1 / 2), rel=0.01)


def test_an_update_written_out_takes_dispatches_or_passes() -> None:
    profile = load_profile("a100-sxm4-80gb")
    changes = {"update_kernels": 10, "update_kernel_s": 1e-5, "update_passes": 30}
    framework = load_framework("pytorch").model_copy(update=changes)
    assert written_out_s([1000] * 7, profile, framework) == pytest.approx(7 * 10 * 1e-5)
    large = written_out_s([10**9], profile, framework)
    assert large > 30 * 4 * 10**9 / profile.device.memory_bytes_per_s
    twice = framework.model_copy(update={"update_passes": 60})
    assert written_out_s([10**9], profile, twice) == pytest.approx(2 * large)
    plan = Plan(micro_batch_size=1, global_batch_size=1)
    assert forecast(plan, **changes).breakdown_s["optimizer"] > forecast(plan).breakdown_s["optimizer"]


MOE = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "vocab_size": 512,
}


def test_a_step_is_no_faster_than_its_input() -> None:
    plan = Plan(dp=2, micro_batch_size=4, global_batch_size=8)
    free = forecast(plan)
    slow = forecast(plan, input_samples_per_s=2.0)
    assert slow.step_time_s == pytest.approx(4 / 2.0)
    assert sum(slow.breakdown_s.values()) == pytest.approx(slow.step_time_s, rel=1e-3)
    ample = 1.01 * 4 / free.step_time_s
    assert forecast(plan, input_samples_per_s=ample).step_time_s == free.step_time_s


def test_optimizer_states_shared_inside_a_node_need_no_gather_between_nodes() -> None:
    def dp_comm_s(shard: int) -> float:
        plan = Plan(dp=16, micro_batch_size=1, global_batch_size=16, zero_stage=1, dp_shard=shard)
        return forecast(plan, overlap_dp=False).breakdown_s["dp_comm"]

    assert dp_comm_s(8) < dp_comm_s(0)
    assert dp_comm_s(16) == pytest.approx(dp_comm_s(0))


def test_autocast_costs_its_casts_and_splits_like_the_rest() -> None:
    whole, split = Plan(micro_batch_size=4), Plan(tp=2, micro_batch_size=4)
    half, cast = (forecast(whole, "pytorch-amp", autocast=on) for on in (False, True))
    assert cast.breakdown_s["compute"] > 1.05 * half.breakdown_s["compute"]
    assert cast.peak_memory_bytes > half.peak_memory_bytes
    on_two = forecast(split, "pytorch-amp", autocast=True)
    assert on_two.breakdown_s["compute"] < 0.9 * cast.breakdown_s["compute"]
    # nothing to cast where the model computes in fp32
    full = [forecast(whole, "pytorch-amp", autocast=on, compute_dtype="fp32") for on in (False, True)]
    assert full[0].step_time_s == full[1].step_time_s


@pytest.mark.parametrize("name", ["gpt2", "llama-2-7b", "t5-small"])
def test_mixed_precision_on_a_cpu_keeps_what_a_real_autocast_keeps(name: str) -> None:
    sizes = {
        "gpt2": {"n_layer": 3, "n_embd": 192, "n_head": 6, "vocab_size": 1024, "n_positions": 64},
        "llama-2-7b": {
            "num_hidden_layers": 3,
            "hidden_size": 192,
            "intermediate_size": 512,
            "vocab_size": 1024,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
        },
        "t5-small": {"num_layers": 2, "num_decoder_layers": 2, "d_model": 192, "vocab_size": 1024},
    }
    found = Forecaster(
        source=resolve(name, seq_len=64, overrides=sizes[name]),
        profile=load_profile("epyc-9005-core"),
        framework=load_framework("pytorch-amp").model_copy(update={"compute_dtype": "bf16"}),
    ).forecast(Plan(micro_batch_size=4))
    built = resolve(name, seq_len=64, overrides=sizes[name], micro_batch_size=4).build(device="cpu")
    module: Any = built.module
    optimizer = torch.optim.AdamW(module.parameters(), foreach=False)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = module(*built.args, **built.kwargs).loss
        loss.backward()
        optimizer.step()

    step()
    optimizer.zero_grad(set_to_none=True)
    state = [t for kept in optimizer.state.values() for t in kept.values()]
    with MemoryWatch([*module.parameters(), *module.buffers(), *state]) as watch:
        step()
    (memory,) = found.prediction.memory
    assert memory.allocated_bytes == pytest.approx(watch.peak_bytes, rel=0.02)


def test_a_softmax_that_the_fused_kernel_does_not_take_costs_kernels() -> None:
    """8 heads over 4 ranks: 2 for one sample, 4 for two."""

    def added(batch: int) -> float:
        plan = Plan(tp=4, micro_batch_size=batch, global_batch_size=batch)
        each = (forecast(plan, softmax_batch_multiple=n).step_time_s for n in (1, 4))
        return -float.__sub__(*each)

    assert added(2) == 0.0
    assert added(1) > 0.0


def test_reductions_that_wait_take_their_whole_time() -> None:
    def step(overlaps: bool) -> Prediction:
        plan = Plan(dp=8, zero_stage=3, micro_batch_size=1, global_batch_size=8)
        return forecast(plan, "deepspeed", overlap_reduce=overlaps)

    beside, waiting = step(True), step(False)
    assert waiting.step_time_s > beside.step_time_s
    assert waiting.breakdown_s["dp_comm"] > beside.breakdown_s["dp_comm"]


def test_gathers_and_reductions_of_one_group_take_turns() -> None:
    def step_s(shares: bool) -> float:
        plan = Plan(dp=8, zero_stage=3, micro_batch_size=1, global_batch_size=8)
        return forecast(plan, "deepspeed", share_network=shares).step_time_s

    assert step_s(True) > step_s(False)


def test_context_parallel_ranks_share_the_update() -> None:
    def update_s(dp: int, cp: int) -> float:
        plan = Plan(dp=dp, cp=cp, zero_stage=1, micro_batch_size=1, global_batch_size=8)
        return forecast(plan, "megatron-core").breakdown_s["optimizer"]

    assert update_s(2, 2) == pytest.approx(update_s(4, 1))
    assert update_s(2, 2) < update_s(2, 1)


def test_slices_of_tensor_parallel_collectives_hide_behind_products() -> None:
    plan = Plan(tp=4, micro_batch_size=16, global_batch_size=64, sequence_parallel=True)
    sliced, whole = (forecast(plan, overlap_tp=on).breakdown_s["tp_comm"] for on in (True, False))
    assert whole / 4 < sliced < whole / 2  # the head's and the loss's own outlast what they hide behind


OSS = {
    "model_type": "gpt_oss",
    "architectures": ["GptOssForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 512,
    "intermediate_size": 512,
    "head_dim": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "sliding_window": 128,
    "num_local_experts": 16,
    "num_experts_per_tok": 4,
    "vocab_size": 512,
}


@pytest.mark.parametrize(("config", "biased"), [(OSS, True), (MOE, False)])
def test_biases_added_expert_by_expert_cost_where_experts_have_them(
    config: dict[str, Any], biased: bool
) -> None:
    plan = Plan(dp=8, ep=8, micro_batch_size=8, global_batch_size=64)

    def compute_s(expert_bias_bytes: float) -> float:
        framework = load_framework("megatron-core").model_copy(
            update={"expert_bias_bytes": expert_bias_bytes}
        )
        source = resolve_config(config, name="moe", seq_len=1024)
        forecaster = Forecaster(
            source=source, profile=load_profile("h100-sxm5-80gb"), framework=framework.model_copy()
        )
        return forecaster.forecast(plan).prediction.breakdown_s["compute"]

    assert (compute_s(1000.0) > 1.2 * compute_s(0.0)) is biased


def test_tokens_weighed_inside_the_experts_move_in_half_precision() -> None:
    """DeepSeek's own module weighs and sums routed tokens in fp32."""
    experts = {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "hidden_size": 4096,
        "intermediate_size": 1024,
        "moe_intermediate_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "n_group": 1,
        "topk_group": 1,
        "vocab_size": 512,
    }
    source = resolve_config(experts, name="moe", seq_len=1024)
    base = load_framework("megatron-bridge")

    def compute_s(routed_rows: str) -> float:
        forecaster = Forecaster(
            source=source,
            profile=load_profile("b200"),
            framework=base.model_copy(update={"routed_rows": routed_rows}),
        )
        plan = Plan(dp=8, ep=8, micro_batch_size=8, global_batch_size=64)
        return forecaster.forecast(plan).prediction.breakdown_s["compute"]

    assert compute_s("half") < 0.97 * compute_s("as_traced")


def test_the_host_of_a_newer_node_dispatches_sooner() -> None:
    """With kernels this small a step takes what the host takes."""
    framework = load_framework("megatron-core").model_copy(update={"step_overhead_s": 0.0})
    steps = []
    for name in ("a100-sxm4-80gb", "h100-sxm5-80gb"):
        forecaster = Forecaster(
            source=resolve("gpt2", seq_len=256, overrides=GPT),
            profile=load_profile(name),
            framework=framework,
        )
        plan = Plan(micro_batch_size=1, global_batch_size=4)
        steps.append(forecaster.forecast(plan).prediction.step_time_s)
    factors = [dispatch_factor(load_profile(name)) for name in ("a100-sxm4-80gb", "h100-sxm5-80gb")]
    assert factors[1] < factors[0] == 1.0
    assert steps[1] / steps[0] == pytest.approx(factors[1], rel=0.03)
