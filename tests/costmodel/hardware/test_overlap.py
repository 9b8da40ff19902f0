"""Share of a device that collectives take from computation."""

from __future__ import annotations

import numpy as np
import pytest

from costmodel.hardware.overlap import share_taken
from costmodel.hardware.schema import HardwareProfile, Overlap
from costmodel.hardware.store import load_profile


def _share(profile: HardwareProfile, bytes_per_s: float) -> float:
    return float(share_taken(profile, np.array([bytes_per_s]), np.array([1.0]))[0])


def test_it_is_the_memory_traffic_of_what_is_moved() -> None:
    """Stored and read again: 2 x 235 of 2,039 GB/s on an A100 over NVLink, next to nothing over Ethernet."""
    a100 = load_profile("a100-sxm4-80gb")
    assert _share(a100, 235e9) == pytest.approx(2 * 235 / 2039)
    assert _share(a100, 3e9) < 0.005
    assert _share(a100, 1e15) == 0.5
    assert share_taken(a100, np.array([0.0]), np.array([0.0])).tolist() == [0.0]


def test_a_measured_factor_takes_its_place() -> None:
    a100 = load_profile("a100-sxm4-80gb")
    measured = a100.model_copy(update={"overlap": Overlap(compute_slowdown=1.1, source="own measurement")})
    assert _share(measured, 235e9) == 0.0
    assert _share(load_profile("epyc-core"), 10e9) == 0.0
    slower = a100.model_copy(update={"overlap": Overlap(compute_slowdown=1.1)})  # as sensitivities are found
    assert _share(slower, 235e9) == _share(a100, 235e9)
