"""A second process for half of the questions: the same answers, whatever becomes of it."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import pytest

from costmodel import forked
from costmodel.errors import PlanError
from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.predict import Forecaster, Prediction
from costmodel.predict.twin import Twin
from planner.search import search

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")

HERE = os.getpid()


@pytest.fixture(autouse=True)
def _may_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test runners may have threads of their own, which do nothing while a test runs."""
    monkeypatch.setattr(forked, "can_fork", lambda: True)


def made() -> Forecaster:
    sizes = {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 256, "n_positions": 32}
    return Forecaster(
        source=resolve("gpt2", overrides=sizes, seq_len=32),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework("megatron"),
    )


def without_age(prediction: Prediction) -> dict[str, Any]:
    return {name: value for name, value in prediction.to_dict().items() if name != "hardware"}


def square(forecaster: Forecaster, number: int) -> tuple[int, int]:
    if number == 7:
        raise PlanError("seven")
    time.sleep(0.02)
    return number**2, os.getpid()


def dies_elsewhere(forecaster: Forecaster, number: int) -> int:
    if os.getpid() != HERE:
        os._exit(1)
    return number


def fails_elsewhere(forecaster: Forecaster, number: int) -> int:
    if os.getpid() != HERE:
        raise ZeroDivisionError
    return number


def prints(forecaster: Forecaster, number: int) -> int:
    os.write(1, b"no word of the twin's is shown\n")
    return number


def test_a_search_on_two_cores_finds_the_same() -> None:
    alone = search(made(), n_devices=16, global_batch_size=32)
    shared = search(made(), n_devices=16, global_batch_size=32, processes=2)
    assert shared.n_excluded == alone.n_excluded
    for of in (lambda found: [r.prediction for r in found.ranked], lambda found: found.pareto):
        assert [without_age(p) for p in of(shared)] == [without_age(p) for p in of(alone)]
    assert [r.why for r in shared.ranked] == [r.why for r in alone.ranked]
    assert (shared.proven, shared.n_skipped) == (alone.proven, alone.n_skipped)


def test_answers_come_in_order_from_both() -> None:
    groups = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(8)]
    with Twin(made(), wanted=True) as other:
        found = other.share(square, groups)
    answers = [answer for group in found for answer in group]
    refused = answers.pop(7)
    assert isinstance(refused, PlanError)
    assert [a[0] for a in answers] == [n**2 for n in range(24) if n != 7]  # type: ignore[index]
    assert len({a[1] for a in answers}) == 2, "both should have worked"  # type: ignore[index]


@pytest.mark.parametrize("question", [dies_elsewhere, fails_elsewhere])
def test_what_the_twin_cannot_answer_is_answered_here(question: object) -> None:
    with Twin(made(), wanted=True) as other:
        assert other.share(question, [[n] for n in range(9)]) == [[n] for n in range(9)]  # type: ignore[arg-type]


def test_it_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with Twin(made(), wanted=True) as other:
        assert other.ask_all(prints, [1])() == [1]
    assert capfd.readouterr().out == ""


def test_it_ends_with_the_block() -> None:
    with Twin(made(), wanted=True) as other:
        found = other.ask_all(square, [2])()
    with pytest.raises(ProcessLookupError):
        os.kill(found[0][1], 0)


def test_unwanted_it_is_never_asked() -> None:
    with Twin(made(), wanted=False) as other:
        found = other.share(square, [[1], [2], [3]])
        assert other.ask_all(square, [4])() is None
    assert found == [[(n**2, HERE)] for n in (1, 2, 3)]
