"""SampleTable: groups, shapes, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.samples import SampleTable
from costmodel.errors import MeasurementError


def _table(**changed: object) -> SampleTable:
    values: dict[str, object] = {
        "time_s": [1e-5, 2e-5, 3e-5],
        "variant": "nt",
        "dtype": ["fp32", "bf16", "fp32"],
        "timing": "eager_loop",
        "device": "cpu",
    }
    dims = {"m": [1, 2, 1], "n": [4, 4, 4], "k": [8, 8, 8]}
    return SampleTable.of("gemm", dims, **(values | changed))  # type: ignore[arg-type]


def test_groups_and_shapes() -> None:
    groups = dict(_table().groups())
    assert [(key.dtype, len(rows)) for key, rows in groups.items()] == [("bf16", 1), ("fp32", 2)]
    assert _table().shape_ids().tolist() == [0, 1, 0]
    joined = SampleTable.concat([_table(), _table()])
    assert len(joined) == 6
    assert joined.take(np.array([0, 3])).time_s.tolist() == [1e-5, 1e-5]


def test_what_is_refused() -> None:
    with pytest.raises(MeasurementError, match="positive"):
        _table(time_s=[1e-5, 0.0, 1e-5])
    with pytest.raises(MeasurementError, match="differ in length"):
        _table(time_s=[1e-5, 1e-5])
    with pytest.raises(MeasurementError, match="unknown operator kind"):
        SampleTable.of("gem", {"m": [1.0]}, time_s=[1.0], variant="", dtype="fp32", timing="t", device="cpu")
    with pytest.raises(MeasurementError, match="one kind"):
        SampleTable.concat([])
