"""Fits for devices without samples: nearest donor, power limit, wider interval."""

from __future__ import annotations

import pytest

from costmodel.hardware.pricing import choose_fit, operator_times
from costmodel.hardware.schema import Correction
from costmodel.hardware.transfer import (
    as_fast_as_its_own_streams,
    borrowed_fits,
    device_distance,
    sustained_fraction,
    transfer_fit,
)
from tests.costmodel.hardware.devices import device, plain_fit, profile

BIG = {"m": [8192.0], "n": [8192.0], "k": [8192.0]}


def test_nearest_is_of_the_same_generation() -> None:
    names = ["V100-PCIe-32GB", "T4", "A100-SXM4-80GB", "H100-SXM5-80GB", "L40S", "B200"]

    def nearest(target: str) -> str:
        return min(names, key=lambda n: device_distance(device(n), device(target)))

    assert nearest("H200-SXM") == "H100-SXM5-80GB"
    assert nearest("GB200") == "B200"
    assert nearest("L4") == "L40S"
    assert nearest("RTX-2080-Ti") == "T4"
    assert device_distance(device("MI210"), device("T4")) > 10


def test_power_limits_what_a_low_power_board_sustains() -> None:
    burst = 0.87
    share = sustained_fraction(device("A100-PCIe-40GB"), device("L4"), "fp32", burst, 0.97)
    sustained = share * burst * device("L4").peak_flop_per_s["fp32"]
    assert 5.5e12 < sustained < 8.4e12  # what its long fp32 GEMM are known to run at
    same = sustained_fraction(device("H100-SXM5-80GB"), device("H200-SXM"), "bf16", 0.75, 0.9)
    assert same == pytest.approx(0.9)
    # a throttled donor does not throttle a board with power to spend
    assert sustained_fraction(device("T4"), device("V100-PCIe-32GB"), "fp32", 0.9, 0.43) > 0.8


def test_a_board_with_power_to_spend_stays_below_its_peak() -> None:
    donor, fit = "A100-PCIe-40GB", plain_fit(
        dtype="fp32",
        timing="event_eager",
        on="A100-PCIe-40GB",
        compute_efficiency=1.0,
        tile_128x256=1.02,
        sustained_fraction=0.8,
        burst_s=2e-4,
    )  # fmt: skip
    target = device("GB300")  # nobody's rate in fp32 is known for it
    moved = transfer_fit(fit, device(donor), target)
    time_s = operator_times(profile(moved, on="GB300"), "gemm", "nt", "fp32", BIG).median_s[0]
    assert 0.85 < 2.0 * 8192.0**3 / time_s / target.peak_flop_per_s["fp32"] < 0.96


def test_memory_bound_gemm_gains_from_the_faster_memory() -> None:
    h100, h200 = device("H100-SXM5-80GB"), device("H200-SXM")
    fit = plain_fit(on="H100-SXM5-80GB")
    moved = transfer_fit(fit, h100, h200)
    thin = {"m": [1.0], "n": [65536.0], "k": [16384.0]}
    before = operator_times(profile(fit, on="H100-SXM5-80GB"), "gemm", "nt", "bf16", thin)
    after = operator_times(profile(moved, on="H200-SXM"), "gemm", "nt", "bf16", thin)
    assert before.median_s[0] / after.median_s[0] == pytest.approx(4800 / 3350, rel=0.02)
    assert after.log_sigma[0] > before.log_sigma[0]
    assert moved.transferred_from == "H100-SXM5-80GB"


def test_correction_stays_within_the_architecture() -> None:
    fit = plain_fit(on="H100-SXM5-80GB").model_copy(
        update={
            "correction": Correction(
                length=(1.0,) * 14,
                centres=((0.0,) * 14,),
                weights=(0.1,),
                sigmas=(0.05,),
                far_sigma=0.2,
                limit=1.0,
            )
        }
    )
    h100 = device("H100-SXM5-80GB")
    assert transfer_fit(fit, h100, device("H200-SXM")).correction == fit.correction
    far = transfer_fit(fit, h100, device("RTX-3090"))
    assert far.correction is None
    assert far.extra_log_sigma > transfer_fit(fit, h100, device("H200-SXM")).extra_log_sigma


def test_a_device_known_from_whole_runs_is_as_much_faster_in_the_types_they_ran_in() -> None:
    b200 = device("B200")
    quicker = b200.model_copy(update={"name": "quicker", "sustained_speed": {"bf16": 1.25}})
    for dtype, speed in (("bf16", 1.25), ("nvfp4", 1.0)):
        fit = plain_fit(dtype=dtype, on="B200", compute_efficiency=0.4)
        moved = transfer_fit(fit, b200, quicker)
        times = [
            operator_times(profile(f, on="B200"), "gemm", "nt", dtype, BIG).median_s[0] for f in (fit, moved)
        ]
        assert times[0] / times[1] == pytest.approx(speed, rel=0.03)


def test_every_missing_kind_comes_from_one_donor_once() -> None:
    donors = [
        profile(plain_fit(dtype="bf16"), plain_fit(dtype="fp8"), on="H100-SXM5-80GB"),
        profile(plain_fit(dtype="bf16"), plain_fit("bmm", "nn", "fp32"), on="A100-SXM4-80GB"),
    ]
    own = plain_fit(dtype="bf16")
    fits = borrowed_fits(device("H200-SXM"), [own], donors)
    assert {(f.kind, f.dtype, f.donor) for f in fits} == {
        ("gemm", "fp8", "H100-SXM5-80GB"),
        ("bmm", "fp32", "A100-SXM4-80GB"),
    }
    no_units = borrowed_fits(device("V100-SXM2-32GB"), [], donors)
    assert {f.dtype for f in no_units} == {"fp32"}  # Volta has neither bf16 nor fp8


