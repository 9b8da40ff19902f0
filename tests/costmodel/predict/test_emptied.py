"""Forwards that start without the memory they keep."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from costmodel.predict.emptied import waits_for_wiping_s
from costmodel.stage_costs import CostParts, UnitCosts


def units(n: int, seconds: float, kept: int) -> list[UnitCosts]:
    part = CostParts(parts_s={"compute": seconds})
    made = {"forward": part, "backward_input": part, "backward_weight": part}
    return [UnitCosts(name=f"{i}", **made, parameter_bytes=0, saved_bytes=kept) for i in range(n)]


def test_what_is_left_at_once_costs_nothing() -> None:
    assert waits_for_wiping_s(units(4, 1.0, 10), left_bytes=40, wiped_bytes_per_s=1.0) == 0.0
    assert waits_for_wiping_s(units(4, 1.0, 10), left_bytes=0, wiped_bytes_per_s=0.0) == 0.0


def test_wiping_runs_beside_the_forward() -> None:
    # 10 bytes wait for 10 s, the next for as many: the kernels between are hidden, the last unit is not
    assert waits_for_wiping_s(units(3, 1.0, 10), left_bytes=0, wiped_bytes_per_s=1.0) == 30.0 + 1.0 - 3.0
    # kernels that take longer than the wiping wait for the first unit alone
    assert waits_for_wiping_s(units(3, 20.0, 10), left_bytes=0, wiped_bytes_per_s=1.0) == 10.0


@given(
    n=st.integers(1, 6),
    seconds=st.floats(0.0, 5.0),
    left=st.floats(-1e3, 1e3),
    rate=st.floats(0.1, 100.0),
)
def test_more_room_and_a_faster_driver_never_cost_time(
    n: int, seconds: float, left: float, rate: float
) -> None:
    some = units(n, seconds, 50)
    waits_s = waits_for_wiping_s(some, left, rate)
    assert waits_s >= -1e-9
    assert waits_for_wiping_s(some, left + 10.0, rate) <= waits_s + 1e-9
    assert waits_for_wiping_s(some, left, 2.0 * rate) <= waits_s + 1e-9
