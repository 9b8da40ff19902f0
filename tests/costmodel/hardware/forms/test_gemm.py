"""The GEMM form against closed forms and monotonicity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.hardware.forms.base import datasheet_floor_s
from costmodel.hardware.forms.gemm import GemmForm
from tests.costmodel.hardware.devices import device

FORM = GemmForm()


def _theta(**changed: float) -> dict[str, float]:
    return {p.name: p.start for p in FORM.parameters(device(), "bf16", "nt")} | changed


def _ideal() -> dict[str, float]:
    """Everything at its physical limit: only whole waves of tiles and the memory remain."""
    tiles = {p.name: 1.0 for p in FORM.parameters(device(), "bf16", "nt") if p.name.startswith("tile_")}
    return _theta(
        compute_efficiency=1.0,
        memory_efficiency=1.0,
        cache_speedup=1.0,
        launch_s=1e-12,
        block_s=1e-15,
        latency_s_per_k=1e-18,
        overlap_power=12.0,
        sustained_fraction=1.0,
        wave_sharpness=1.0,
        **tiles,
    )


def _time_s(theta: dict[str, float], m: int, n: int, k: int, batch: int = 1) -> float:
    dims = {name: np.array([float(v)]) for name, v in (("batch", batch), ("m", m), ("n", n), ("k", k))}
    return float(FORM.physical(theta, device(), dims, "bf16", "nt")[0])


def test_whole_waves_reach_the_peak() -> None:
    # 108 multiprocessors, tiles of 128 x 256: 12 x 9 tiles are one full wave
    m, n, k = 12 * 128, 9 * 256, 65536
    assert _time_s(_ideal(), m, n, k) == pytest.approx(2 * m * n * k / 312e12, rel=1e-3)


def test_one_tile_more_costs_a_wave() -> None:
    theta = _ideal()
    full = _time_s(theta, 12 * 128, 9 * 256, 65536)
    over = _time_s(theta, 12 * 128 + 1, 9 * 256, 65536)
    assert 1.05 < over / full <= 2.0


def test_thin_gemm_streams_its_weights() -> None:
    n, k = 65536, 16384
    assert _time_s(_ideal(), 1, n, k) == pytest.approx(2 * n * k / 2.039e12, rel=0.01)


def test_work_beyond_the_burst_runs_at_the_sustained_rate() -> None:
    theta = _ideal() | {"sustained_fraction": 0.5, "burst_s": 1e-5}
    big = (16384, 16384, 16384)
    assert _time_s(theta, *big) / _time_s(_ideal(), *big) == pytest.approx(2.0, rel=0.2)


def test_split_reduction_uses_idle_multiprocessors() -> None:
    costly = _theta(split_cost=10.0)
    assert _time_s(_theta(split_cost=0.001), 128, 128, 65536) < 0.3 * 65536 * 2 * 128 * 256 / (
        312e12 / 108 * _theta()["compute_efficiency"]
    )
    assert _time_s(costly, 128, 128, 65536) > _time_s(_theta(split_cost=0.001), 128, 128, 65536)


def test_features_are_finite_and_one_row_each() -> None:
    dims = {name: np.array([1.0, 17.0, 40000.0]) for name in ("m", "n", "k")}
    features = FORM.features(device(), dims, "bf16", "nt")
    assert features.shape[0] == 3
    assert np.isfinite(features).all()


@given(
    m=st.integers(1, 30000),
    n=st.integers(1, 30000),
    k=st.integers(1, 30000),
    batch=st.integers(1, 64),
    dtype=st.sampled_from(["bf16", "fp32", "int4_wo"]),
)
@settings(max_examples=80, deadline=None)
def test_physical_form_respects_the_datasheet(m: int, n: int, k: int, batch: int, dtype: str) -> None:
    dims = {name: np.array([float(v)]) for name, v in (("batch", batch), ("m", m), ("n", n), ("k", k))}
    theta = {p.name: min(p.start, 1.0) for p in FORM.parameters(device(), dtype, "nn")}
    time_s = FORM.physical(theta, device(), dims, dtype, "nn")
    assert np.isfinite(time_s).all()
    assert (time_s >= datasheet_floor_s(FORM, device(), dims, dtype, "nn")).all()


def test_block_scales_cost_a_pass_over_the_activations() -> None:
    def added_s(m: int, n: int, k: int) -> float:
        dims = {name: np.array([float(v)]) for name, v in (("m", m), ("n", n), ("k", k))}
        theta = _theta(quantise_cost=2.0)
        with_pass = FORM.physical(theta, device(), dims, "fp8_block", "nt")
        return float((with_pass - FORM.physical(_theta(), device(), dims, "fp8_block", "nt"))[0])

    bandwidth = device().memory_bytes_per_s * _theta()["memory_efficiency"]
    assert added_s(4096, 512, 2048) == pytest.approx(2.0 * 3.0 * 4096 * 2048 / bandwidth)
    assert added_s(4096, 8192, 2048) == pytest.approx(
        added_s(4096, 512, 2048)
    )  # the weight is quantised once

    def quantises(dtype: str) -> bool:
        return any(p.name == "quantise_cost" for p in FORM.parameters(device(), dtype, "nt"))

    assert [dtype for dtype in ("bf16", "fp8", "fp8_block") if quantises(dtype)] == ["fp8_block"]


def test_prepared_sizes_give_the_same_seconds_for_every_theta() -> None:
    rng = np.random.default_rng(0)
    dims = {name: np.ceil(np.exp2(rng.uniform(0.0, 14.0, 500))) for name in ("m", "n", "k")}
    seconds = FORM.prepared(device(), dims, "bf16", "nt")
    for sharpness in (0.2, 0.9, 0.2):
        theta = _theta(wave_sharpness=sharpness)
        assert np.array_equal(seconds(theta), FORM.physical(theta, device(), dims, "bf16", "nt"))


def test_all_sizes_at_once_are_priced_as_one_by_one() -> None:
    rng = np.random.default_rng(1)
    dims = {name: np.ceil(np.exp2(rng.uniform(0.0, 14.0, 200))) for name in ("batch", "m", "n", "k")}
    together = FORM.physical(_theta(), device(), dims, "bf16", "nt")
    alone = [
        _time_s(_theta(), *(int(dims[name][i]) for name in ("m", "n", "k", "batch"))) for i in range(200)
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
