"""Does what some runs taught hold for others? Groups of runs are held back, scored before and after.

A group is a model on a number of ranks. Groups go to two halves like the fields of a chessboard, so that
each half has every model and every number of ranks where there are several of both. Each half is scored by a
profile that learnt from the other half only: every run once, and never by a profile that saw its group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from costmodel.errors import UsageError
from planner.learning.spread import LearningRun
from planner.learning.update import forget, linearise, new_runs, predictions, update
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
    before_ratio: float
    """high / low of the 90 % intervals, geometric mean."""
    after_ratio: float


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
    halves = _halves(once)
    known = linearise(plain, once, progress=progress)
    held = [once[i] for half in halves for i in half]
    before = predictions(plain, held)
    after: list[Prediction] = []
    for scored, taught in (halves, halves[::-1]):
        after += predictions(update(plain, known.of(taught)), [once[i] for i in scored])
    return HeldBack(
        before=_report(held, before),
        after=_report(held, after),
        before_ratio=_ratio(before),
        after_ratio=_ratio(after),
    )


def _halves(runs: Sequence[LearningRun]) -> list[list[int]]:
    models = sorted({run.model for run in runs})
    sizes = sorted({run.plan.world_size for run in runs})
    colours = [models.index(run.model) + sizes.index(run.plan.world_size) for run in runs]
    if len({colour % 2 for colour in colours}) == 1:  # a diagonal: take its fields in turn
        groups = sorted({run.group for run in runs})
        colours = [groups.index(run.group) for run in runs]
    return [[i for i, colour in enumerate(colours) if colour % 2 == half] for half in (0, 1)]


def _ratio(found: Sequence[Prediction]) -> float:
    widths = [math.log(p.step_time_high_s / p.step_time_low_s) for p in found]
    return math.exp(sum(widths) / len(widths))


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
