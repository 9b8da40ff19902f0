"""Attention: what tells decode kernels apart, and that it does where they do."""

from __future__ import annotations

import numpy as np
import pytest

from costmodel.hardware.forms.attention import AttentionForm
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
