"""Convolutions on matrix units: at the rate of products where nobody measured any, else as measured."""

import numpy as np
import pytest

from costmodel.hardware.attained import attained_share
from costmodel.hardware.matrix_units import as_products, products_variant
from costmodel.hardware.pricing import choose_fit, operator_times
from costmodel.hardware.store import load_profile

LARGE = {
    "batch": 256, "c_in": 512, "c_out": 512, "h": 28, "w": 28, "kh": 3, "kw": 3, "stride": 1, "padding": 1,
    "groups": 1, "transposed": 0,
}  # fmt: skip
FLOP = 2.0 * 256 * 28 * 28 * 512 * 512 * 9


def rate(name: str, dtype: str, **changes: int) -> float:
    time = operator_times(load_profile(name), "conv", "fwd", dtype, {**LARGE, **changes})
    return FLOP / float(time.median_s[0])


@pytest.mark.parametrize("name", ["rtx-3090", "rtx-4090"])
def test_large_convolutions_reach_what_large_products_do(name: str) -> None:
    board = load_profile(name).device
    share = attained_share(board, "fp16")
    assert share is not None
    reached = rate(name, "fp16") / board.peak_flop_per_s["fp16"]
    # on these boards operands are gathered twice as fast as they are used, beside the products
    assert 0.9 * share.best < reached <= share.best


def test_a_copy_engine_gathers_faster_than_instructions() -> None:
    """From Hopper on: products are twice as fast as A100's on a multiprocessor, gathering four times."""
    slowed = {}
    for name in ("a100-sxm4-80gb", "h100-sxm5-80gb"):
        device, fit = load_profile(name).device, choose_fit(load_profile(name), "conv", "fwd", "bf16")
        assert fit is not None
        slowed[name] = fit.parameters["gathered_bytes_per_clock"]
        used = device.peak_flop_per_s["bf16"] / (device.multiprocessors * device.boost_hz)
        slowed[name] /= used
    assert slowed["h100-sxm5-80gb"] > 1.5 * slowed["a100-sxm4-80gb"]


@pytest.mark.parametrize("variant", ["fwd", "dgrad", "wgrad"])
def test_rates_are_those_of_products_of_the_type(variant: str) -> None:
    profile = load_profile("a100-sxm4-80gb")
    fit = choose_fit(profile, "conv", variant, "bf16")
    like = {"fwd": "nt", "dgrad": "nn", "wgrad": "tn"}[variant]
    products = choose_fit(profile, "gemm", like, "bf16")
    assert fit is not None
    assert products is not None
    assert fit.parameters["memory_efficiency"] == products.parameters["memory_efficiency"]
    assert fit.timing == products.timing


def test_what_runs_on_other_units_stays_as_measured() -> None:
    profile = load_profile("a100-sxm4-80gb")
    fit = choose_fit(profile, "conv", "fwd", "fp32")
    assert fit is not None
    assert products_variant(fit, "fp32", profile.device) is None
    half = fit.model_copy(update={"dtype": "fp16"})
    assert products_variant(half, "fp32", profile.device) == "nt"
    assert products_variant(half, "fp16", profile.device) is None
    assert products_variant(half.model_copy(update={"kind": "gemm"}), "fp32", profile.device) is None
    assert products_variant(half, "fp32", load_profile("xeon-8168-x2").device) is None


def test_no_spread_is_lost() -> None:
    profile = load_profile("a100-sxm4-80gb")
    fit, products = choose_fit(profile, "conv", "fwd", "fp32"), choose_fit(profile, "gemm", "nt", "bf16")
    assert fit is not None
    assert products is not None
    made = as_products(fit.model_copy(update={"dtype": "bf16"}), products, profile.device)
    assert made.extra_log_sigma == fit.extra_log_sigma
    assert made.correction is None


def test_three_colours_take_as_long_as_a_vector_of_channels() -> None:
    assert rate("rtx-3090", "fp16", c_in=3) == pytest.approx(rate("rtx-3090", "fp16", c_in=8), rel=0.05)


def test_gradients_of_depthwise_weights_take_longer_than_their_forward() -> None:
    alone = {**LARGE, "groups": 512}
    forward, weights = (
        operator_times(load_profile("rtx-3090"), "conv", v, "fp16", alone).median_s for v in ("fwd", "wgrad")
    )
    assert np.all(weights > 3.0 * forward)


def test_that_multiple_is_of_half_precision_alone() -> None:
    """Where it was seen; in fp32 such sums are priced as other sums."""
    alone = {**LARGE, "groups": 512}
    profile = load_profile("a100-sxm4-80gb")
    forward, weights = (operator_times(profile, "conv", v, "fp32", alone).median_s for v in ("fwd", "wgrad"))
    assert np.all(weights < 3.0 * forward)


def test_groups_of_odd_widths_take_the_widest_tiles() -> None:
    profile = load_profile("rtx-3090")

    def time_s(width: int) -> float:
        sizes = {**LARGE, "c_in": 16 * width, "c_out": 16 * width, "groups": 16}
        return float(operator_times(profile, "conv", "fwd", "fp16", sizes).median_s[0])

    assert time_s(24) > time_s(32)
    assert time_s(48) == pytest.approx(time_s(96) / 2.0, rel=0.1)


def test_halves_without_matrix_units_are_no_products_on_them() -> None:
    for name in ("p100-pcie-16gb", "gtx-1650"):
        fit = choose_fit(load_profile(name), "conv", "fwd", "fp16")
        assert fit is not None
        assert products_variant(fit, "fp32", load_profile(name).device) is None
    assert rate("p100-pcie-16gb", "fp16") > 10e12  # as products it came to 7.4
