"""Optimizers' updates and state, and steps that have none."""

from __future__ import annotations

import pytest

from costmodel.errors import UsageError
from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict import Forecaster
from costmodel.predict.optimizer_costs import (
    OPTIMIZERS,
    optimizer_s,
    optimizer_variant,
    state_bytes_per_parameter,
    update_bytes,
)
from costmodel.predict.prediction import Prediction
from costmodel.predict.units import accumulate_s, expand


def predicted(optimizer: str, plan: str = "dp1.mbs2", **framework: float) -> tuple[Prediction, Forecaster]:
    forecaster = Forecaster(
        source=resolve("gpt2", overrides={"n_layer": 2}),
        profile=load_profile("v100-pcie-32gb"),
        framework=load_framework("pytorch").model_copy(update=framework),
        optimizer=optimizer,
    )
    return forecaster.forecast(Plan.parse(plan)).prediction, forecaster


def test_without_an_optimizer_nothing_is_updated_or_kept() -> None:
    profile, framework = load_profile("v100-pcie-32gb"), load_framework("megatron")
    assert optimizer_s([10**6], "none", profile) == (0.0, 0.0)
    assert update_bytes([10**6], "none", looped=False) == 0
    assert state_bytes_per_parameter("none", framework) == 0.0
    for name in set(OPTIMIZERS) - {"none"}:
        assert optimizer_s([10**6], name, profile)[0] > 0.0, name
    with pytest.raises(UsageError, match=r"unknown optimizer 'nothing'; there are: .*none"):
        optimizer_variant("nothing")


def test_a_step_without_an_optimizer_adds_its_gradients_to_the_last_ones() -> None:
    (sgd, _), (none, forecaster) = predicted("sgd"), predicted("none")
    elements = sum(sum(unit.elements) for unit in expand(forecaster, sgd.plan))
    assert none.breakdown_s["optimizer"] == 0.0 < sgd.breakdown_s["optimizer"]
    added_s = none.breakdown_s["compute"] - sgd.breakdown_s["compute"]
    assert added_s == pytest.approx(accumulate_s(forecaster, elements), rel=0.05)
    assert [m.optimizer for m in none.memory] == [0]
    # they lie there during the forward, so that activations take no place of theirs
    assert none.memory[0].peak_memory_bytes > sgd.memory[0].peak_memory_bytes


def test_every_micro_batch_adds_without_an_optimizer_all_but_the_first_with_one() -> None:
    plan = "dp1.mbs2.gbs6"
    (sgd, _), (none, forecaster) = predicted("sgd", plan), predicted("none", plan)
    once_s = sum(accumulate_s(forecaster, sum(u.elements)) for u in expand(forecaster, sgd.plan))
    assert none.breakdown_s["compute"] - sgd.breakdown_s["compute"] == pytest.approx(once_s, rel=0.01)


def test_an_update_written_out_is_left_out_too() -> None:
    written, _ = predicted("none", update_kernels=15, update_passes=35, update_kernel_s=1e-5)
    assert written.breakdown_s["optimizer"] == 0.0


def test_a_forward_from_an_emptied_pool_is_no_faster_than_its_allocations() -> None:
    plain, _ = predicted("none")
    slow, _ = predicted("none", segment_s=1.0)
    assert plain.breakdown_s["host"] == 0.0
    assert slow.breakdown_s["host"] > 10.0
    hidden, _ = predicted("none", segment_s=1e-9)
    assert hidden.step_time_s == plain.step_time_s


def test_a_gpus_update_takes_a_kernel_for_each_step_unless_it_is_fused() -> None:
    profile = load_profile("a100-sxm4-80gb")
    fused_s, _ = optimizer_s([10**9], "adamw", profile)
    foreach_s, _ = optimizer_s([10**9], "adamw", profile, fused=False)
    assert foreach_s / fused_s == pytest.approx(20 / 7, rel=0.01)  # both wait for memory
    adam_s, _ = optimizer_s([10**9], "adam", profile, fused=False)
    assert fused_s < adam_s < foreach_s  # no decay of the parameters
    sgd = [optimizer_s([10**9], "sgd", profile, fused=fused)[0] for fused in (True, False)]
    assert sgd[0] == sgd[1]


def test_a_measured_update_is_taken_as_it_is() -> None:
    """The calibration times torch's own update, whichever it chooses."""
    for name in ("epyc-9005-core", "core-i7-13700"):
        profile = load_profile(name)
        assert optimizer_s([10**6], "adamw", profile) == optimizer_s([10**6], "adamw", profile, fused=False)


def test_a_framework_says_how_it_updates() -> None:
    fused, _ = predicted("adamw", fused_optimizer=True)
    foreach, _ = predicted("adamw", fused_optimizer=False)
    assert foreach.breakdown_s["optimizer"] > 2.0 * fused.breakdown_s["optimizer"]
    for name in ("megatron", "torchtitan", "deepspeed", "static-graph"):
        assert load_framework(name).fused_optimizer, name
    assert not load_framework("pytorch").fused_optimizer
