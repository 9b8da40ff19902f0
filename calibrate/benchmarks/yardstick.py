"""The yardstick step (`calibrate.yardstick`): visited between all others, see `calibrate.drift`."""

from __future__ import annotations

from calibrate.benchmarks.base import Bench, Call, Case, register_benchmark
from calibrate.yardstick import Yardstick

__all__ = ["yardstick_cases"]


@register_benchmark("yardstick")
def yardstick_cases(bench: Bench) -> list[Case]:
    """One case, of no size."""

    def prepare(bench: Bench) -> Call:
        return Yardstick(bench.device)

    return [Case(kind="yardstick", variant="step", dtype="fp32", dims={}, prepare=prepare, host_clock=True)]
