"""Offload against the papers: what moves, what waits for what, what stays on the device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from costmodel.errors import PlanError
from costmodel.hardware.host_machine import host_names, load_host
from costmodel.plan import Plan
from costmodel.predict import Forecaster, Prediction
from costmodel.stage_costs import CostParts, StageCosts, UnitCosts
from costmodel.step import Offload, simulate_step
from planner import api

LAYERS = ["n_layer=4", "n_embd=1024", "n_head=16"]


@pytest.fixture(scope="module")
def gpt() -> Forecaster:
    return api.forecaster("gpt2", hardware="v100-sxm2-32gb", framework="megatron", overrides=LAYERS)


def predict(gpt: Forecaster, plan: str) -> Prediction:
    return gpt.forecast(Plan.parse(plan)).prediction


def stages(n: int, *, units: int = 4, optimizer_s: float = 0.4) -> list[StageCosts]:
    """Stages of 1 s forward, 2 s backward a micro-batch; every unit has 100 bytes of parameters."""
    part = lambda s: CostParts(parts_s={"compute": s / units})  # noqa: E731
    unit = UnitCosts(
        name="unit",
        forward=part(1.0),
        backward_input=part(1.0),
        backward_weight=part(1.0),
        parameter_bytes=100,
        saved_bytes=1,
    )
    return [
        StageCosts(
            index=i, units=(unit,) * units, send_bytes=0, send_s=0.0, optimizer_s=optimizer_s, state_bytes=800
        )
        for i in range(n)
    ]


def test_zero_offload_is_the_maximum_of_what_overlaps() -> None:
    """arXiv 2101.06840, section 4: gradients leave beside the backward; then the host's update, whose results
    come back as they are made. With a slow host the step is forward + backward + update + the last copy."""
    offload = Offload(h2d_bytes_per_s=1000.0, d2h_bytes_per_s=1000.0, host_update_bytes_per_s=50.0)
    step = simulate_step(stages(1), offload=offload)
    # the last gradient arrives 0.1 s after the backward; 400 bytes at 50 bytes/s; the last unit returns 0.1 s
    assert step.step_time_s == pytest.approx(3.0 + 0.1 + 8.0 + 0.1)
    copies = Offload(h2d_bytes_per_s=10.0, d2h_bytes_per_s=1000.0, host_update_bytes_per_s=1e9)
    assert simulate_step(stages(1), offload=copies).step_time_s == pytest.approx(3.0 + 0.1 + 40.0)


def test_a_delayed_update_runs_beside_the_step() -> None:
    """Section 5.2 there: the host works on the gradients of the step before."""
    offload = Offload(
        h2d_bytes_per_s=1000.0, d2h_bytes_per_s=1000.0, host_update_bytes_per_s=200.0, delayed_update=True
    )
    assert simulate_step(stages(1), offload=offload).step_time_s == pytest.approx(3.0 + 0.1)


def test_fine_grained_updates_hide_behind_the_backward() -> None:
    """Unit by unit, the update hides min(update, backward); only the last unit's is left."""
    rates = {"h2d_bytes_per_s": 1e9, "d2h_bytes_per_s": 1e9, "host_update_bytes_per_s": 400.0}
    late = simulate_step(stages(1), offload=Offload(**rates)).step_time_s
    eager = simulate_step(stages(1), offload=Offload(**rates, eager_update=True)).step_time_s
    assert late == pytest.approx(3.0 + 1.0, rel=1e-6)
    assert eager == pytest.approx(3.0 + 0.25, rel=1e-6)


def test_streamed_units_wait_for_the_slower_of_compute_and_transfer() -> None:
    rates = {"d2h_bytes_per_s": 1e9, "host_update_bytes_per_s": 1e12, "stream_weights": True}
    fast = simulate_step(stages(1), offload=Offload(h2d_bytes_per_s=1e9, **rates)).step_time_s
    slow = simulate_step(stages(1), offload=Offload(h2d_bytes_per_s=10.0, **rates)).step_time_s
    assert fast == pytest.approx(3.0, rel=1e-3)
    assert slow > 2 * 400 / 10.0, "weights come in for forward and for backward"


def test_cotrain_splits_the_update_better_than_any_fixed_share() -> None:
    """ICPP 2023: the balanced split is optimal against a sweep of shares."""
    from costmodel.strategies.offload import split_update

    def with_share(share: float) -> object:
        offload = Offload(
            h2d_bytes_per_s=1e6, d2h_bytes_per_s=1e6, host_update_bytes_per_s=100.0, device_fraction=share
        )
        return simulate_step(stages(1, optimizer_s=6.0), offload=offload)

    best = split_update(with_share)  # type: ignore[arg-type]
    sweep = [with_share(k / 50).step_time_s for k in range(51)]  # type: ignore[attr-defined]
    assert best.step_time_s <= min(sweep) * 1.002
    # device 6 s x share, host 4 s x (1 - share): both end after 2.4 s
    assert best.offload is not None
    assert best.offload.device_fraction == pytest.approx(0.4, abs=0.01)
    assert best.step_time_s == pytest.approx(3.0 + 2.4, rel=0.01)


def test_device_memory_is_two_bytes_a_parameter_and_activations(gpt: Forecaster) -> None:
    """ZeRO-Offload keeps fp16 parameters and nothing else of the model's state (section 4.1)."""
    plain, offloaded = predict(gpt, "dp1").memory[0], predict(gpt, "dp1.zero-offload").memory[0]
    n = gpt.graph(1).n_parameters
    assert offloaded.parameters == 2 * n
    assert offloaded.optimizer == 0
    assert offloaded.gradients < plain.gradients
    assert offloaded.activations == pytest.approx(plain.activations, rel=0.05)
    streamed = predict(gpt, "dp1.zero-infinity").memory[0]
    assert streamed.parameters < offloaded.parameters


