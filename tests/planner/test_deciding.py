"""`calibrate --for`, with two real ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibrate.journal import read_journal, samples_path
from costmodel.hardware.store import load_profile
from planner.deciding import decide
from tests.planner.test_cli import run
from tests.planner.test_wanted import PROBLEM, predictions


def a_plan_file(folder: Path) -> Path:
    path = folder / "plan.json"
    plans = [p.to_dict() for p in predictions()]
    path.write_text(json.dumps({"problem": PROBLEM.to_dict(), "plans": plans}))
    return path


@pytest.mark.distributed
@pytest.mark.slow
def test_it_measures_what_the_contenders_run_and_decides(tmp_path: Path) -> None:
    out = tmp_path / "here.json"
    decided = decide(a_plan_file(tmp_path), out=out, budget_s=2.0)
    assert decided is not None
    assert load_profile(out) == decided.profile
    assert sum(c.probability_after for c in decided.contenders) == pytest.approx(1.0)
    assert decided.winner.after_s == min(c.after_s for c in decided.contenders)
    data = decided.to_dict()
    assert data["winner"] == decided.winner.plan
    assert data["ended"]
    assert decided.outcome.n_visits >= 1
    _, visits = read_journal(samples_path(out))
    assert len(visits) >= decided.outcome.n_visits
    assert decided.profile.provenance["base"] == load_profile("epyc-core").name


def test_bad_calls_end_with_a_message(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "calibrate", "--for", str(tmp_path / "no.json"))
    assert code == 1
    assert "not a list of plans" in err
    code, _, err = run(capsys, "calibrate", "--base", "epyc-core")
    assert code == 2
    assert "needs --for" in err
    code, _, err = run(capsys, "calibrate", "--for", str(tmp_path / "no.json"), "--only", "gemm")
    assert code == 2
    assert "exclude each other" in err
