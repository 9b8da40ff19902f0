"""Unequal devices that share a batch: the split proportional to speed is optimal against a sweep."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.errors import UsageError
from costmodel.predict.uneven import balanced_shares
from planner import api


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0.05, 5.0), st.floats(0.0, 3.0)), min_size=1, max_size=3), st.integers(1, 9)
)
def test_shares_equal_brute_force(devices: list[tuple[float, float]], total: int) -> None:
    steps = [lambda b, each=each, fixed=fixed: fixed + each * b for each, fixed in devices]

    def longest(shares: tuple[int, ...]) -> float:
        return max(step(b) for step, b in zip(steps, shares, strict=True) if b)

    every = [s for s in product(range(total + 1), repeat=len(devices)) if sum(s) == total]
    found = balanced_shares(steps, total)
    assert sum(found) == total
    assert longest(tuple(found)) == pytest.approx(min(map(longest, every)))


def test_shares_are_proportional_to_speed() -> None:
    assert balanced_shares([lambda b: b / 3.0, lambda b: b / 1.0], 100) == [75, 25]


def test_a_processor_beside_gpus_takes_its_part() -> None:
    """Coarse-grained CPU+GPU training: faster than the GPUs alone, by no more than the CPU's speed adds."""
    both = api.share("resnet-50", devices="t4*2,xeon-8168-x2", global_batch_size=128)
    gpus, cpu = both.alone_s
    assert both.step_time_s < gpus[1]
    assert both.step_time_s - both.reduction_s > 0.9 / (1 / gpus[1] + 1 / cpu[1])
    t4, xeon = both.shares
    assert sum(t4.samples) + sum(xeon.samples) == 128
    assert t4.samples[0] > xeon.samples[0] > 0


def test_three_kinds_of_device_and_the_two_stage_prefetch() -> None:
    """HyScale: more than two kinds; inputs that come in beside the step cost nothing here."""
    devices = "t4,v100-pcie-32gb,core-i7-13700"
    ahead = api.share("resnet-50", devices=devices, global_batch_size=64)
    behind = api.share("resnet-50", devices=devices, global_batch_size=64, prefetch=False)
    assert ahead.step_time_s < behind.step_time_s
    ends = [s.step_s for s in ahead.shares if max(s.samples) > 3]
    assert max(ends) / min(ends) < 1.1, "all end together"


@pytest.mark.parametrize("devices", ["", "t4*0", "t4*x"])
def test_devices_that_are_none(devices: str) -> None:
    with pytest.raises(UsageError, match="--devices"):
        api.share("mlp-mnist", devices=devices, global_batch_size=8)
