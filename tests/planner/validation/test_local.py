"""`validate run` as a whole: what cannot be forecast or run is named, the rest is compared."""

from __future__ import annotations

import json

import pytest

from costmodel.errors import ModelArgumentError, PlanError
from planner.cli import main
from planner.validation.local import validate_local

HARDWARE = "epyc-9005-core"
FAST = ["--repeats", "1", "--steps", "1", "-H", HARDWARE]


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["validate", "run", *FAST, *args])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


@pytest.mark.distributed
def test_a_plan_that_cannot_be_forecast_leaves_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    plans = ["-p", "mbs64", "-p", "pp99.gbs99"]
    code, out, err = run(capsys, "-m", "mlp-validation", *plans, "--json")
    assert code == 3
    whole, not_forecast = json.loads(out)["rows"]
    assert whole["measured"] > 0.0
    assert whole["predicted"] > 0.0
    assert not_forecast["measured"] is None
    assert "pp * vpp = 99" in not_forecast["skipped"]
    assert "1 of 2 runs were not compared: mlp-validation/pp99.gbs99" in err


def test_where_nothing_can_be_forecast_the_reason_is_the_error() -> None:
    with pytest.raises(PlanError, match="pp \\* vpp = 99"):
        validate_local(models=["mlp-validation"], plans=["pp99.gbs99"], hardware=HARDWARE)


def test_what_is_no_plan_or_no_model_ends_it_at_once() -> None:
    with pytest.raises(PlanError):
        validate_local(models=["mlp-validation"], plans=["mbs64", "dq2"], hardware=HARDWARE)
    with pytest.raises(ModelArgumentError):
        validate_local(models=["gpt9"], plans=["mbs64"], hardware=HARDWARE, global_batch_size=64)
