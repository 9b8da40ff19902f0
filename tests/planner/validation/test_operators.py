"""The report of operator tables: every row once, in its own metric, with a reason where it is skipped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from costmodel.errors import UsageError
from costmodel.estimate import Z90
from costmodel.hardware.fallback import fallback_spread
from planner.validation.operators import validate_operators
from tests.calibrate.importing.test_profiles import _table


def test_cross_validated_report(tmp_path: Path) -> None:
    path = _table(tmp_path / "g.csv")
    with path.open("a") as stream:
        stream.write("H100-SXM5-80GB,bf16,linear,1,2,three,1,5,here,lib-1.0,cuda_graph\n")
        stream.write("Z9000,bf16,linear,1,2,3,1,5,here,lib-1.0,cuda_graph\n")
    report = validate_operators(path, cross_validate=True)
    data = json.loads(report.to_json())
    assert [row["id"] for row in data["rows"]] == [str(i) for i in range(1, 63)]
    assert "malformed" in data["rows"][60]["skipped"]
    assert "no datasheet" in data["rows"][61]["skipped"]
    assert {row["metric"] for row in data["rows"]} == {"latency_us"}
    overall = report.overall
    assert (overall.n, overall.n_skipped) == (60, 2)
    assert overall.mape is not None
    assert overall.mape < 0.12  # the form made the rows: what is left is what 48 rows teach of it
    assert {(row.by, row.key) for row in report.summary} >= {
        ("gpu", "H100-SXM5-80GB"), ("kind", "gemm"), ("dtype", "bf16"), ("source", "here"),
    }  # fmt: skip
    assert len(data["worst"]) == 20
    assert data["problems"][0].startswith(f"{path}:62: ")


def test_shipped_profiles_price_rows_in_microseconds(tmp_path: Path) -> None:
    path = tmp_path / "g.csv"
    path.write_text(
        "gpu,dtype,op,m,n,k,batch,latency_us,source,framework,timing\n"
        "A100-SXM4-80GB,bf16,linear,8192,8192,8192,1,4300,x,vllm-0.14.0,cuda_graph\n"
    )
    row = validate_operators(path).rows[0]
    assert row.skipped is None
    assert row.measured == pytest.approx(4300)
    # 2 * 8192^3 FLOP on 312 TFLOP/s: not below 3524 us, nor half as fast
    assert row.predicted is not None
    assert row.low is not None
    assert row.high is not None
    assert 3524 <= row.predicted < 7000
    assert row.low < row.predicted < row.high


def test_transfer_scores_a_gpu_by_the_others_fits(tmp_path: Path) -> None:
    path = _table(tmp_path / "g.csv", n=14)
    other = _table(tmp_path / "h.csv", gpu="H200-SXM", n=6)
    path.write_text(path.read_text() + "".join(other.read_text().splitlines(keepends=True)[1:]))
    report = validate_operators(path, transfer=True)
    assert report.details["donors"] == {
        "H100-SXM5-80GB/gemm/nt/bf16": "H200-SXM",
        "H200-SXM/gemm/nt/bf16": "H100-SXM5-80GB",
    }
    assert (report.overall.n, report.overall.n_skipped) == (20, 0)
    least = fallback_spread().transfer_same_architecture_log_sigma
    for row in report.rows:
        assert row.low is not None
        assert row.high is not None
        assert np.log(row.high / row.low) >= 2 * Z90 * least


def test_transfer_needs_another_gpu_and_one_way_of_refitting(tmp_path: Path) -> None:
    path = _table(tmp_path / "g.csv", n=10)
    report = validate_operators(path, transfer=True)
    assert report.overall.n == 0
    assert {row.skipped for row in report.rows} == {
        "no other GPU of the table has bf16 gemm timed by cuda_graph"
    }
    with pytest.raises(UsageError, match="choose one"):
        validate_operators(path, cross_validate=True, transfer=True)
