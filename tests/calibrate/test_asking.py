"""Questions and answers beside a list, by two threads instead of two processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from calibrate.asking import Answers, ask
from calibrate.decision import Restated
from costmodel.errors import MeasurementError


def said(step_s: float) -> Restated:
    return Restated(step_times_s=(step_s, 2.0), covariance=((0.1, 0.05), (0.05, 1 / 3)))


@contextmanager
def answering(look: Callable[[], object]) -> Iterator[None]:
    """Looks until the block ends, as a process does that waits for its ranks."""
    over = threading.Event()

    def looking() -> None:
        while not over.wait(0.005):
            look()

    thread = threading.Thread(target=looking)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_each_question_has_its_answer(tmp_path: Path) -> None:
    wanted = tmp_path / "here.wanted.json"
    times = iter((1.0, 1.5, 1 / 3))
    answers = Answers(wanted, lambda: said(next(times)))
    with answering(answers.look):
        assert [ask(wanted) for _ in range(3)] == [said(1.0), said(1.5), said(1 / 3)]
    answers.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_no_answer(tmp_path: Path) -> None:
    wanted = tmp_path / "here.wanted.json"
    with answering(Answers(wanted, lambda: said(9.0)).look):
        ask(wanted)
    with answering(Answers(wanted, lambda: said(1.0)).look):
        assert ask(wanted) == said(1.0)


def test_without_an_answer_it_ends(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="no answer"):
        ask(tmp_path / "here.wanted.json", patience_s=0.05)


def test_answers_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="2 x 2 covariance"):
        Restated(step_times_s=(1.0, 2.0), covariance=((0.1,), (0.1,)))
    with pytest.raises(ValueError, match="above zero"):
        Restated(step_times_s=(0.0, 2.0), covariance=((0.1, 0.0), (0.0, 0.1)))
