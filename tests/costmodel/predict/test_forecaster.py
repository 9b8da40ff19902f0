"""Forecasts hold what every plan must: sums, orders, memory formulas."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from costmodel.errors import PlanError, UsageError
from costmodel.framework import load_framework
from costmodel.graph import trace_module
from costmodel.hardware.schema import HostValue
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict import Forecaster
from planner import api

SIZES = {"n_layer": 6, "n_embd": 256, "n_head": 8, "vocab_size": 512, "n_positions": 64}


@lru_cache(maxsize=4)
def forecaster(hardware: str = "a100-sxm4-80gb", variant: str | None = None) -> Forecaster:
    return Forecaster(
        source=resolve("gpt2", overrides=SIZES, seq_len=64),
        profile=load_profile(hardware),
        framework=load_framework("pytorch"),
        network_variant=variant,
    )


def step_s(plan: str, variant: str | None = None) -> float:
    return forecaster("a100-sxm4-80gb", variant).forecast(Plan.parse(plan)).prediction.step_time_s


@pytest.mark.parametrize(
    "plan",
    [
        "mbs4",
        "dp4.mbs4",
        "dp4.zero1.mbs4",
        "dp4.zero3.mbs4",
        "tp4.mbs4",
        "pp3.gbs12.gpipe",
        "dp2.tp2.pp2.gbs8",
    ],
)
def test_breakdown_and_interval(plan: str) -> None:
    p = forecaster().forecast(Plan.parse(plan)).prediction
    assert sum(p.breakdown_s.values()) == pytest.approx(p.step_time_s, rel=1e-3)
    assert 0 < p.step_time_low_s < p.step_time_s < p.step_time_high_s
    assert p.fits


@pytest.mark.parametrize(("hardware", "framework"), [("gtx-1080-ti", "pytorch-amp"), ("t4", "pytorch-bf16")])
def test_mfu_divides_by_the_units_that_products_run_on(hardware: str, framework: str) -> None:
    """Types without fast units had the peak of units that the run does not use: MFU was up to 34."""
    made = Forecaster(
        source=resolve("gpt2", overrides=SIZES, seq_len=64),
        profile=load_profile(hardware),
        framework=load_framework(framework),
    )
    p = made.forecast(Plan(micro_batch_size=8)).prediction
    assert p.mfu == pytest.approx(
        made.model_flop(8) * p.samples_per_s / load_profile(hardware).device.peak_flop_per_s["fp32"]
    )
    assert 0.0 < p.mfu < 1.0


def test_mfu_counts_no_scores_that_fused_attention_computes_again() -> None:
    """Six products of attention are the model's (two forward, four backward); the seventh is hfu's alone."""
    made = forecaster()
    layers, width, seq = SIZES["n_layer"], SIZES["n_embd"], 64
    assert made.fused_again_flop() == pytest.approx(2.0 * layers * seq**2 * width)
    linear = 6.0 * seq * (layers * 12 * width**2 + width * SIZES["vocab_size"])
    assert made.model_flop() == pytest.approx(linear + 12.0 * layers * seq**2 * width, rel=1e-9)
    found = made.forecast(Plan.parse("mbs4")).prediction
    assert found.mfu is not None
    assert found.hfu is not None
    assert found.hfu / found.mfu == pytest.approx(1.0 + made.fused_again_flop() / made.model_flop())


def test_scores_computed_again_are_as_wide_as_keys() -> None:
    """Keys of 24 and values of 16: 2 s^2 x 24 of the backward's 2 s^2 (3 x 24 + 2 x 16)."""
    from torch import nn
    from torch.nn.functional import scaled_dot_product_attention

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.split = nn.Linear(8, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return scaled_dot_product_attention(*self.split(x).unsqueeze(1).split((24, 24, 16), -1))

    graph = trace_module(Attends(), (torch.randn(1, 10, 8),), attention="flash")
    assert graph.fused_again_flop == pytest.approx(2.0 * 10**2 * 24)


def test_recomputation_costs_time_and_saves_memory() -> None:
    plain, full = (forecaster().forecast(Plan.parse(f"mbs4{p}")).prediction for p in ("", ".full"))
    assert full.breakdown_s["recompute"] > 0
    assert full.step_time_s > plain.step_time_s
    assert full.memory[0].activations < plain.memory[0].activations


def test_every_other_block_runs_again() -> None:
    none, half, full = (
        forecaster().forecast(Plan.parse(f"mbs64{p}")).prediction for p in ("", ".full2", ".full")
    )
    assert half.breakdown_s["recompute"] == pytest.approx(full.breakdown_s["recompute"] / 2, rel=0.01)
    assert full.peak_memory_bytes < half.peak_memory_bytes < none.peak_memory_bytes
    mlp = forecaster().forecast(Plan.parse("mbs64.modules-mlp")).prediction
    assert 0 < mlp.breakdown_s["recompute"] < full.breakdown_s["recompute"]


def test_muon_multiplies_matrices_and_keeps_one_moment() -> None:
    source = resolve("gpt2", overrides=SIZES, seq_len=64)
    adam, muon = (
        Forecaster(
            source=source,
            profile=load_profile("a100-sxm4-80gb"),
            framework=load_framework("pytorch"),
            optimizer=name,
        )
        .forecast(Plan.parse("mbs4"))
        .prediction
        for name in ("adamw", "muon")
    )
    assert muon.breakdown_s["optimizer"] > adam.breakdown_s["optimizer"]
    assert muon.memory[0].optimizer == adam.memory[0].optimizer / 2


def test_slower_network_is_slower() -> None:
    names = load_profile("a100-sxm4-80gb").network.variants()
    slow = next(name for name in names if name.startswith("ethernet"))
    assert step_s("dp16.mbs1", variant=slow) > step_s("dp16.mbs1")


def test_compressed_gradients_and_a_slow_rank() -> None:
    def step_s(**others: float) -> float:
        return api.predict(
            "gpt2", hardware="v100-pcie-32gb", plan="dp8.mbs1", overrides=["n_layer=2"], **others
        ).prediction.step_time_s

    plain = step_s()
    assert step_s(compression=10.0) < plain
    assert plain < step_s(straggler=0.5) <= 2.0 * plain, "everyone waits for it"
    with pytest.raises(UsageError, match="at least 1"):
        step_s(compression=0.5)
    with pytest.raises(PlanError, match="must be above 0"):
        step_s(straggler=0.0)


def test_sharding_divides_model_state() -> None:
    whole = forecaster().forecast(Plan.parse("dp4.mbs4")).prediction.memory[0]
    third = forecaster().forecast(Plan.parse("dp4.zero3.mbs4")).prediction.memory[0]
    for part in ("parameters", "gradients", "optimizer"):
        assert getattr(third, part) == pytest.approx(getattr(whole, part) / 4, rel=0.01)


def test_pipeline_stages_are_contiguous_and_complete() -> None:
    one = forecaster().forecast(Plan.parse("mbs4")).prediction.stage_modules
    three = forecaster().forecast(Plan.parse("pp3.gbs12")).prediction.stage_modules
    assert [m for stage in three for m in stage] == [m for stage in one for m in stage]


def test_sizes_that_do_not_divide() -> None:
    with pytest.raises(PlanError, match="pp"):
        forecaster().forecast(Plan.parse("pp30.gbs30"))
    with pytest.raises(PlanError, match=r"tp\(7\)"):
        forecaster().forecast(Plan.parse("tp7"))


def test_taking_weight_gradients_apart_costs_by_what_they_are_made_of() -> None:
    """Only schedules that take them apart pay, twice for twice the cost of a byte."""

    def step_s(plan: str, per_byte_s: float) -> float:
        profile = load_profile("a100-sxm4-80gb")
        cost = HostValue(value_s=per_byte_s, source="test")
        made = Forecaster(
            source=resolve("gpt2", overrides={"n_layer": 4, "n_embd": 256, "n_head": 4}, seq_len=128),
            profile=profile.model_copy(update={"host": {**profile.host, "split_s_per_byte": cost}}),
            framework=load_framework("pytorch"),
        )
        return made.forecast(Plan.parse(plan)).prediction.step_time_s

    for plan, pays in (("pp4.mbs1.gbs32", False), ("pp4.mbs1.gbs32.zb", True)):
        none_s, one_s, two_s = (step_s(plan, x * 1e-8) for x in (0, 1, 2))
        assert (one_s > none_s) == pays
        assert two_s - one_s == pytest.approx(one_s - none_s, rel=0.2)


@pytest.mark.parametrize("plan", ["dp4.mbs1.gbs16", "dp4.zero3.mbs4"])
def test_other_hardware_prices_anew_what_was_priced_before(plan: str) -> None:
    made, hardware = forecaster(), "h100-sxm5-80gb"
    before_s = made.forecast(Plan.parse(plan)).prediction.step_time_s
    moved_s = made.on(profile=load_profile(hardware)).forecast(Plan.parse(plan)).prediction.step_time_s
    assert moved_s == forecaster(hardware).forecast(Plan.parse(plan)).prediction.step_time_s
    assert moved_s != before_s


def test_the_power_limit_holds_in_training_alone() -> None:
    """A board that sustains a tenth of its measured rate trains slower; a lone forward is as measured."""
    profile = load_profile("h100-sxm5-80gb")
    times = {}
    for rate in (1e13, 1e20):
        device = profile.device.model_copy(update={"long_run_flop_per_s": {"bf16": rate}})
        for training in (True, False):
            made = Forecaster(
                source=resolve("gpt2", overrides=SIZES | {"n_embd": 1024}, seq_len=64),
                profile=profile.model_copy(update={"device": device}),
                framework=load_framework("pytorch-bf16"),
                training=training,
            )
            parts = made.segments(Plan.parse("mbs4"))
            times[rate, training] = sum(sum(s.device_s.values()) for s in parts)
    assert times[1e13, True] > 1.5 * times[1e20, True]
    assert times[1e13, False] == times[1e20, False]
