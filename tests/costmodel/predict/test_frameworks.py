"""What a framework does apart from the machine: stages, transfers, host time, kernels and their types."""

from __future__ import annotations

from typing import Any

import pytest

from costmodel.framework import framework_names, load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict import Forecaster, Prediction

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


@pytest.mark.parametrize("name", framework_names())
def test_every_shipped_framework_forecasts_and_says_where_its_figures_come_from(name: str) -> None:
    framework = load_framework(name)
    assert framework.source
    fitted = ("host_operator_s", "host_collective_s", "step_overhead_s", "memory_bound_efficiency")
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
    assert host_s(512, 1e-5) == pytest.approx(0.0, abs=1e-9)


def test_slower_memory_bound_kernels_take_longer_and_products_do_not() -> None:
    plan = Plan(micro_batch_size=64, global_batch_size=64)
    quick, slow = (forecast(plan, memory_bound_efficiency=e).breakdown_s["compute"] for e in (1.0, 0.5))
    assert quick < slow < 2 * quick


def test_tf32_products_are_faster_than_fp32_and_slower_than_half() -> None:
    plan = Plan(micro_batch_size=64, global_batch_size=64)
    fp32 = forecast(plan, compute_dtype="fp32").breakdown_s["compute"]
    tf32 = forecast(plan, compute_dtype="fp32", fp32_products="tf32").breakdown_s["compute"]
    half = forecast(plan, compute_dtype="bf16").breakdown_s["compute"]
    assert half < tf32 < fp32


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
