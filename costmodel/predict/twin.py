"""A second process that answers some of a forecaster's questions, so that a search uses two cores.

It is a fork: it starts from all that the forecaster knows by then, and nothing but questions and answers
passes between both. Answers are the numbers that this process would have computed itself, and what the
other one cannot answer is computed here: results do not depend on there being a twin.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from costmodel.errors import PlanError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from costmodel.predict.forecaster import Forecaster

__all__ = ["Answer", "Asked", "Twin", "answers_to", "can_fork"]

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

_WAITING = 2
"""Groups of questions given to the twin ahead of its answers: one in work, one so that it need not wait."""
_PATIENCE_S = 120.0
"""A twin that is silent for longer is given up."""


def can_fork() -> bool:
    """Whether a fork of this process is safe and would run beside it: on Linux, from the only thread of a
    process that nobody else started to share the cores."""
    return (
        sys.platform == "linux"
        and len(os.sched_getaffinity(0)) > 1
        and threading.active_count() == 1
        and threading.current_thread() is threading.main_thread()
        and multiprocessing.current_process().name == "MainProcess"
    )


class Twin:
    """A copy of a forecaster in a process of its own; use it in a `with` block, whose end ends the process.

    Forked at the first question, and again at the first after `renew`. Where it is not `wanted`, or this
    process cannot fork, nothing is ever asked of it.
    """

    def __init__(self, forecaster: Forecaster, *, wanted: bool) -> None:
        self._forecaster = forecaster
        self._wanted = wanted and can_fork()
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._asked = 0
        self._answers: list[Any] = []

    def __enter__(self) -> Twin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.renew()

    @property
    def wanted(self) -> bool:
        """Whether questions are of use."""
        return self._wanted

    def renew(self) -> None:
        """End the process; what is asked next is asked of a copy of the forecaster as it is then."""
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if pipe is not None:
            pipe.close()
        if process is not None:
            process.kill()
            process.join()

    def ask(self, question: Callable[[Forecaster, Any], Any], things: Sequence[Any]) -> Callable[[], Any]:
        """Put a question (a module's function) to the twin for every thing. Returns what waits for the
        answers (as of `answers_to`), or gives None where the twin has none."""
        if self._wanted and self._process is None:
            self._fork()
        self._send((question, tuple(things)))
        number, answers = self._asked, self._answers
        self._asked += 1

        def take() -> Any:
            while len(answers) <= number and answers is self._answers and self._pipe is not None:
                self._receive()
            return answers[number] if len(answers) > number else None

        return take

    def share(
        self, question: Callable[[Forecaster, Asked], Answer], groups: Sequence[Sequence[Asked]]
    ) -> list[list[Answer | PlanError]]:
        """Answers of both, group by group: the twin takes from the end while this process takes from the
        front. Things of one group share work."""
        left = deque(enumerate(groups))
        found: dict[int, list[Answer | PlanError]] = {}
        elsewhere: list[tuple[int, Callable[[], Any]]] = []
        while left:
            if self._wanted and self._n_waiting() < min(_WAITING, len(left) // 2):
                number, things = left.pop()
                elsewhere.append((number, self.ask(question, things)))
            else:
                number, things = left.popleft()
                found[number] = answers_to(self._forecaster, question, things)
        for number, take in elsewhere:
            answers = take()
            found[number] = (
                answers_to(self._forecaster, question, groups[number]) if answers is None else answers
            )
        return [found[number] for number in range(len(groups))]

    def _n_waiting(self) -> int:
        """Questions without an answer yet."""
        while self._pipe is not None and len(self._answers) < self._asked and self._pipe.poll():
            self._receive()
        return 0 if self._process is None else self._asked - len(self._answers)

    def _fork(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, other = context.Pipe()
        self._asked, self._answers = 0, []
        self._process = context.Process(
            target=_answer_all, args=(self._forecaster, other, self._pipe), name="twin", daemon=True
        )
        try:
            with warnings.catch_warnings():  # of the threads of BLAS libraries, which handle forks
                warnings.simplefilter("ignore", DeprecationWarning)
                self._process.start()
        except OSError:
            self._process = None
            self._give_up()
        other.close()

    def _send(self, message: Any) -> None:
        try:
            if self._pipe is not None:
                self._pipe.send(message)
        except OSError:
            self._give_up()

    def _receive(self) -> None:
        assert self._pipe is not None
        try:
            if self._pipe.poll(_PATIENCE_S):
                self._answers.append(self._pipe.recv())
            else:
                self._give_up()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._give_up()

    def _give_up(self) -> None:
        self._wanted = False
        self.renew()


def answers_to(
    forecaster: Forecaster, question: Callable[[Forecaster, Asked], Answer], things: Sequence[Asked]
) -> list[Answer | PlanError]:
    """The answer for every thing, or the PlanError in its place."""
    found: list[Answer | PlanError] = []
    for thing in things:
        try:
            found.append(question(forecaster, thing))
        except PlanError as error:
            found.append(error)
    return found


def _answer_all(forecaster: Forecaster, pipe: Connection, other: Connection) -> None:
    """What the twin does until the pipe closes. It leaves interruption and messages to the first process."""
    other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    while True:
        try:
            question, things = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answers = answers_to(forecaster, question, things)
        except Exception:  # the first process meets it too, and says so
            pipe.send(None)
        else:
            pipe.send(answers)
