"""Every benchmark's cases run, carry the sizes of their kind, and do the work that they say they do."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from calibrate.benchmarks.base import BENCHMARKS, Case, load_benchmarks
from calibrate.benchmarks.points import log_points, rounded
from costmodel.hardware.kinds import OPERATOR_KINDS
from tests.calibrate.machines import a_bench

_OPERATORS = (
    "gemm",
    "bmm",
    "conv",
    "attention",
    "elementwise",
    "norm",
    "softmax",
    "reduction",
    "embedding",
    "optimizer",
)


def cases_of(name: str) -> list[Case]:
    return list(load_benchmarks()[name](a_bench(n_points=0.4)))


@pytest.mark.parametrize("name", _OPERATORS)
def test_cases_run_and_have_the_sizes_of_their_kind(name: str) -> None:
    bench = a_bench(n_points=0.4)
    cases = cases_of(name)
    assert len(cases) >= 3
    keys = set()
    for case in cases:
        kind = OPERATOR_KINDS[case.kind]
        assert tuple(case.dims) == kind.dims
        assert case.variant in kind.variants
        assert all(isinstance(v, int) and v >= 0 for v in case.dims.values())
        keys.add((case.variant, case.dtype, tuple(case.dims.values())))
        with torch.no_grad():
            result = case.prepare(bench)()
        if (
            case.output_bytes
            and isinstance(result, torch.Tensor)
            and case.saved_output
            and case.kind != "reduction"
        ):
            assert result.numel() * result.element_size() == pytest.approx(case.output_bytes, rel=0.35)
    assert len(keys) > 0.7 * len(cases)


@pytest.mark.parametrize("name", ["gemm", "bmm", "conv"])
def test_flop_of_a_case_is_what_torch_counts(name: str) -> None:
    bench = a_bench(n_points=0.4)
    for case in cases_of(name)[:12]:
        with torch.no_grad():
            call = case.prepare(bench)
            with FlopCounterMode(display=False) as counter:
                call()
        d = case.dims
        if name == "conv":
            side = (d["h"] + 2 * d["padding"] - d["kh"]) // d["stride"] + 1
            expected = (
                2 * d["batch"] * d["c_out"] * side * side * d["c_in"] // d["groups"] * d["kh"] * d["kw"]
            )
            if case.variant == "wgrad" and d["groups"] > 1:
                continue  # torch's formula for grouped weight gradients counts the groups again
            if case.variant == "dgrad" and d["stride"] > 1:
                continue  # torch counts the transposed convolution's padded form
        else:
            expected = 2 * d.get("batch", 1) * d["m"] * d["n"] * d["k"]
        assert counter.get_total_flops() == pytest.approx(expected, rel=1e-6), (case.variant, dict(d))


def test_cases_stay_within_the_time_of_one_call() -> None:
    bench = a_bench(n_points=0.4)
    for case in cases_of("gemm"):
        d = case.dims
        assert 2 * d["m"] * d["n"] * d["k"] / bench.flop_per_s <= bench.largest_s


def test_host_cases_run_with_one_rank() -> None:
    bench = a_bench(n_points=0.4)
    cases = BENCHMARKS["host"](bench)
    assert cases
    for case in cases:
        call = case.prepare(bench)
        first, second = call(), call()
        if case.self_timed:
            assert isinstance(first, float)
            assert isinstance(second, float)
            assert min(first, second) >= 0.0


def test_points_are_spread_over_the_logarithms() -> None:
    points = log_points(64, {"a": (1, 1 << 12), "b": (16, 1 << 16)})
    octants = {(int(math.log2(p["a"]) // 3), int(math.log2(p["b"] / 16) // 3)) for p in points}
    assert len(octants) >= 15  # of 16 cells
    assert all(1 <= p["a"] <= 1 << 12 and 16 <= p["b"] <= 1 << 16 for p in points)
    assert points[:10] == log_points(10, {"a": (1, 1 << 12), "b": (16, 1 << 16)})


@pytest.mark.parametrize(("size", "result"), [(0.3, 1), (7.6, 8), (17.0, 16), (70.0, 64), (1000.0, 992)])
def test_rounded(size: float, result: int) -> None:
    assert rounded(size) == result
