"""Parameters come back from samples that they made."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.fitting.physical import fit_parameters, free_parameters, predict_s
from calibrate.samples import SampleTable
from costmodel.hardware.datasheets import datasheets
from costmodel.hardware.forms.evaluate import timed_s
from costmodel.hardware.forms.gemm import GemmForm

DEVICE = datasheets()["V100-PCIe-32GB"].device
FORM = GemmForm()


def _table(timing: str, theta: dict[str, float]) -> SampleTable:
    rng = np.random.default_rng(0)
    dims = {name: np.exp2(rng.uniform(3, 13, 300)).round() for name in ("m", "n", "k")}
    time_s = timed_s(FORM, theta, DEVICE, dims, "fp32", "nt", timing)[0]
    return SampleTable.of(
        "gemm", dims, time_s=time_s, variant="nt", dtype="fp32", timing=timing, device=DEVICE.name
    )


def test_times_are_reproduced_and_efficiencies_found() -> None:
    theta = {p.name: p.start for p in FORM.parameters(DEVICE, "fp32", "nt")}
    theta |= {"compute_efficiency": 0.6, "memory_efficiency": 0.5, "launch_s": 8e-6}
    table = _table("cuda_graph", theta)
    found = fit_parameters(FORM, DEVICE, table)
    error = np.abs(predict_s(FORM, found, DEVICE, table) / table.time_s - 1)
    assert error.mean() < 0.02
    assert found["launch_s"] == pytest.approx(8e-6, rel=0.25)


def test_host_floor_is_found_and_launch_held() -> None:
    theta = {p.name: p.start for p in FORM.parameters(DEVICE, "fp32", "nt")} | {"floor_s": 6e-5}
    table = _table("event_eager", theta)
    free, held = free_parameters(FORM, DEVICE, table)
    assert "launch_s" in held
    assert "launch_s" not in [p.name for p in free]
    assert fit_parameters(FORM, DEVICE, table)["floor_s"] == pytest.approx(6e-5, rel=0.1)
