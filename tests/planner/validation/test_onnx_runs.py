"""ONNX Runtime for real: kernels measured, a model exported and run, its forecast beside it."""

from __future__ import annotations

import pytest

from calibrate.onnx_kernels import executor_profile, measure_kernels
from costmodel.errors import MeasurementError, UsageError
from costmodel.hardware.store import load_profile
from planner import api
from planner.validation.onnx_runs import export_model, validate_onnx

pytest.importorskip("onnxruntime")


@pytest.mark.alone
@pytest.mark.distributed
@pytest.mark.slow
def test_a_real_run_beside_its_forecast() -> None:
    report = validate_onnx(models=["mlp-validation"], profile=load_profile("epyc-core"))
    assert [row.skipped for row in report.rows] == [None], "outputs equal torch's"
    for row in report.rows:
        # a shipped profile against whatever machine this is, and whatever else it does: no closer
        assert abs(row.error) < 0.9, f"{row.id}: {row.error:+.0%}"
        assert row.metric == "forward_time_s"


def test_kernels_replace_torch_s_kind_by_kind() -> None:
    torch_profile = load_profile("epyc-core")
    tables = measure_kernels("x", kinds=["softmax"])
    profile = executor_profile(torch_profile, tables)
    assert {f.form for f in profile.operators if f.kind == "softmax"}
    assert len([f for f in profile.operators if f.kind == "softmax"]) == 1
    kept = [f for f in torch_profile.operators if f.kind == "gemm"]
    assert [f for f in profile.operators if f.kind == "gemm"] == kept


def test_what_cannot_be_exported_is_named() -> None:
    import torch

    from costmodel.models import BuiltModel

    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if bool(x.sum() > 0) else x * 2

    built = BuiltModel(module=Odd(), args=(torch.ones(2),), kwargs={})
    with pytest.raises(MeasurementError, match=r"torch\.onnx cannot export"):
        export_model(built)


def test_executors_there_are() -> None:
    with pytest.raises(UsageError, match="must be torch, or onnxruntime"):
        api.validate_run(models=None, plans=None, hardware="epyc-core", executor="tvm")
    with pytest.raises(UsageError, match="no plans"):
        api.validate_run(models=None, plans=["dp1"], hardware="epyc-core", executor="onnxruntime")
