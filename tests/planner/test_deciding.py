"""`calibrate --for`, on made-up machines and with two real ranks."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from calibrate import runner
from calibrate.asking import ask
from calibrate.benchmarks.base import Bench, Case
from calibrate.deciding import (
    BUDGET_ENDED,
    NOTHING_LEFT,
    SURE_BEFORE,
    WINNER_SURE,
    DecidingRunner,
    Outcome,
    write_outcome,
)
from calibrate.decision import Decision, Standing
from calibrate.environment import Machine
from calibrate.journal import Journal, read_journal, samples_path
from calibrate.timing import Timed
from calibrate.wanted import SURE, item_name, read_wanted
from calibrate.worker import Settings
from costmodel.hardware.store import load_profile, save_profile
from costmodel.plan import Plan
from planner.certainty import probabilities_best, probability_faster
from planner.deciding import decide, list_for
from tests.calibrate.machines import a_bench
from tests.calibrate.test_asking import answering
from tests.planner.test_cli import run
from tests.planner.test_wanted import PROBLEM, forecaster, predictions


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


def made_up_machine(monkeypatch: pytest.MonkeyPatch, factor: Callable[[str], float]) -> None:
    """No ranks are started and nothing is timed: an operator takes `factor` of its name times what the first
    list says."""
    said_s: dict[str, float] = {}

    def measured_here(settings: Settings, *rest: object) -> None:
        look = rest[-1]
        assert settings.wanted is not None
        assert callable(look)
        wanted = read_wanted(settings.wanted)
        for item in wanted.items:
            said_s.setdefault(item.name, item.predicted_s)

        def timed(case: Case, bench: Bench, *, slice_s: float) -> Timed:
            time_s = said_s.get(item_name(case), 1e-5) * factor(item_name(case))
            return Timed(time_s=time_s, spread=0.0, n=1, timing="eager_loop")

        monkeypatch.setattr(runner, "time_case", timed)
        machine = Machine.here(world_size=2, backend="gloo")
        journal = Journal(settings.samples, machine, resume=settings.resume)
        taken: dict[str, list[float]] = {}
        for visit in journal.visits:
            taken.setdefault(visit.key, []).append(visit.time_s)
        ranks = DecidingRunner(
            a_bench(),
            agree=lambda values: [list(values)],
            journal=journal,
            visits=taken,
            deadline=time.monotonic() + settings.seconds,
            slice_s=1e-3,
        )
        with answering(look):
            outcome = ranks.decide(wanted, lambda: ask(settings.wanted or Path()))
        journal.close()
        assert outcome is not None
        write_outcome(outcome, settings.wanted)

    monkeypatch.setattr("calibrate.api._launch", measured_here)


def random_factor(seed: int) -> Callable[[str], float]:
    """Up to four times as long or as short as the base says, each by itself."""
    return lambda name: 4.0 ** (2.0 * random.Random(f"{seed} {name}").random() - 1.0)


@pytest.mark.parametrize("seed", [0, 1, 2, 6, 17, 35, 47])  # of the last four sums of items are wrongly sure
def test_the_reason_the_figure_and_the_profile_agree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    """Sums of items, pairs of plans and the profile's forecasts give three figures; what is said is one."""
    made_up_machine(monkeypatch, random_factor(seed))
    out = tmp_path / "here.json"
    decided = decide(a_plan_file(tmp_path), out=out, budget_s=60.0)
    assert decided is not None
    on_profile = PROBLEM.forecaster(load_profile(out))
    again = [on_profile.forecast(Plan.parse(c.plan)).prediction for c in decided.contenders]
    assert [p.step_time_s for p in again] == pytest.approx([c.after_s for c in decided.contenders])
    chances = [c.probability_after for c in decided.contenders]
    assert probabilities_best(again) == pytest.approx(chances, abs=0.02)
    probability = decided.winner.probability_after
    assert decided.outcome.standing.probability == pytest.approx(probability)
    assert decided.outcome.reason == (WINNER_SURE if probability >= SURE else NOTHING_LEFT)


def test_a_winner_that_is_sure_before_is_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, out = tmp_path / "plan.json", tmp_path / "here.json"
    slow = [p.to_dict() for p in predictions() if str(p.plan) in ("pp2.mbs16.gbs64", "dp2.mbs32.zero3")]
    path.write_text(json.dumps({"problem": PROBLEM.to_dict(), "plans": slow}))
    made_up_machine(monkeypatch, lambda name: pytest.fail(f"{name} was measured"))
    decided = decide(path, out=out)
    assert decided is not None
    assert decided.winner.probability_after == decided.winner.probability_before >= SURE
    assert decided.outcome.reason == SURE_BEFORE
    assert decided.outcome.n_visits == 0
    assert load_profile(out) == decided.profile


