"""Rounds: every case once before any twice, resumed where they were, ended by rank 0's clock."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.benchmarks.base import Bench
from calibrate.journal import Journal, read_journal
from calibrate.runner import Runner, chosen_benchmarks, settled
from costmodel.errors import UsageError
from tests.calibrate.machines import a_machine


def a_runner(journal: Journal | None, visits: dict[str, list[float]], seconds: float) -> Runner:
    bench = Bench(
        torch.device("cpu"),
        cache_bytes=1 << 20,
        flop_per_s=1e11,
        bytes_per_s=1e10,
        largest_s=1e-4,
        n_points=0.25,
    )

    def agree(values: Sequence[float]) -> list[list[float]]:
        return [list(values)]

    return Runner(
        bench,
        agree=agree,
        journal=journal,
        visits=visits,
        deadline=time.monotonic() + seconds,
        slice_s=1e-3,
    )


def test_the_first_round_is_finished_when_time_is_already_up(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "s.jsonl", a_machine(), resume=False)
    a_runner(journal, {}, seconds=-1.0).run(["softmax"])
    counts = journal.counts()
    assert len(counts) >= 8
    assert set(counts.values()) == {1}


def test_visits_that_are_there_are_not_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    journal = Journal(path, a_machine(), resume=False)
    a_runner(journal, {}, seconds=-1.0).run(["softmax"])
    journal.close()
    _, visits = read_journal(path)
    kept = visits[: len(visits) // 2]
    again = Journal(tmp_path / "t.jsonl", a_machine(), resume=False)
    a_runner(again, {v.key: [v.time_s] for v in kept}, seconds=-1.0).run(["softmax"])
    assert {v.key for v in again.visits} == {v.key for v in visits[len(kept) :]}


def test_rounds_visit_every_case_before_any_a_second_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "s.jsonl", a_machine(), resume=False)
    a_runner(journal, {}, seconds=60.0).run(["softmax"], most_rounds=2)
    keys = [v.key for v in journal.visits]
    n = len(set(keys))
    assert keys == keys[:n] * 2


def test_cases_of_several_visits_have_them_a_third_of_the_first_round_apart(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "s.jsonl", a_machine(), resume=False)
    runner = a_runner(journal, {}, seconds=60.0)
    runner.bench.n_points = 1.0
    runner.run(["host", "softmax", "norm"], most_rounds=2)
    counts = journal.counts()
    host = [v.key for v in journal.visits if v.kind == "host"]
    assert {counts[key] for key in host} == {4}  # three in the first round, one in the second
    assert {n for key, n in counts.items() if key not in host} == {2}
    at = [number for number, v in enumerate(journal.visits) if v.key == host[0]]
    first_round = len(counts) + 2 * len(set(host))
    assert [at[i + 1] - at[i] for i in range(2)] == pytest.approx([first_round / 3] * 2, abs=len(set(host)))
    assert at[3] >= first_round


def test_long_calls_have_one_visit_in_the_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibrate.runner._LONG_S", 0.0)
    journal = Journal(tmp_path / "s.jsonl", a_machine(), resume=False)
    runner = a_runner(journal, {}, seconds=-1.0)
    runner.bench.n_points = 1.0
    runner.run(["host"])
    assert set(journal.counts().values()) == {1}


def test_a_small_budget_has_one_visit_of_each_case(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "s.jsonl", a_machine(), resume=False)
    a_runner(journal, {}, seconds=-1.0).run(["host"])
    assert set(journal.counts().values()) == {1}


def test_a_case_that_cannot_run_is_noted_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no such kernel here")

    monkeypatch.setattr(torch, "softmax", no)
    journal = Journal(tmp_path / "s.jsonl", a_machine(), resume=False)
    a_runner(journal, {}, seconds=60.0).run(["softmax"], most_rounds=2)
    failed = [v for v in journal.visits if v.note]
    assert failed
    assert all("no such kernel here" in v.note for v in failed)
    assert len({v.key for v in failed}) == len(failed)  # not tried a second time


@given(st.lists(st.floats(0.5, 1.5), min_size=1, max_size=3))
def test_too_few_visits_settle_nothing(times: list[float]) -> None:
    assert not settled(times)


def test_settled_by_the_width_of_the_interval() -> None:
    assert settled([1.0, 1.0, 1.0, 1.0])
    assert not settled([1.0, 1.3, 0.8, 1.1])
    assert settled([1.0, 1.001, 0.999, 1.0, 1.002])


def test_names() -> None:
    assert {"gemm", "conv", "attention", "host", "collectives", "overlap", "memory"} <= set(
        chosen_benchmarks(None)
    )
    assert chosen_benchmarks(["gemm", "gemm"]) == ("gemm",)
    with pytest.raises(UsageError, match=r"there are: .*gemm"):
        chosen_benchmarks(["gem"])
