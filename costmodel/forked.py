"""A copy of an object in a process of its own, which answers questions about it on another core.

It is a fork: it starts from all that this process knows by then, and nothing but questions and answers passes
between both. Whoever asks works out here what the other one cannot answer, so that results do not depend on
there being one.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from costmodel.hardware.cores import usable_cores

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

__all__ = ["Answer", "Forked", "Held", "Thing", "can_fork"]

Held = TypeVar("Held")
Thing = TypeVar("Thing")
Answer = TypeVar("Answer")


def can_fork() -> bool:
    """Whether a fork of this process is safe and would run beside it: on Linux, from the only thread of a
    process that nobody else started to share the cores."""
    return (
        sys.platform == "linux"
        and usable_cores() > 1
        and threading.active_count() == 1
        and threading.current_thread() is threading.main_thread()
        and multiprocessing.current_process().name == "MainProcess"
    )


class Forked(Generic[Held]):
    """A copy of `held` in another process; use it in a `with` block, whose end ends the process.

    Forked at the first question, and again at the first after `renew`. Where it is not `wanted`, or this
    process cannot fork, nothing is ever asked of it. `silent`: what it writes to stdout and stderr is lost.
    One that says nothing for `patience_s` is given up.
    """

    def __init__(self, held: Held, *, wanted: bool, name: str, silent: bool, patience_s: float) -> None:
        self._held = held
        self._wanted = wanted and can_fork()
        self._name = name
        self._silent = silent
        self._patience_s = patience_s
        self._owner = os.getpid()
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._asked = 0
        self._answers: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.renew()

    @property
    def wanted(self) -> bool:
        """Whether questions are of use; never in other forks of this process."""
        return self._wanted and os.getpid() == self._owner

    def renew(self) -> None:
        """End the process; what is asked next is asked of a copy of what is held by then."""
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if pipe is not None:
            pipe.close()
        if process is not None:
            process.kill()
            process.join()

    def ask(self, question: Callable[[Held, Thing], Answer], thing: Thing) -> Callable[[], Answer | None]:
        """Put a question (a module's function) about what is held and a thing. Returns what waits for the
        answer, or gives None where there is none."""
        if not self.wanted:
            return lambda: None
        if self._process is None:
            self._fork()
        self._send((question, thing))
        number, answers = self._asked, self._answers
        self._asked += 1

        def take() -> Answer | None:
            while len(answers) <= number and answers is self._answers and self._there():
                self._receive()
            return answers[number] if len(answers) > number else None

        return take

    def n_waiting(self) -> int:
        """Questions without an answer yet."""
        while len(self._answers) < self._asked and self._there() and self._can_receive(0.0):
            self._receive()
        return 0 if self._process is None else self._asked - len(self._answers)

    def _there(self) -> bool:
        return self._pipe is not None and os.getpid() == self._owner

    def _can_receive(self, within_s: float) -> bool:
        return self._pipe is not None and self._pipe.poll(within_s)

    def _fork(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, other = context.Pipe()
        self._asked, self._answers = 0, []
        self._process = context.Process(
            target=_answer_all, args=(self._held, other, self._pipe, self._silent), name=self._name
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
            if self._can_receive(self._patience_s):
                self._answers.append(self._pipe.recv())
            else:
                self._give_up()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._give_up()

    def _give_up(self) -> None:
        self._wanted = False
        self.renew()


def _answer_all(held: Any, pipe: Connection, other: Connection, silent: bool) -> None:
    """What the other process does until the pipe closes. It leaves interruption to the first one."""
    other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if silent:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
    while True:
        try:
            question, thing = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = pickle.dumps(question(held, thing), pickle.HIGHEST_PROTOCOL)
        except Exception:  # the first process meets it too, and says so
            answer = pickle.dumps(None)
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            pipe.send_bytes(answer)
        except OSError:  # nobody listens any more
            return
