"""The arena hands out memory that a call would find cold, and the registry holds every kind."""

from __future__ import annotations

import itertools

import pytest
import torch

from calibrate.benchmarks.base import BENCHMARKS, Bench, load_benchmarks, register_benchmark
from costmodel.errors import UsageError


def a_bench(**changes: float) -> Bench:
    fields = {"cache_bytes": 1 << 20, "flop_per_s": 1e11, "bytes_per_s": 1e10, "largest_s": 1e-3}
    return Bench(torch.device("cpu"), **{**fields, **changes})  # type: ignore[arg-type]


def test_cold_buffers_outgrow_the_cache_and_do_not_overlap() -> None:
    rotation = a_bench().rotate((256, 256))  # 256 KiB each, cache 1 MiB
    starts = sorted(t.data_ptr() for t in rotation.buffers)
    assert sum(t.numel() * 4 for t in rotation.buffers) >= 2 << 20
    assert all(b - a >= 256 * 256 * 4 for a, b in itertools.pairwise(starts))
    first = [rotation().data_ptr() for _ in rotation.buffers]
    assert len(set(first)) == len(rotation.buffers)
    assert rotation().data_ptr() == first[0]


def test_a_warm_buffer_is_always_the_same() -> None:
    rotation = a_bench().rotate((16, 16), cold=False)
    assert rotation().data_ptr() == rotation().data_ptr()


def test_arena_values_are_finite_in_every_dtype() -> None:
    bench = a_bench()
    for dtype in ("fp32", "bf16", "fp16"):
        values = bench.take((1000,), dtype).float()
        assert torch.isfinite(values).all()
        assert values.std() > 0.4  # uniform over (-1, 1): 0.577
    assert not bench.take((1000,), "zeros").any()


def test_too_large_a_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="arena"):
        a_bench().take((1 << 30,))


def test_fits_by_the_sum_of_both_times() -> None:
    bench = a_bench()
    assert bench.fits(flop=5e7, moved_bytes=4e6)
    assert not bench.fits(flop=9e7, moved_bytes=4e6)


def test_a_second_benchmark_of_one_name_is_an_error() -> None:
    load_benchmarks()
    with pytest.raises(ValueError, match="registered twice"):
        register_benchmark("gemm")(lambda bench: [])
    with pytest.raises(UsageError, match="collectives"):
        BENCHMARKS["no such"]
