"""How unlike devices are."""

import pytest

from costmodel.hardware.distance import device_distance, other_generation
from tests.costmodel.hardware.devices import device


def test_a_device_is_like_itself_and_distance_has_no_direction() -> None:
    a, b = device("A40"), device("L4")
    assert device_distance(a, a) == 0.0
    assert device_distance(a, b) == pytest.approx(device_distance(b, a))


def test_memory_and_power_order_boards_of_one_generation() -> None:
    h200 = device("H200-SXM")
    assert device_distance(device("H100-SXM5-80GB"), h200) < device_distance(device("H100-PCIe-80GB"), h200)
    assert device_distance(device("H100-PCIe-80GB"), h200) < other_generation()


def test_generations_and_vendors_are_further_apart_than_any_boards_of_one() -> None:
    t4 = device("T4")
    assert other_generation() <= device_distance(t4, device("A40")) < device_distance(t4, device("B200"))
    assert device_distance(t4, device("MI100")) > device_distance(t4, device("B200"))
