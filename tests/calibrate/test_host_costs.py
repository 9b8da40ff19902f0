"""Differences of made-up timings give back the costs they were made of."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from calibrate.benchmarks.chains import BLOCKS, PIECES
from calibrate.benchmarks.host import DEFERRED_BYTES, WIDE_BYTES, WIDE_OUTPUT_BYTES
from calibrate.host_costs import host_costs, overlap_of
from calibrate.journal import Sample
from calibrate.timing import THREAD_TIME

_FEW, _MANY = PIECES
_BLOCK_S, _WIDE_S = 70e-6, 8e-3
_LATENCY_S, _BYTES_PER_S = 1e-4, 2e9


def a_sample(
    kind: str, variant: str, time_s: float, dims: Mapping[str, int] | None = None, timing: str = "eager_loop"
) -> Sample:
    return Sample(
        kind=kind,
        variant=variant,
        dtype="fp32",
        dims=dims or {},
        timing=timing,
        setting="together",
        time_s=time_s,
        spread=0.02,
        n=30,
        n_visits=3,
    )


def moved_s(size_bytes: float) -> float:
    return _LATENCY_S + size_bytes / _BYTES_PER_S


def transfers() -> list[Sample]:
    return [
        a_sample(op, "", moved_s(2**p), {"size_bytes": 2**p, "n_ranks": 2}, timing="torch_loop")
        for op in ("all_reduce", "all_gather", "reduce_scatter")
        for p in (10, 19, 22, 26)
    ]


def pieces(name: str, each_s: float, timing: str) -> list[Sample]:
    """Times of few and many pieces that cost so much each, and 3 ms once."""
    return [a_sample("host", f"{name}_{n}", 3e-3 + n * each_s, timing=timing) for n in PIECES]


def samples(*, waits: bool = False, wide: bool = True) -> list[Sample]:
    """A machine whose costs are known; with `waits` the clock of the pieces sees the transfers' latency."""
    timing = "eager_loop" if waits else THREAD_TIME
    seen_s = moved_s(2**10) if waits else 0.0
    singles = {
        "op": 1e-6,
        "view": 0.5e-6,
        "plain_chain": BLOCKS * 30e-6,
        "training_chain": BLOCKS * _BLOCK_S,
        "backward_step": 43e-6,
        "plain_forward": BLOCKS * 12e-6,
        "forward_chain": BLOCKS * (12e-6 + 3 * 8e-6),
        "dtensor_chain": BLOCKS * (_BLOCK_S + 7 * 20e-6),
    }
    found = [
        *transfers(),
        *(a_sample("host", name, seconds) for name, seconds in singles.items()),
        *pieces("blocks", _BLOCK_S, timing),
        *pieces("layers", 2 * _BLOCK_S, timing),
        *pieces("tp", 2 * _BLOCK_S + 2 * (300e-6 + seen_s), timing),
        *pieces("ddp", _BLOCK_S + 50e-6 + seen_s, timing),
        *pieces("fsdp", _BLOCK_S + 400e-6 + 3 * seen_s, timing),
        *pieces("pipeline", _BLOCK_S + 2 * 150e-6, timing),
        *pieces("listed", _BLOCK_S + 2 * 350e-6, timing),
        *pieces("apart", 2 * 40e-6, timing),
    ]
    if wide:
        whole_s = moved_s(WIDE_BYTES)
        found += [
            pieces("middle_apart", 2 * 40e-6 + 2e-10 * DEFERRED_BYTES, timing)[0],
            *pieces("wide_blocks", _WIDE_S, "eager_loop"),
            *pieces("wide_fsdp", _WIDE_S + 400e-6 + 3 * whole_s + 1e-10 * WIDE_BYTES, "eager_loop"),
            *pieces("wide_ddp", _WIDE_S + 50e-6 + 0.6 * whole_s, "eager_loop"),
            *pieces("wide_tp", _WIDE_S / 2 + moved_s(WIDE_OUTPUT_BYTES) + 700e-6, "eager_loop"),
        ]
    return found


_EXPECTED = {
    "dispatch_s": 1e-6,
    "host_view_s": 0.5e-6,
    "autograd_s": 20e-6,  # (70 - 30) us over the two differentiated operators of a block
    "module_s": 8e-6,  # over the three operators of a block's forward pass
    "dtensor_dispatch_s": 20e-6,
    "ddp_bucket_s": 50e-6,
    "fsdp_unit_s": 400e-6,
    "pipeline_action_s": 150e-6,
    "pipeline_listed_action_s": 350e-6,
    "split_parameter_s": 40e-6,
    "step_s": 20e-6,  # 43 us less three products and one node
}


def test_costs_are_the_differences_they_say() -> None:
    found = {name: value.value_s for name, value in host_costs(samples()).items()}
    assert found == pytest.approx(
        {
            **_EXPECTED,
            "dtensor_module_s": 700e-6,
            "fsdp_copy_s_per_byte": 1e-10,
            "split_s_per_byte": 2e-10,
        },
        rel=1e-6,
    )


def test_the_wall_clock_sees_the_latency_and_it_is_taken_off() -> None:
    found = {name: value.value_s for name, value in host_costs(samples(waits=True, wide=False)).items()}
    assert found == pytest.approx({**_EXPECTED, "dtensor_module_s": 300e-6}, rel=1e-6)


def test_a_negative_difference_counts_nothing_and_a_missing_one_is_left_out() -> None:
    found = host_costs([a_sample("host", "training_chain", 1e-6), a_sample("host", "plain_chain", 2e-6)])
    assert found["autograd_s"].value_s == 0.0
    assert "dispatch_s" not in found


def beside(comm_slowdown: float) -> list[Sample]:
    times = {"compute_alone": 1.0, "compute_beside": 1.3, "comm_alone": 1.0, "comm_beside": comm_slowdown}
    return [a_sample("overlap", name, seconds) for name, seconds in times.items()]


def test_overlap_gives_back_what_a_wide_bucket_added() -> None:
    overlap = overlap_of([*samples(), *beside(1.5)])
    assert overlap.comm_slowdown == 1.5
    added = overlap.comm_slowdown * (1.0 - 1.0 / overlap.compute_slowdown)
    assert added == pytest.approx(0.6, rel=1e-6)


def test_without_wide_layers_overlap_is_a_ratio_of_at_least_one() -> None:
    overlap = overlap_of([*samples(wide=False), *beside(0.9)])
    assert overlap.compute_slowdown == pytest.approx(1.3)
    assert overlap.comm_slowdown == 1.0
    assert overlap_of(samples()).compute_slowdown == 1.0  # nothing measured beside anything