def test_what_was_measured_is_kept_and_gone_on_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made_up_machine(monkeypatch, random_factor(1))
    plans, out = a_plan_file(tmp_path), tmp_path / "here.json"
    first = decide(plans, out=out, budget_s=60.0)
    visits = read_journal(samples_path(out))[1]
    second = decide(plans, out=out, budget_s=60.0)
    assert first is not None
    assert second is not None
    assert second.outcome.n_visits < 0.5 * first.outcome.n_visits
    assert read_journal(samples_path(out))[1][: len(visits)] == visits
    assert second.winner.plan == first.winner.plan
    fresh = decide(plans, out=out, budget_s=60.0, resume=False)
    assert fresh is not None
    assert fresh.outcome.n_visits > 0.5 * first.outcome.n_visits
    assert visits[0].key == read_journal(samples_path(out))[1][0].key


def test_a_base_counts_its_own_samples_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The profile is written over its own base: where nothing new was measured it says the same again."""
    made_up_machine(monkeypatch, lambda name: 1.5)
    out = save_profile(load_profile("epyc-core"), tmp_path / "here.json")
    problem = replace(PROBLEM, hardware=str(out))
    plans = tmp_path / "plan.json"
    listed = [p.to_dict() for p in predictions()]
    plans.write_text(json.dumps({"problem": problem.to_dict(), "plans": listed}))
    first = decide(plans, out=out, budget_s=60.0)

    def nothing_measured(settings: Settings, *rest: object) -> None:
        assert settings.wanted is not None
        write_outcome(Outcome(standing=Standing(0, 1, 0.5), n_items=1, reason=BUDGET_ENDED), settings.wanted)

    monkeypatch.setattr("calibrate.api._launch", nothing_measured)
    second = decide(plans, out=out, budget_s=60.0)
    assert first is not None
    assert second is not None
    assert first.outcome.n_visits > 0
    was, now = (decided.profile.model_dump(mode="json") for decided in (first, second))
    assert now["operators"] == was["operators"]
    assert now["network"] == was["network"]
    for contender in second.contenders:
        assert contender.after_s == pytest.approx(contender.before_s, rel=1e-3)


def test_who_was_no_contender_and_may_be_faster_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("planner.wanted._MOST_CONTENDERS", 2)
    made_up_machine(monkeypatch, lambda name: 2.0)
    texts = ("dp2.mbs32", "pp2.mbs16.gbs64", "dp2.mbs32.zero1", "tp2.mbs64")
    listed = [forecaster().forecast(Plan.parse(text)).prediction.to_dict() for text in texts]
    plans, out = tmp_path / "plan.json", tmp_path / "here.json"
    plans.write_text(json.dumps({"problem": PROBLEM.to_dict(), "plans": listed}))
    decided = decide(plans, out=out, budget_s=60.0)
    assert decided is not None
    left = set(texts) - {c.plan for c in decided.contenders}
    on_profile = PROBLEM.forecaster(load_profile(out))
    winner, *others = (
        on_profile.forecast(Plan.parse(plan)).prediction for plan in (decided.winner.plan, *sorted(left))
    )
    able = {str(p.plan) for p in others if probability_faster(p, winner) > 1.0 - SURE}
    assert able
    assert set(decided.others) == able
    assert decided.to_dict()["others"] == list(decided.others)
    code, text, _ = run(capsys, "calibrate", "--for", str(plans), "--out", str(out), "--budget", "60s")
    assert code == 0
    assert f"{len(able)} more of the list may be faster" in text


def test_plans_that_are_alike_are_one_contender() -> None:
    """A model without attention has nothing to recompute selectively: one plan under two names."""
    texts = ("dp2.mbs32", "dp2.mbs32.selective", "pp2.mbs16.gbs64", "dp2.mbs32.zero3")
    found = list_for(forecaster(), [Plan.parse(text) for text in texts])
    named = {str(c.plan): alike for c, alike in zip(found.contenders, found.alike, strict=True)}
    assert named["dp2.mbs32"] == ("dp2.mbs32.selective",)
    assert "dp2.mbs32.selective" not in named
    assert len(named) == 2
    only = list_for(forecaster(), [Plan.parse(text) for text in texts[:2]])
    assert Decision(only.wanted).standing().probability == 1.0


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
    code, _, err = run(capsys, "calibrate", "--for", str(tmp_path / "no.json"), "--hosts", "hosts.toml")
    assert code == 2
    assert "this machine alone" in err


def test_what_is_no_list_is_said_in_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    one = {"problem": PROBLEM.to_dict(), "plans": [predictions()[0].to_dict()]}
    other = {**one, "problem": {**PROBLEM.to_dict(), "hardware": "h100-sxm"}}
    for text, exit_code, message in (
        ("no", 1, "not JSON"),
        ("{}", 1, "it lacks 'plans'"),
        ('{"plans": []}', 1, "it holds no plan"),
        ("[1, 2]", 1, "not a list of plans"),
        (json.dumps(one), 3, "of 1 plan in the list 1 can be predicted"),
        (json.dumps(other), 2, "cuda device, this machine's is cpu; measure on a machine like that"),
    ):
        path.write_text(text)
        code, out, err = run(capsys, "calibrate", "--for", str(path), "--out", str(tmp_path / "here.json"))
        assert (code, out) == (exit_code, "")
        assert message in " ".join(err.split())
        assert "Error(" not in err
    code, _, err = run(capsys, "calibrate", "--for", str(tmp_path))
    assert code == 1
    assert "Is a directory" in err