def test_what_the_host_updates_leaves_no_temporary_on_the_device() -> None:
    made = api.forecaster(
        "gpt2", hardware="v100-sxm2-32gb", framework="pytorch-bf16", overrides=LAYERS, seq_len=64
    )
    plain, host = predict(made, "dp1").memory[0], predict(made, "dp1.zero-offload").memory[0]
    n = made.graph(1).n_parameters
    assert plain.temporary >= 3.9 * n  # the fused list update's square roots
    assert host.temporary < n
    assert host.activations > 0  # so that the peak is that of a backward


def test_offload_order_in_a_plan(gpt: Forecaster) -> None:
    times = {
        word: predict(gpt, f"dp1.{word}" if word else "dp1").step_time_s
        for word in (
            "",
            "zero-offload",
            "zero-offload-delayed",
            "zero-infinity",
            "zero-infinity-nvme",
            "cotrain",
        )
    }
    assert times["zero-offload-delayed"] <= times["zero-offload"] <= times["zero-infinity"]
    assert times["zero-infinity"] <= times["zero-infinity-nvme"]
    assert times["cotrain"] <= min(times["zero-offload"], times[""] * 1.001)
    fine = predict(gpt, "pp2.mbs1.gbs4.cpu-update").step_time_s
    assert fine <= predict(gpt, "pp2.mbs1.gbs4.zero-offload").step_time_s


@pytest.mark.parametrize("word", ["zero-offload", "zero-infinity", "cotrain", "cpu-update"])
def test_breakdown_adds_up(gpt: Forecaster, word: str) -> None:
    prediction = predict(gpt, f"dp2.zero2.{word}")
    assert sum(prediction.breakdown_s.values()) == pytest.approx(prediction.step_time_s, rel=1e-3)


def test_harmony_swaps_and_recomputes(gpt: Forecaster) -> None:
    plain, swapped = predict(gpt, "pp2.mbs1.gbs4"), predict(gpt, "pp2.vpp2.mbs1.gbs4.harmony")
    assert swapped.step_time_s > plain.step_time_s
    assert swapped.breakdown_s["recompute"] > 0
    assert max(m.peak_memory_bytes for m in swapped.memory) < max(m.peak_memory_bytes for m in plain.memory)
    assert str(swapped.plan).endswith("harmony")


def test_what_cannot_be_offloaded_says_why(gpt: Forecaster) -> None:
    with pytest.raises(PlanError, match="exclude each other"):
        predict(gpt, "dp1.zero-offload.cotrain")
    with pytest.raises(PlanError, match="moves stages itself"):
        predict(gpt, "pp2.mbs1.gbs4.harmony.zero-offload")
    with pytest.raises(PlanError, match="not for training"):
        predict(gpt, "dp1.zero-offload.zero-inference")
    with pytest.raises(PlanError, match="unknown token 'ps-4'"):
        Plan.parse("dp4.ps-4")
    cpu = api.forecaster("mlp-mnist", hardware="epyc-core")
    with pytest.raises(PlanError, match="no link between host and device"):
        predict(cpu, "dp1.zero-offload")


def test_hosts_by_name_and_file(tmp_path: Path) -> None:
    assert "workstation" in host_names()
    file = tmp_path / "host.json"
    file.write_text(json.dumps(load_host("workstation").model_dump()))
    assert load_host(str(file)) == load_host("workstation")
    slow = api.predict(
        "gpt2", hardware="v100-sxm2-32gb", plan="dp1.zero-offload", overrides=LAYERS, host="workstation"
    )
    fast = api.predict(
        "gpt2", hardware="v100-sxm2-32gb", plan="dp1.zero-offload", overrides=LAYERS, host="server-ddr5"
    )
    assert slow.prediction.step_time_s > fast.prediction.step_time_s


def test_what_is_offloaded_must_fit_the_host(gpt: Forecaster, tmp_path: Path) -> None:
    roomy = predict(gpt, "dp1.zero-infinity")
    assert roomy.fits
    n = gpt.graph(1).n_parameters
    about = n * (2 + 2 + 12)  # parameters, gradients and optimizer state all leave the device
    for factor, fits in ((1.2, True), (0.8, False)):
        host = load_host("workstation").model_copy(update={"memory_bytes": about * factor})
        (tmp_path / "host.json").write_text(host.model_dump_json())
        made = api.forecaster(
            "gpt2",
            hardware="v100-sxm2-32gb",
            framework="megatron",
            overrides=LAYERS,
            host=str(tmp_path / "host.json"),
        )
        found = predict(made, "dp1.zero-infinity")
        assert found.fits == fits
        assert any("DOES NOT FIT the host" in w for w in found.warnings) != fits
        # drives take the optimizer's state, and without offload nothing is there
        assert predict(made, "dp1.zero-infinity-nvme").fits
        assert predict(made, "dp1").fits


def test_replicas_that_each_offload_everything_are_noted(gpt: Forecaster) -> None:
    said = {
        plan: any("updates all parameters" in w for w in predict(gpt, plan).warnings)
        for plan in ("dp2.zero-offload", "dp2.zero2.zero-offload", "dp1.zero-offload", "dp2")
    }
    assert said == {
        "dp2.zero-offload": True,
        "dp2.zero2.zero-offload": False,
        "dp1.zero-offload": False,
        "dp2": False,
    }
