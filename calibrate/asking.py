"""How ranks that measure for a decision ask the process that started them what a fit says by now.

Rank 0 writes a number beside the list of what is wanted and waits; whoever started the ranks fits all samples
taken so far, forecasts the contenders, and writes the answer with that number. Ranks know operators and
transfers, not plans, so they cannot forecast themselves.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from calibrate.decision import Restated
from costmodel.errors import MeasurementError

__all__ = ["Again", "Answers", "ask"]

Again = Callable[[], Restated]
"""What a fit of all samples taken so far says of the contenders."""

_LOOK_S = 0.02
_PATIENCE_S = 60.0


def ask(wanted: Path, *, patience_s: float = _PATIENCE_S) -> Restated:
    """Ask beside the list `wanted`, and wait for the answer. MeasurementError where none comes."""
    question, answer = _paths(wanted)
    number = _number_in(question) + 1
    _write(question, {"number": number})
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if _number_in(answer) == number:
            fields = json.loads(answer.read_text())
            return Restated(
                step_times_s=tuple(fields["step_times_s"]),
                covariance=tuple(map(tuple, fields["covariance"])),
            )
        time.sleep(_LOOK_S)
    raise MeasurementError(
        f"no answer beside {wanted} within {patience_s:g} s to what the measurements say; run it again with "
        "less else at work on this machine"
    )


class Answers:
    """Answers what ranks ask beside a list, while they are waited for; removes its files at the end."""

    def __init__(self, wanted: Path, again: Again) -> None:
        self._question, self._answer = _paths(wanted)
        self._again = again
        self._number = 0
        self.close()  # of a run that was killed

    def look(self) -> None:
        """Answer where something was asked since the last look."""
        number = _number_in(self._question)
        if number > self._number:
            self._number = number
            _write(self._answer, {"number": number, **asdict(self._again())})

    def close(self) -> None:
        """Remove question and answer."""
        for path in (self._question, self._answer):
            path.unlink(missing_ok=True)


def _paths(wanted: Path) -> tuple[Path, Path]:
    return wanted.with_suffix(".question.json"), wanted.with_suffix(".answer.json")


def _number_in(path: Path) -> int:
    try:
        return int(json.loads(path.read_text())["number"])
    except OSError:
        return 0


def _write(path: Path, fields: object) -> None:
    """Whole or not at all: the other side looks at any time."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(fields) + "\n")
    os.replace(part, path)
