"""Profiles from made-up samples whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from calibrate.assemble import assemble_profile, collective_samples, operator_tables
from calibrate.journal import Sample
from costmodel.errors import MeasurementError
from costmodel.hardware.collectives.pricing import collective_times
from costmodel.hardware.kinds import CollectiveGroup
from costmodel.hardware.pricing import operator_times
from tests.calibrate.machines import a_machine

_RATE = 1e11
_FLOW = 2e10


def a_sample(
    kind: str,
    variant: str,
    time_s: float,
    dims: Mapping[str, int] | None = None,
    setting: str = "together",
    timing: str = "eager_loop",
) -> Sample:
    return Sample(
        kind=kind,
        variant=variant,
        dtype="fp32",
        dims=dims or {},
        timing=timing,
        setting=setting,
        time_s=time_s,
        spread=0.02,
        n=30,
        n_visits=3,
    )


def probes() -> list[Sample]:
    """What every calibration begins with: a product and a copy."""
    side, size = 512, 1 << 10  # the copy stays in cache: it tells less than any stream
    return [
        a_sample("probe", "gemm", 2.0 * side**3 / _RATE, {"flop": 2 * side**3}),
        a_sample("probe", "copy", size / _FLOW, {"bytes": size}),
    ]


def gemm_samples() -> list[Sample]:
    """A machine with one rate: time = flop / rate + 2 us."""
    sizes = [(m, n, k) for m in (32, 128, 512, 2048) for n in (64, 512) for k in (64, 256, 1024)]
    return [
        a_sample("gemm", "nt", 2.0 * m * n * k / _RATE + 2e-6, {"m": m, "n": n, "k": k}) for m, n, k in sizes
    ]


def transfers(latency_s: float = 1e-4) -> list[Sample]:
    return [
        a_sample(op, "", latency_s + 2**p / 1e9, {"size_bytes": 2**p, "n_ranks": 2}, timing="torch_loop")
        for op in ("all_reduce", "all_gather", "reduce_scatter")
        for p in range(10, 27, 2)
    ]


def test_the_fit_gives_back_the_machine_it_was_fed() -> None:
    profile = assemble_profile("x", a_machine(), [*probes(), *gemm_samples()])
    assert profile.device.peak_flop_per_s["fp32"] == pytest.approx(_RATE, rel=0.05)
    dims = {"m": np.array([256.0, 1024.0]), "n": np.array([256.0, 512.0]), "k": np.array([512.0, 512.0])}
    times = operator_times(profile, "gemm", "nt", "fp32", dims, timing="eager_loop").median_s
    truth = 2.0 * dims["m"] * dims["n"] * dims["k"] / _RATE + 2e-6
    assert times == pytest.approx(truth, rel=0.08)


def test_peak_is_the_best_of_any_kind() -> None:
    conv = {
        "batch": 8,
        "c_in": 64,
        "c_out": 64,
        "h": 32,
        "w": 32,
        "kh": 3,
        "kw": 3,
        "stride": 1,
        "padding": 1,
        "groups": 1,
        "transposed": 0,
    }
    flop = 2.0 * 8 * 64 * 32 * 32 * 64 * 9
    fast = a_sample("conv", "fwd", flop / (3 * _RATE), conv)
    profile = assemble_profile("x", a_machine(), [*probes(), *gemm_samples(), fast])
    assert profile.device.peak_flop_per_s["fp32"] == pytest.approx(3 * _RATE, rel=1e-6)


def test_a_known_device_keeps_its_datasheet() -> None:
    machine = a_machine(device="NVIDIA H200", device_kind="cuda", backend="nccl")
    profile = assemble_profile("x", machine, [*probes(), *gemm_samples()])
    assert profile.device.kind == "cuda"
    assert profile.device.peak_flop_per_s["bf16"] == pytest.approx(9.9e14, rel=0.02)
    assert profile.environment.device == "NVIDIA H200"


def test_contention_is_what_a_byte_costs_more_beside_busy_neighbours() -> None:
    samples: list[Sample] = []
    for rows, per_byte_s in ((8, 5e-10), (16, 7e-10), (32, 6e-10)):
        size = 512 * rows
        dims = {"rows": rows, "cols": 64, "bytes": size}
        samples += [
            a_sample("softmax", "fwd", 1e-5 + per_byte_s * size, dims),
            a_sample("softmax", "fwd", 1e-5, dims, setting="alone"),
        ]
    product = {"m": 64, "n": 64, "k": 64}
    samples += [
        a_sample("gemm", "nt", 3e-5, product),
        a_sample("gemm", "nt", 1e-5, product, setting="alone"),
    ]
    profile = assemble_profile("x", a_machine(), [*probes(), *samples])
    assert profile.contention_s_per_byte == pytest.approx(6e-10)


def test_samples_taken_alone_are_not_fitted() -> None:
    dims = {"rows": 4, "cols": 64, "bytes": 2048}
    tables = operator_tables(
        [
            a_sample("softmax", "fwd", 1e-5, dims),
            a_sample("softmax", "fwd", 9e-5, dims, setting="alone"),
            a_sample("host", "op", 1e-6),
            a_sample("memory", "copy", 1e-3, {"bytes": 1 << 24}),
        ],
        "cpu",
    )
    assert list(tables) == ["softmax"]
    assert tables["softmax"].time_s.tolist() == [1e-5]


def test_collectives_are_fitted_over_the_link_that_was_measured() -> None:
    profile = assemble_profile("x", a_machine(), [*probes(), *transfers()])
    assert profile.network is not None
    assert profile.network.intra[0].kind == "loopback"
    sizes = np.array([2.0**14, 2.0**21])
    times = collective_times(profile.network, "all_reduce", sizes, CollectiveGroup(n_ranks=2))
    assert times.median_s == pytest.approx(1e-4 + sizes / 1e9, rel=0.15)
    assert {s.impl for s in collective_samples(transfers(), a_machine())} == {"gloo"}


def test_one_rank_has_no_network() -> None:
    assert assemble_profile("x", a_machine(world_size=1), [*probes(), *gemm_samples()]).network is None


def test_ranks_differ_by_what_the_slowest_was_awaited() -> None:
    dims = {"rows": 4, "cols": 64, "bytes": 2048}
    samples = [
        replace(a_sample("softmax", "fwd", 1e-5, {**dims, "rows": rows}), waiting=0.02)
        for rows in range(1, 10)
    ]
    interrupted = replace(a_sample("softmax", "fwd", 1e-5, {**dims, "rows": 64}), waiting=3.0)
    profile = assemble_profile("x", a_machine(), [*probes(), *samples, interrupted])
    assert profile.rank_log_sigma == pytest.approx(0.02 * math.sqrt(math.pi))


def test_rates_that_were_not_measured_are_not_made_up() -> None:
    profile = assemble_profile("x", a_machine(), [*probes(), *transfers()])
    assert profile.device.memory_bytes_per_s == pytest.approx(_FLOW)
    assert profile.device.peak_flop_per_s == {"fp32": pytest.approx(_RATE)}
    with pytest.raises(MeasurementError, match="no rate of its memory"):
        assemble_profile("x", a_machine(), gemm_samples())
