"""Costs by operator and module add up to the forecast they come from."""

from __future__ import annotations

import pytest

from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict import Forecaster
from costmodel.predict.module_costs import forward_calls, operator_costs

SIZES = {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 256, "n_positions": 32}


def forecaster(hardware: str) -> Forecaster:
    return Forecaster(
        source=resolve("gpt2", overrides=SIZES, seq_len=32),
        profile=load_profile(hardware),
        framework=load_framework("pytorch"),
    )


@pytest.fixture(scope="module")
def cpu() -> Forecaster:
    return forecaster("epyc-9005-core")


@pytest.fixture(scope="module")
def gpu() -> Forecaster:
    return forecaster("a100-sxm4-80gb")


@pytest.mark.parametrize("text", ["mbs2", "mbs2.full", "mbs2.full2", "mbs1.gbs4.modules-mlp"])
@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
def test_kernels_add_up_to_computation_and_recomputation(
    hardware: str, text: str, request: pytest.FixtureRequest
) -> None:
    made: Forecaster = request.getfixturevalue(hardware)
    plan = Plan.parse(text)
    parts = made.forecast(plan).prediction.breakdown_s
    costs = operator_costs(made, plan)
    for name, again in (("compute", False), ("recompute", True)):
        total = sum(c.device_s for c in costs if (c.phase == "recompute") == again)
        assert total * plan.num_microbatches == pytest.approx(parts[name], rel=1e-6, abs=1e-12)


def test_a_pipelines_ranks_share_them(gpu: Forecaster) -> None:
    plan = Plan.parse("pp2.mbs2.gbs8")
    forecast = gpu.forecast(plan)
    costs = operator_costs(gpu, plan, bubble_fraction=forecast.step.bubble_fraction)
    total = sum(c.device_s for c in costs) * plan.num_microbatches / plan.pp
    assert total == pytest.approx(forecast.prediction.breakdown_s["compute"], rel=1e-6)


def test_every_block_has_its_own_modules(cpu: Forecaster) -> None:
    costs = operator_costs(cpu, Plan.parse("mbs2"))
    module = cpu.source.build(device="meta").module
    assert {c.module for c in costs} <= {path for path, _ in module.named_modules()}
    blocks = [
        [(c.module.replace(f".h.{i}", ".h"), c.target, c.phase) for c in costs if f".h.{i}" in c.module]
        for i in range(SIZES["n_layer"])
    ]
    assert blocks[0]
    assert all(block == blocks[0] for block in blocks)
    assert {c.target for c in costs} >= {"aten::addmm", "aten::mm", "aten::native_layer_norm"}


def test_forward_calls_come_unit_by_unit(cpu: Forecaster) -> None:
    units = list(forward_calls(cpu, Plan.parse("mbs2")))
    assert len(units) == cpu.n_units()
    order = [module for unit in units for _, module in unit if module]
    blocks = [int(m.split(".")[2]) for m in order if m.startswith("transformer.h.")]
    assert blocks == sorted(blocks)
    assert set(blocks) == set(range(SIZES["n_layer"]))
