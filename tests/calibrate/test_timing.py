"""What a visit does with its blocks."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch

from calibrate.benchmarks.base import Bench, Call, Case
from calibrate.timing import clipped_mean, summarise, time_call, time_case, time_together


def a_bench() -> Bench:
    return Bench(torch.device("cpu"), cache_bytes=1 << 20, flop_per_s=1e11, bytes_per_s=1e10, largest_s=1e-3)


def a_case(**changes: object) -> Case:
    fields: dict[str, object] = {
        "kind": "host",
        "variant": "x",
        "dtype": "fp32",
        "dims": {},
        "prepare": lambda bench: lambda: None,
    }
    return Case(**{**fields, **changes})  # type: ignore[arg-type]


def test_median_and_interquartile_range() -> None:
    timed = summarise([5.0, 1.0, 2.0, 3.0, 4.0], 10, "eager_loop")
    assert timed.time_s == 3.0
    assert timed.spread == pytest.approx(2.0 / 3.0)
    assert timed.n == 50


def test_a_call_is_not_timed_below_what_it_sleeps() -> None:
    timed = time_call(lambda: time.sleep(2e-3), slice_s=0.2)
    assert timed.time_s >= 2e-3
    assert timed.n >= 2


def test_results_in_the_ring_stay_alive_and_no_longer() -> None:
    alive = 0
    most = 0

    class Result:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    time_call(Result, slice_s=2e-3, keep=5)
    assert most == 6  # five kept, one being made
    assert alive == 0


def test_time_is_per_priced_call() -> None:
    case = a_case(prepare=lambda bench: lambda: time.sleep(4e-3), calls=4)
    timed = time_case(case, a_bench(), slice_s=0.01)
    assert timed.time_s >= 1e-3
    whole = time_case(a_case(prepare=case.prepare), a_bench(), slice_s=0.01)
    assert whole.time_s >= 4e-3


def test_ranks_agree_on_how_often_they_call() -> None:
    """The slower rank's first call sets the count: both must call equally often."""

    def calls_with(other_s: float) -> int:
        made = 0

        def call() -> None:
            nonlocal made
            made += 1

        def agree(values: Sequence[float]) -> list[list[float]]:
            return [list(values), [other_s]]

        time_together(a_case(prepare=lambda bench: call, n_ranks=2), a_bench(), slice_s=0.01, agree=agree)
        return made

    assert calls_with(1.0) == calls_with(2.0)  # count depends on the slowest only
    assert calls_with(1e-4) > calls_with(1.0)


def test_a_call_may_time_itself() -> None:
    case = a_case(prepare=lambda bench: lambda: 0.25, n_ranks=2, self_timed=True)
    timed = time_together(case, a_bench(), slice_s=0.01, agree=lambda values: [list(values)])
    assert timed.time_s == 0.25


@pytest.mark.alone
def test_transfers_follow_computation_and_their_mean_counts() -> None:
    computed = 0
    lengths = iter([0.0, 0.0, *[4e-3, 36e-3] * 20])

    class Watched(Bench):
        def computation(self, seconds: float) -> Call:
            def call() -> None:
                nonlocal computed
                computed += 1

            return call

    bench = Watched(
        torch.device("cpu"), cache_bytes=1 << 20, flop_per_s=1e11, bytes_per_s=1e10, largest_s=1e-3
    )
    case = a_case(
        kind="all_reduce",
        prepare=lambda bench: lambda: time.sleep(next(lengths)),
        n_ranks=2,
        between_computation=True,
    )
    timed = time_together(case, bench, slice_s=0.01, agree=lambda values: [list(values)])
    assert computed == timed.n >= 4
    assert 8e-3 < timed.time_s < 32e-3  # the median would be one of the two lengths


def test_a_visit_counts_what_calls_take_on_average_and_no_interruption() -> None:
    timed = clipped_mean([1.0, 1.0, 1.0, 1.5, 50.0], 1, "eager_loop")
    assert timed.time_s == pytest.approx((3 * 1.0 + 1.5 + 2.0) / 5)
