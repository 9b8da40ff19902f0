"""Measuring what decides, on a made-up machine: fake timers, one rank, no waiting."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibrate import runner as runner_module
from calibrate.asking import Again
from calibrate.benchmarks.base import Bench, Case
from calibrate.deciding import (
    BUDGET_ENDED,
    NOTHING_LEFT,
    SURE_BEFORE,
    WINNER_SURE,
    DecidingRunner,
    Outcome,
    read_outcome,
    write_outcome,
)
from calibrate.decision import Restated, Standing
from calibrate.journal import Journal
from calibrate.timing import Timed
from calibrate.wanted import CONSTANT, Item, Wanted
from costmodel.errors import MeasurementError
from tests.calibrate.machines import a_machine
from tests.calibrate.test_decision import a_choice, an_item

Truth = Callable[[Case], float]


def a_runner(path: Path, seconds: float = 60.0) -> DecidingRunner:
    bench = Bench(torch.device("cpu"), cache_bytes=1 << 20, flop_per_s=1e11, bytes_per_s=1e10, largest_s=1e-4)

    def agree(values: Sequence[float]) -> list[list[float]]:
        return [list(values)]

    return DecidingRunner(
        bench,
        agree=agree,
        journal=Journal(path, a_machine(), resume=False),
        visits={},
        deadline=time.monotonic() + seconds,
        slice_s=1e-3,
    )


def decide(
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    wanted: Wanted,
    truth: Truth,
    seconds: float = 60.0,
    again: Again | None = None,
) -> tuple[Outcome, list[str]]:
    """The outcome, and the m of the products in the order they were visited."""

    def timed(case: Case, bench: Bench, *, slice_s: float) -> Timed:
        return Timed(time_s=truth(case), spread=0.0, n=1, timing="eager_loop")

    monkeypatch.setattr(runner_module, "time_case", timed)
    found = a_runner(path, seconds)
    outcome = found.decide(wanted, again)
    assert outcome is not None
    assert found.journal is not None
    return outcome, [str(v.dims.get("m")) for v in found.journal.visits if v.kind == "gemm"]


def test_the_item_that_tells_most_comes_first_and_a_sure_winner_ends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    items = an_item(8, 0.05, 0.0), an_item(16, 0.0, 0.9), an_item(32, 0.9, 0.1)
    outcome, order = decide(
        monkeypatch,
        tmp_path / "s.jsonl",
        a_choice(*items),
        # what the first contender runs takes twice as long as was thought
        lambda case: 2e-3 if case.dims["m"] == 32 else 1e-3,
    )
    assert order[0] in {"16", "32"}
    assert set(order) == {"16", "32"}
    assert outcome.standing.winner == 1
    assert outcome.standing.probability >= 0.95
    assert "sure" in outcome.reason


def test_a_tie_uses_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = a_choice(an_item(8, 0.5, 0.0), an_item(16, 0.0, 0.5), gap=0.0)
    outcome, order = decide(monkeypatch, tmp_path / "s.jsonl", wanted, lambda case: 1e-3)
    assert outcome.reason == "nothing left to measure tells more"
    assert 0.4 < outcome.standing.probability < 0.95
    assert {order.count("8"), order.count("16")} == {4}  # each until its median is settled


def test_the_deadline_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = a_choice(an_item(8, 0.5, 0.0), an_item(16, 0.0, 0.5), gap=0.0)
    outcome, order = decide(monkeypatch, tmp_path / "s.jsonl", wanted, lambda case: 1e-3, seconds=-1.0)
    assert outcome.reason == "the budget ended"
    assert len(order) == 1


def test_what_cannot_run_here_is_counted_and_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def truth(case: Case) -> float:
        if case.dims["m"] == 8:
            raise RuntimeError("no such kernel here")
        return 1e-3

    unknown = Item(
        kind="moe",
        variant="balanced",
        dtype="fp32",
        dims={"num_tokens": 8},
        predicted_s=1.0,
        log_sigma=0.5,
        weights=(0.9, 0.0),
        together="moe",
    )
    wanted = a_choice(an_item(8, 0.5, 0.0), an_item(16, 0.0, 0.5), unknown)
    outcome, order = decide(monkeypatch, tmp_path / "s.jsonl", wanted, truth)
    assert outcome.n_unmeasurable == 2
    assert order.count("8") == 1


def test_a_constant_is_measured_by_the_cases_behind_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """autograd_s = (training chain - plain chain) / (blocks differentiated twice)."""
    constant = Item(
        kind=CONSTANT,
        variant="autograd_s",
        dtype="fp32",
        dims={},
        predicted_s=1e-5,
        log_sigma=0.5,
        weights=(0.5, 0.0),
        together="constant autograd_s",
    )
    times = {"training_chain": 8 * 2 * 1e-4, "plain_chain": 0.8e-4}
    outcome, _ = decide(
        monkeypatch, tmp_path / "s.jsonl", a_choice(constant), lambda case: times.get(case.variant, 1e-5)
    )
    # ten times as long as thought, of half the step: the other one wins
    assert outcome.standing.winner == 1
    assert math.isclose(outcome.standing.probability, 1.0, abs_tol=0.05)


def said(gap: float, sigma: float) -> Restated:
    """A fit that has the first of two contenders faster by `gap`, known to within `sigma`."""
    return Restated(
        step_times_s=(1.0, math.exp(gap)), covariance=((0.5 * sigma**2, 0.0), (0.0, 0.5 * sigma**2))
    )


def test_a_fit_that_disagrees_keeps_it_measuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sums of items call the winner sure at once; the fit does so the second time it is asked."""
    says = iter((said(0.1, 0.2), said(0.2, 0.05)))
    asked: list[Restated] = []

    def again() -> Restated:
        asked.append(next(says))
        return asked[-1]

    wanted = a_choice(an_item(8, 0.0, 0.9), an_item(16, 0.4, 0.0), gap=0.5)
    outcome, order = decide(monkeypatch, tmp_path / "a.jsonl", wanted, lambda case: 1e-3)
    assert (outcome.n_visits, outcome.reason) == (0, WINNER_SURE)
    outcome, order = decide(monkeypatch, tmp_path / "s.jsonl", wanted, lambda case: 1e-3, again=again)
    assert len(asked) == 2
    assert outcome.n_visits == len(order) >= 2
    assert outcome.reason == WINNER_SURE
    assert outcome.standing.probability == pytest.approx(float(asked[-1].chances()[0]))


