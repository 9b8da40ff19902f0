"""Validation of collectives: report shape, skipped rows, cross-validation on made tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from planner.validation.collectives import validate_collectives

HEAD = "gpu,n_gpus,n_nodes,op,message_bytes,latency_us,link,impl,timing,source,quality\n"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    lines = []
    for n in (2, 4, 8):
        for power in range(9, 31):
            size = 2.0**power
            time_us = (6 + 2 * (n - 1) + 2 * (n - 1) / n * size / 2.3e5) * float(np.exp(rng.normal(0, 0.02)))
            lines.append(
                f"A100-SXM4-80GB,{n},1,all_reduce,{size:.0f},{time_us},NVLink3,nccl,nccl-tests,made,"
            )
    lines.append("A100-SXM4-80GB,2,1,all_reduce,1024,500,NVLink3,nccl,nccl-tests,made,rank_skew")
    lines.append("A100-SXM4-80GB,2,1,all_reduce,none,500,NVLink3,nccl,nccl-tests,made,")
    path = tmp_path_factory.mktemp("t") / "c.csv"
    path.write_text(HEAD + "\n".join(lines) + "\n")
    return path


def test_cross_validated_report(table: Path) -> None:
    report = validate_collectives(table, cross_validate=True)
    assert len(report.rows) == 68
    assert report.overall.n == 66
    assert report.overall.n_skipped == 2
    assert report.overall.mape is not None
    assert report.overall.mape < 0.06
    assert report.overall.interval_coverage is not None
    assert report.overall.interval_coverage > 0.75
    (held,) = [e for e in report.details["extrapolation"] if e["by"] == "overall"]
    assert held["n"] == 22
    assert held["mape"] < 0.1


def test_rows_keep_the_table_s_order_and_reasons(table: Path) -> None:
    report = validate_collectives(table, cross_validate=True)
    assert [row.id for row in report.rows[:3]] == ["1", "2", "3"]
    reasons = [row.skipped for row in report.rows if row.skipped]
    assert any("rank_skew" in reason for reason in reasons)
    assert any("'none' is not a number" in reason for reason in reasons)


def test_json_has_the_common_shape(table: Path) -> None:
    data = json.loads(validate_collectives(table, cross_validate=True).to_json())
    assert set(data["rows"][0]) == {
        "id", "source", "group", "metric", "measured", "predicted", "low", "high", "skipped", "labels",
    }  # fmt: skip
    assert {s["by"] for s in data["summary"]} >= {"overall", "source", "gpu", "kind", "ranks"}
    row = data["rows"][0]
    assert row["low"] <= row["predicted"] <= row["high"]


def test_a_profile_that_is_not_there_is_the_reason(table: Path, tmp_path: Path) -> None:
    report = validate_collectives(table, hardware=str(tmp_path / "none.json"))
    assert report.overall.n == 0
    assert all(row.skipped for row in report.rows)


def test_a_shape_that_the_profile_does_not_list_is_priced(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text(
        HEAD + "B300,16,2,alltoall,8589934592,44861,NVLink5 + 16x400G EFA,nccl,nccl-tests,made,\n"
    )
    (row,) = validate_collectives(path).rows
    assert row.skipped is None
    assert row.predicted == pytest.approx(44861, rel=0.3)
