"""Attention: what tells decode kernels apart, and that it does where they do."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from costmodel.hardware.forms.attention import AttentionForm
from costmodel.hardware.pricing import datasheet_fit
from tests.costmodel.hardware.devices import device

FORM = AttentionForm()
GPU = device("H100-SXM5-80GB")


def _features(variant: str = "decode", **sizes: float) -> np.ndarray:
    held = {
        "batch": 1.0,
        "q_len": 1.0,
        "kv_len": 1024.0,
        "heads": 32.0,
        "kv_heads": 8.0,
        "qk_dim": 128.0,
        "v_dim": 128.0,
        "window": 0.0,
        "causal": 1.0,
    }
    dims = {name: np.array([value]) for name, value in (held | sizes).items()}
    return FORM.features(GPU, dims, "bf16", variant)[0]


def _prefill_s(name: str, width: float, kind: Literal["cpu", "cuda"] = "cuda") -> float:
    """8 x 8 heads of this width, 4,096 queries and keys, by the form's start parameters."""
    sizes = {"batch": 8.0, "q_len": 4096.0, "kv_len": 4096.0, "heads": 8.0, "kv_heads": 8.0}
    dims = {k: np.array([v]) for k, v in sizes.items()}
    dims |= {"qk_dim": np.array([width]), "v_dim": np.array([width])}
    dims |= {"window": np.zeros(1), "causal": np.zeros(1)}
    on = device(name).model_copy(update={"kind": kind})
    fit = datasheet_fit(on, "attention", "prefill", "fp16")
    return float(FORM.physical(fit.parameters, on, dims, "fp16", "prefill")[0])


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a - b)


def test_heads_that_no_longer_fit_one_instruction_lie_apart() -> None:
    # sharing by 8, 16 and 32: only the last one needs more rows than a matrix instruction has
    eight, sixteen, more = (_features(heads=8.0 * sharing)[9] for sharing in (8.0, 16.0, 32.0))
    assert eight == sixteen == 0.0
    assert more > 0.0


def test_sizes_of_a_kernel_shorter_than_its_launch_tell_little() -> None:
    roofline = slice(-2, None)
    short = _apart(_features(kv_len=2.0), _features(kv_len=4.0))[roofline]
    long = _apart(_features(batch=256.0, kv_len=32768.0), _features(batch=256.0, kv_len=65536.0))[roofline]
    assert short.max() < 0.05
    assert long[1] == pytest.approx(np.log(2.0), rel=0.01)


def test_other_phases_keep_their_own_coordinates() -> None:
    assert len(_features("prefill")) == len(_features("mla_decode")) == len(_features("fwd")) == 10
    assert len(_features("decode")) == 14


def test_a_head_takes_the_time_of_the_kernel_that_it_fits_in() -> None:
    # FlashAttention has kernels for 32, 64, 96, 128, 192 and 256 elements
    times_s = {width: _prefill_s("A100-SXM4-80GB", width) for width in (40, 64, 80, 96, 160, 192, 256, 320)}
    for width, kernel in ((40, 64), (80, 96), (160, 192)):
        assert times_s[width] == pytest.approx(times_s[kernel], rel=0.02)
    assert times_s[320] > 1.2 * times_s[256]
    assert _prefill_s("T4", 40.0, "cpu") < 0.7 * _prefill_s("T4", 64.0, "cpu")


@pytest.mark.parametrize(
    ("name", "tflop_per_s"),
    # T4: 0.66 / 2.19 of the peak (Dao-AILab/flash-attention pull request 2379); V100: the same share
    [("T4", 19.6), ("V100-SXM2-16GB", 37.5)],
)
def test_before_ampere_attention_runs_in_the_memory_efficient_kernel(name: str, tflop_per_s: float) -> None:
    reached = 4.0 * 64 * 4096**2 * 64 / _prefill_s(name, 64.0) / 1e12
    assert reached == pytest.approx(tflop_per_s, rel=0.1)
