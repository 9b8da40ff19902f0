"""Questions to a copy in another process: answers in order, and none where there is nobody to ask."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from costmodel import forked
from costmodel.forked import Forked, can_fork

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")

ROOT = str(Path(__file__).parents[2])


def ends(pid: int, within_s: float = 10.0) -> bool:
    """Whether a process that is no child of this one is gone, or waits to be collected, in time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def _may_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test runners may have threads of their own, which do nothing while a test runs."""
    monkeypatch.setattr(forked, "can_fork", lambda: True)


def made(
    held: object, *, wanted: bool = True, silent: bool = True, patience_s: float = 60.0
) -> Forked[object]:
    return Forked(held, wanted=wanted, name="other", silent=silent, patience_s=patience_s)


def both(held: list[int], thing: int) -> tuple[list[int], int]:
    return held, thing


def pid(held: object, thing: object) -> int:
    return os.getpid()


def fails(held: object, thing: object) -> None:
    raise ZeroDivisionError


def has_no_pickle(held: object, thing: object) -> object:
    return lambda: None


def says(held: object, thing: str) -> str:
    os.write(1, thing.encode())
    return thing


def sleeps(held: object, thing: float) -> float:
    time.sleep(thing)
    return thing


def asks(held: Forked[object], thing: object) -> object:
    return held.ask(pid, thing)()


@pytest.mark.usefixtures("_may_fork")
def test_answers_are_of_what_is_held_and_come_to_who_asked() -> None:
    with made([1]) as other:
        takes = [other.ask(both, n) for n in range(3)]
        assert [take() for take in reversed(takes)] == [([1], 2), ([1], 1), ([1], 0)]
        assert takes[0]() == ([1], 0)
        assert other.ask(pid, None)() != os.getpid()


@pytest.mark.usefixtures("_may_fork")
def test_a_new_one_knows_what_has_changed() -> None:
    held = [1]
    with made(held) as other:
        late = other.ask(both, 0)
        held.append(2)
        other.renew()
        assert other.ask(both, 0)() == ([1, 2], 0)
        assert late() is None


@pytest.mark.usefixtures("_may_fork")
@pytest.mark.parametrize("question", [fails, has_no_pickle])
def test_what_cannot_be_answered_is_none_and_the_next_is(question: object) -> None:
    with made([1]) as other:
        assert other.ask(question, None)() is None  # type: ignore[arg-type]
        assert other.ask(both, 1)() == ([1], 1)


@pytest.mark.usefixtures("_may_fork")
def test_a_dead_one_answers_nothing() -> None:
    with made(None) as other:
        number = other.ask(pid, None)()
        assert number is not None
        os.kill(number, signal.SIGKILL)
        assert other.ask(pid, None)() is None
        assert not other.wanted


@pytest.mark.usefixtures("_may_fork")
def test_one_that_is_silent_for_too_long_is_given_up() -> None:
    with made(None, patience_s=0.05) as other:
        assert other.ask(sleeps, 60.0)() is None
        assert not other.wanted


@pytest.mark.usefixtures("_may_fork")
def test_another_fork_has_nobody_to_ask() -> None:
    with made(None) as first:
        assert first.ask(pid, None)() is not None
        with made(first) as second:
            assert second.ask(asks, None)() is None
        assert first.ask(pid, None)() is not None


@pytest.mark.usefixtures("_may_fork")
@pytest.mark.parametrize(("silent", "heard"), [(True, ""), (False, "word")])
def test_what_it_writes(silent: bool, heard: str, capfd: pytest.CaptureFixture[str]) -> None:
    with made(None, silent=silent) as other:
        assert other.ask(says, "word")() == "word"
    assert capfd.readouterr().out == heard


def test_unwanted_it_is_never_asked() -> None:
    with made(None, wanted=False) as other:
        assert other.ask(pid, None)() is None


def test_no_fork_from_a_thread() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(can_fork()))
    thread.start()
    thread.join()
    assert found == [False]


_STARTS = """
import os, time
from costmodel.forked import Forked
def pid(held, thing):
    return os.getpid()
with Forked(None, wanted=True, name="other", silent=True, patience_s=60.0) as other:
    print(other.ask(pid, 0)() or 0, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_it_does_not_outlive_a_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _STARTS], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    number = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert number > 0
    assert ends(number)