def test_a_donor_that_was_timed_comes_before_a_nearer_one_with_efficiencies() -> None:
    near, timed = "A100-PCIe-80GB", "A100-PCIe-40GB"
    donors = [
        profile(plain_fit(dtype="bf16", timing="derived_from_efficiency", on=near), on=near),
        profile(plain_fit(dtype="bf16", on=timed), on=timed),
    ]
    target = device("A100-SXM4-40GB")
    assert {f.donor for f in borrowed_fits(target, [], donors)} == {timed}
    assert {f.donor for f in borrowed_fits(target, [], donors[:1])} == {near}
    other = profile(plain_fit(dtype="bf16", on="H100-SXM5-80GB"), on="H100-SXM5-80GB")
    assert {f.donor for f in borrowed_fits(target, [], [other, donors[0]])} == {near}


def test_boards_of_like_power_are_nearer() -> None:
    sxm, pcie = device("A100-SXM4-80GB"), device("A100-PCIe-80GB")
    target = device("A100-SXM4-40GB")
    assert device_distance(sxm, target) < device_distance(pcie, target)


def test_a_layout_that_was_not_timed_is_a_like_devices_other_layout() -> None:
    """And the backward pass of attention that of the like device's forward pass, not of another's."""
    h100, b200, target = device("H100-SXM5-80GB"), device("B200"), device("H200-SXM")
    for kind, timed, asked in (("gemm", "nt", "nn"), ("attention", "prefill", "bwd")):
        like = transfer_fit(plain_fit(kind, timed, "bf16", on="H100-SXM5-80GB"), h100, target)
        unlike = transfer_fit(plain_fit(kind, asked, "bf16", on="B200"), b200, target)
        chosen = choose_fit(profile(unlike, like, on="H200-SXM"), kind, asked, "bf16")
        assert chosen is not None
        assert chosen.transferred_from == "H100-SXM5-80GB"


def test_l4_runs_long_fp32_at_its_power_limit() -> None:
    fit = plain_fit(dtype="fp32", on="A100-PCIe-40GB", compute_efficiency=0.87)
    moved = transfer_fit(fit, device("A100-PCIe-40GB"), device("L4"))
    time_s = operator_times(profile(moved, on="L4"), "gemm", "nt", "fp32", BIG).median_s[0]
    assert 4e12 < 2 * 8192**3 / time_s < 8.4e12


def test_one_name_of_an_architecture_may_hold_unlike_chips() -> None:
    def extra(source: str, target: str) -> float:
        return transfer_fit(plain_fit(on=source), device(source), device(target)).extra_log_sigma

    assert extra("H100-SXM5-80GB", "H200-SXM") == extra("B200", "GB200")
    assert extra("RTX-PRO-6000-Server", "B200") == extra("H100-SXM5-80GB", "B200")
    assert extra("H100-SXM5-80GB", "H200-SXM") < extra("H100-SXM5-80GB", "B200")


def test_borrowed_traffic_reaches_what_the_devices_own_does() -> None:
    here, there = "B200", "H100-SXM5-80GB"
    add = plain_fit("elementwise", "add", "fp16", on=there, memory_efficiency=0.8)
    donor = profile(
        add, plain_fit("quantise", "static", "bf16->fp8", on=there, memory_efficiency=0.9), on=there
    )
    borrowed = transfer_fit(add, device(there), device(here))
    own = plain_fit("quantise", "static", "bf16->fp8", on=here, memory_efficiency=0.6)
    product = transfer_fit(plain_fit(on=there), device(there), device(here))
    fits, donors = (own, borrowed, product), {there: donor}
    moved = as_fast_as_its_own_streams(borrowed, fits, donors)
    assert moved.parameters["memory_efficiency"] == pytest.approx(0.8 * 0.6 / 0.9, rel=1e-4)
    assert as_fast_as_its_own_streams(own, fits, donors) == own
    assert as_fast_as_its_own_streams(product, fits, donors) == product
    assert as_fast_as_its_own_streams(borrowed, (borrowed,), donors) == borrowed


def test_a_like_devices_traffic_is_taken_as_it_is() -> None:
    here, there = "H200-SXM", "H100-SXM5-80GB"
    quantise = plain_fit("quantise", "static", "bf16->fp8", on=there, memory_efficiency=0.9)
    add = plain_fit("elementwise", "add", "fp16", on=there)
    borrowed = transfer_fit(add, device(there), device(here))
    own = plain_fit("quantise", "static", "bf16->fp8", on=here, memory_efficiency=0.5)
    donors = {there: profile(add, quantise, on=there)}
    assert as_fast_as_its_own_streams(borrowed, (own, borrowed), donors) == borrowed


def test_what_tiles_leave_goes_to_boards_of_one_balance() -> None:
    left = Correction(
        length=(1.0,), centres=((0.0,),), weights=(0.1,), sigmas=(0.1,), far_sigma=0.1, limit=1.0
    )
    for kind, target, kept in (
        ("gemm", "RTX-6000-Ada", True),
        ("gemm", "RTX-4090", False),
        ("elementwise", "RTX-4090", True),
    ):
        fit = plain_fit(kind=kind, variant="nt" if kind == "gemm" else "add", on="L40S")
        moved = transfer_fit(fit.model_copy(update={"correction": left}), device("L40S"), device(target))
        assert (moved.correction is not None) == kept
