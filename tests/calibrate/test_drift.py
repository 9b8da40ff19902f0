"""Visits restated at one speed: a machine that slows down half-way is measured as if it had not."""

from __future__ import annotations

import statistics

import pytest
import torch

from calibrate.drift import YARDSTICK, at_one_speed
from calibrate.journal import Visit
from calibrate.yardstick import Yardstick


def a_visit(kind: str, time_s: float, setting: str = "together") -> Visit:
    return Visit(
        kind=kind,
        variant="v",
        dtype="fp32",
        dims={},
        timing="t",
        setting=setting,
        time_s=time_s,
        spread=0.0,
        n=1,
    )


def a_journal(speeds: list[float], setting: str = "together") -> list[Visit]:
    """Per speed ten visits of a case that takes 1 s at speed 1, and a yardstick of 0.01 s."""
    visits = []
    for speed in speeds:
        visits += [a_visit("gemm", speed, setting) for _ in range(10)]
        visits.append(a_visit(YARDSTICK, 0.01 * speed, setting))
    return visits


def test_a_machine_that_slows_down_is_measured_at_one_speed() -> None:
    visits = at_one_speed(a_journal([1.0] * 15 + [1.3] * 12))
    times = [v.time_s for v in visits if v.kind == "gemm"]
    settled = times[:100] + times[200:]
    assert max(settled) / min(settled) == pytest.approx(1.0)
    assert statistics.median(times) == pytest.approx(1.0, rel=0.01), "the usual speed is the reference"


def test_settings_go_by_their_own_yardsticks() -> None:
    slow_alone = a_journal([1.0] * 15 + [2.0] * 12, setting="alone")
    together = [a_visit("gemm", 1.0)]
    assert at_one_speed([*slow_alone, *together])[-1].time_s == 1.0


def test_few_yardsticks_change_nothing() -> None:
    visits = a_journal([1.0, 3.0])
    assert at_one_speed(visits) == visits


def test_the_yardstick_runs_and_takes_time() -> None:
    step = Yardstick(torch.device("cpu"))
    assert 0.0 < step() < 10.0
