"""Which fit prices an operator, and what a price must obey whatever the fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.errors import UsageError
from costmodel.hardware.device import peak_flop_per_s
from costmodel.hardware.fallback import fallback_spread
from costmodel.hardware.forms.evaluate import form_of
from costmodel.hardware.pricing import choose_fit, long_run_s, operator_times
from costmodel.hardware.schema import Correction
from tests.costmodel.hardware.devices import device, plain_fit, profile

SQUARE = {"m": [4096.0], "n": [4096.0], "k": [4096.0]}


def test_exact_fit_is_taken_as_it_is() -> None:
    fit = plain_fit(dtype="bf16")
    other = plain_fit(dtype="fp32", timing="event_eager")
    assert choose_fit(profile(other, fit), "gemm", "nt", "bf16") is fit
    assert choose_fit(profile(other, fit), "gemm", "nt", "fp32", "event_eager") is other


def test_timing_asked_for_comes_before_dtype_neighbours() -> None:
    graph, kernel = plain_fit(dtype="bf16"), plain_fit(dtype="fp16", timing="kernel_only")
    chosen = choose_fit(profile(graph, kernel), "gemm", "nt", "bf16", "kernel_only")
    assert chosen is not None
    assert (chosen.timing, chosen.dtype) == ("kernel_only", "bf16")
    spread = fallback_spread()
    assert chosen.extra_log_sigma == pytest.approx(spread.same_width_dtype_log_sigma)


def test_each_fall_back_widens_the_interval() -> None:
    p = profile(plain_fit())
    exact = operator_times(p, "gemm", "nt", "bf16", SQUARE)
    sibling = operator_times(p, "gemm", "tn", "bf16", SQUARE)
    other_dtype = operator_times(p, "gemm", "nt", "fp32", SQUARE)
    nothing = operator_times(profile(), "gemm", "nt", "bf16", SQUARE)
    widths = [float(e.log_sigma[0]) for e in (exact, sibling, other_dtype, nothing)]
    assert widths == sorted(widths)
    assert widths[0] < widths[1] < widths[2] < widths[3]


def test_other_dtype_is_priced_on_its_own_peak() -> None:
    p = profile(plain_fit(on="GB300"), on="GB300")
    d = device("GB300")
    half = operator_times(p, "gemm", "nt", "bf16", SQUARE).median_s[0]
    single = operator_times(p, "gemm", "nt", "fp32", SQUARE).median_s[0]
    ratio = peak_flop_per_s(d, "bf16") / peak_flop_per_s(d, "fp32")
    assert single / half == pytest.approx(ratio, rel=0.15)


def test_host_floor_is_in_its_timing_and_not_in_the_kernel() -> None:
    fit = plain_fit(dtype="fp32", timing="event_eager", floor_s=5e-5)
    small = {"m": [8.0], "n": [64.0], "k": [64.0]}
    measured = operator_times(profile(fit), "gemm", "nt", "fp32", small, "event_eager").median_s[0]
    kernel = operator_times(profile(fit), "gemm", "nt", "fp32", small).median_s[0]
    assert measured - kernel == pytest.approx(5e-5, rel=1e-6)
    assert kernel < 1e-5


@given(
    m=st.integers(1, 20000),
    n=st.integers(1, 20000),
    k=st.integers(1, 20000),
    dtype=st.sampled_from(["bf16", "fp32", "fp8", "int8"]),
)
@settings(max_examples=60, deadline=None)
def test_never_faster_than_the_datasheet(m: int, n: int, k: int, dtype: str) -> None:
    estimate = operator_times(profile(plain_fit(compute_efficiency=1.0)), "gemm", "nt", dtype, _dims(m, n, k))
    assert estimate.median_s[0] >= 2.0 * m * n * k / peak_flop_per_s(device(), dtype) * (1 - 1e-12)
    assert estimate.low_s[0] < estimate.median_s[0] < estimate.high_s[0]


@given(m=st.integers(1, 8192), n=st.integers(1, 8192), k=st.integers(1, 8192), which=st.sampled_from("mnk"))
@settings(max_examples=60, deadline=None)
def test_doubling_a_size_does_not_make_it_faster(m: int, n: int, k: int, which: str) -> None:
    p = profile(plain_fit())
    sizes = {"m": m, "n": n, "k": k}
    twice = sizes | {which: 2 * sizes[which]}
    before, after = (operator_times(p, "gemm", "nt", "bf16", s).median_s[0] for s in (sizes, twice))
    assert after >= before * 0.9  # up to a quantisation step of tiles or splits


def test_blocks_and_threads_change_nothing() -> None:
    rng = np.random.default_rng(0)
    n = 40_000
    dims = {name: np.exp(rng.uniform(0, 9, n)).round() for name in ("m", "n", "k")}
    p = profile(plain_fit())
    whole = operator_times(p, "gemm", "nt", "bf16", dims)
    index = np.array([0, 16_383, 16_384, 39_999])
    some = operator_times(p, "gemm", "nt", "bf16", {k: v[index] for k, v in dims.items()})
    np.testing.assert_allclose(whole.median_s[index], some.median_s, rtol=1e-12)


def test_kinds_without_kernel_or_form() -> None:
    p = profile(plain_fit())
    assert operator_times(p, "host", "", "fp32", {}).median_s.tolist() == [0.0]
    unknown = operator_times(p, "unmodelled", "", "fp32", {"bytes": [2.039e9]}).median_s[0]
    assert 1e-3 <= unknown < 2e-3  # a millisecond of bandwidth at the least
    experts = {"groups": [8.0], "m": [8192.0], "n": [4096.0], "k": [4096.0]}
    grouped = operator_times(p, "grouped_gemm", "nt", "bf16", experts).median_s[0]
    assert grouped >= 2 * 8192 * 4096 * 4096 / peak_flop_per_s(device(), "bf16")


def test_gradients_of_experts_take_any_number_of_rows() -> None:
    """The rows that experts share are summed over: twelve experts leave no odd row of a matrix."""
    p = profile(plain_fit())
    even, odd = ({"groups": g, "m": 32_768.0, "n": 4096.0, "k": 4096.0} for g in (16.0, 12.0))
    took = [operator_times(p, "grouped_gemm", "tn", "bf16", sizes).median_s[0] for sizes in (even, odd)]
    assert took[1] == pytest.approx(took[0], rel=0.1)
    forward = operator_times(p, "grouped_gemm", "nt", "bf16", odd).median_s[0]
    assert took[1] == pytest.approx(forward, rel=0.2)


def test_experts_without_a_row_are_not_read() -> None:
    """Two rows reach two of eight experts, as many as there are rows; gradients of all eight are written."""
    p = profile(plain_fit())

    def took(groups: float, rows: float, variant: str = "nt") -> float:
        sizes = {"groups": [groups], "m": [rows], "n": [7168.0], "k": [4096.0]}
        return float(operator_times(p, "grouped_gemm", variant, "bf16", sizes).median_s[0])

    assert took(8, 2) == pytest.approx(took(2, 2))
    assert took(8, 2) < took(8, 8) < took(8, 128)
    assert took(8, 2, "tn") == pytest.approx(took(8, 8, "tn"), rel=0.1)


def test_wrong_requests_are_named() -> None:
    with pytest.raises(UsageError, match="unknown operator kind 'gem'"):
        operator_times(profile(), "gem", "nt", "bf16", SQUARE)
    with pytest.raises(UsageError, match="missing: k"):
        operator_times(profile(), "gemm", "nt", "bf16", {"m": [1.0], "n": [1.0]})


def _dims(m: int, n: int, k: int) -> dict[str, list[float]]:
    return {"m": [float(m)], "n": [float(n)], "k": [float(k)]}


def test_a_correction_of_other_features_is_left_out() -> None:
    sizes = {"batch": 4.0, "q_len": 1.0, "kv_len": 64.0, "heads": 4.0, "kv_heads": 4.0, "qk_dim": 32.0}
    sizes |= {"v_dim": 32.0, "window": 0.0, "causal": 0.0}
    fit = plain_fit("attention", "fwd", "bf16")
    forward = {name: np.array([value]) for name, value in sizes.items()}
    width = form_of("attention").features(device(), forward, "bf16", "fwd").shape[1]
    rough = fit.model_copy(
        update={
            "correction": Correction(
                length=(1.0,) * width,
                centres=((0.0,) * width,),
                weights=(0.1,),
                sigmas=(0.1,),
                far_sigma=0.2,
                limit=1.0,
            )
        }
    )
    decoded = operator_times(profile(rough), "attention", "decode", "bf16", sizes)
    assert (
        decoded.median_s[0] == operator_times(profile(fit), "attention", "decode", "bf16", sizes).median_s[0]
    )
    prefill = choose_fit(profile(rough), "attention", "prefill", "bf16")
    assert prefill is not None
    assert prefill.correction is not None


def test_long_work_is_bound_by_what_the_boards_power_sustains() -> None:
    p = profile(plain_fit())
    limited = p.model_copy(
        update={"device": device().model_copy(update={"long_run_flop_per_s": {"bf16": 1e14}})}
    )
    assert long_run_s(limited, "gemm", "nt", "bf16", SQUARE) == pytest.approx(2 * 4096.0**3 / 1e14)
    assert long_run_s(limited, "gemm", "nt", "fp8", SQUARE) == 0.0
    assert long_run_s(p, "gemm", "nt", "bf16", SQUARE) == 0.0
    flat = {"rows": [4096.0], "cols": [4096.0], "bytes": [1e9]}
    assert long_run_s(limited, "elementwise", "add", "bf16", flat) == 0.0
