"""Fits shared out over processes are those of one process, in order."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from calibrate import parallel_fits
from calibrate.fitting.operators import fit_operator
from calibrate.parallel_fits import fit_groups
from calibrate.samples import SampleTable
from costmodel.hardware.schema import DeviceSpec


def a_device() -> DeviceSpec:
    return DeviceSpec(
        kind="cpu",
        name="Test CPU",
        architecture="x86_64",
        memory_bytes=1 << 34,
        memory_bytes_per_s=2e10,
        peak_flop_per_s={"fp32": 1e11},
        multiprocessors=1,
        l2_bytes=1 << 25,
        boost_hz=3e9,
    )


def a_group(cost: float) -> SampleTable:
    rows = np.array([2.0**i for i in range(4, 12)])
    size = 8.0 * rows * 256
    return SampleTable.of(
        "softmax",
        {"rows": rows, "cols": np.full(8, 256.0), "bytes": size},
        time_s=cost * size / 1e10 + 1e-6,
        variant="fwd",
        dtype="fp32",
        timing="eager_loop",
        device="Test CPU",
    )


@pytest.mark.parametrize("executable", [sys.executable, "/bin/false"])
def test_the_same_fits_in_the_same_order(monkeypatch: pytest.MonkeyPatch, executable: str) -> None:
    """Also where the other process dies at once: its share is fitted here."""
    monkeypatch.setattr(parallel_fits, "_GROUPS_PER_PROCESS", 2)
    monkeypatch.setattr(parallel_fits, "usable_cores", lambda: 2)
    monkeypatch.setattr(parallel_fits.sys, "executable", executable)
    groups = [a_group(cost) for cost in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert fit_groups(groups, a_device()) == [fit_operator(rows, a_device()) for rows in groups]


def test_no_groups() -> None:
    assert fit_groups([], a_device()) == []