def test_where_the_fit_never_agrees_the_end_is_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = a_choice(an_item(8, 0.0, 0.9), an_item(16, 0.4, 0.0), gap=0.5)
    for seconds, reason in ((60.0, NOTHING_LEFT), (-1.0, BUDGET_ENDED)):
        outcome, order = decide(
            monkeypatch,
            tmp_path / f"{seconds}.jsonl",
            wanted,
            lambda case: 1e-3,
            seconds=seconds,
            again=lambda: said(0.05, 0.3),
        )
        assert outcome.reason == reason
        assert order
        assert outcome.standing.probability < 0.95


def test_the_fit_ends_it_where_sums_are_unsure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is asked for now and then; here a tie by sums would have used all there is."""
    items = [an_item(8 * (k + 1), *(0.05, 0.0)[:: 1 if k % 2 else -1]) for k in range(30)]
    wanted = a_choice(*items, gap=0.0)
    outcome, order = decide(monkeypatch, tmp_path / "a.jsonl", wanted, lambda case: 1e-3)
    assert (outcome.n_visits, outcome.reason) == (120, NOTHING_LEFT)
    outcome, order = decide(
        monkeypatch, tmp_path / "s.jsonl", wanted, lambda case: 1e-3, again=lambda: said(0.3, 0.05)
    )
    assert outcome.reason == WINNER_SURE
    assert len(order) < 60


def test_the_reason_is_of_the_profile_that_was_written() -> None:
    ended = Outcome(standing=Standing(0, 1, 0.4), n_items=3, n_visits=7, reason=BUDGET_ENDED)
    assert ended.settled(Standing(0, 1, 0.6)).reason == BUDGET_ENDED
    assert ended.settled(Standing(0, 1, 0.6)).standing.probability == 0.6
    assert ended.settled(Standing(0, 1, 0.97)).reason == WINNER_SURE
    assert replace(ended, n_visits=0).settled(Standing(0, 1, 0.97)).reason == SURE_BEFORE


def test_the_outcome_reads_back(tmp_path: Path) -> None:
    outcome = Outcome(standing=Standing(1, 0, 0.97), n_items=3, n_visits=7, reason="why")
    write_outcome(outcome, tmp_path / "w.json")
    assert read_outcome(tmp_path / "w.json") == outcome
    with pytest.raises(MeasurementError, match="left no outcome"):
        read_outcome(tmp_path / "other.json")
