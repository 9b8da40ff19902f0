"""Does what some runs taught hold for others? Groups of runs are held back, scored before and after.

A group is a model on a number of ranks. Groups go in turn to two halves; each half is scored by a profile
that learnt from the other half only, so every run is scored once and never by a profile that saw its group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from costmodel.errors import UsageError
from planner.learning.update import LearningRun, forget, linearise, new_runs, predictions, update
from planner.validation.scoring import Report, ScoredRow

if TYPE_CHECKING:
    from costmodel.hardware.schema import HardwareProfile
    from costmodel.predict import Prediction

__all__ = ["HeldBack", "check_learning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBack:
    """Held-back runs by the profile as fitted (`before`) and by what the other half taught it (`after`)."""

    before: Report
    after: Report
    before_width: float
    """Mean of ln(high / low) of the 90 % intervals."""
    after_width: float


def check_learning(
    profile: HardwareProfile,
    runs: Sequence[LearningRun],
    *,
    progress: Callable[[str], None] | None = None,
) -> HeldBack:
    """Both reports. A layer that the profile has is taken off first. Raises UsageError for one group only."""
    plain = profile if profile.learnt is None else forget(profile)
    groups = sorted({run.group for run in runs})
    if len(groups) < 2:
        raise UsageError(
            f"{len(runs)} runs of one group ({', '.join(groups)}): holding some back needs runs of at least "
            "two models or numbers of ranks"
        )
    once = new_runs(plain, runs)
    halves = [[i for i, run in enumerate(once) if groups.index(run.group) % 2 == half] for half in (0, 1)]
    known = linearise(plain, once, progress=progress)
    held = [once[i] for half in halves for i in half]
    before = predictions(plain, held)
    after: list[Prediction] = []
    for scored, taught in (halves, halves[::-1]):
        after += predictions(update(plain, known.of(taught)), [once[i] for i in scored])
    return HeldBack(
        before=_report(held, before),
        after=_report(held, after),
        before_width=_width(before),
        after_width=_width(after),
    )


def _width(found: Sequence[Prediction]) -> float:
    return sum(math.log(p.step_time_high_s / p.step_time_low_s) for p in found) / len(found)


def _report(runs: Sequence[LearningRun], found: Sequence[Prediction]) -> Report:
    rows = [
        ScoredRow(
            id=run.label,
            source=run.source,
            group=run.group,
            metric="step_time_s",
            measured=run.step_time_s,
            predicted=prediction.step_time_s,
            low=prediction.step_time_low_s,
            high=prediction.step_time_high_s,
        )
        for run, prediction in zip(runs, found, strict=True)
    ]
    return Report.of(rows)
