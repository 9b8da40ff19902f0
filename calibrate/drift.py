"""Visits restated at one speed of the machine, by the yardsticks that were taken between them.

A shared processor changes speed while it is measured. Every visit is divided by how slow the nearest
yardsticks were, so that all samples of a profile speak of the same machine: the one at its median speed.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from calibrate.environment import Machine
from calibrate.journal import Sample, Visit, merge_visits

__all__ = ["YARDSTICK", "at_one_speed", "fitted_samples"]

YARDSTICK = "yardstick"
_NEAREST = 6
"""Yardsticks that a visit is judged by: single ones are noisy, and speed changes over seconds."""
_FEWEST = 2 * _NEAREST


def at_one_speed(visits: Sequence[Visit]) -> list[Visit]:
    """The visits in order, with times at the machine's median speed; unchanged where yardsticks are few.

    Each goes by the yardsticks of its own setting: of all ranks at work, or of one while the others wait.
    """
    taken: dict[str, list[tuple[int, float]]] = {}
    for position, visit in enumerate(visits):
        if visit.kind == YARDSTICK and math.isfinite(visit.time_s):
            taken.setdefault(visit.setting, []).append((position, visit.time_s))
    return [
        replace(visit, time_s=visit.time_s / _slowness(taken.get(visit.setting, []), position))
        if visit.kind != YARDSTICK
        else visit
        for position, visit in enumerate(visits)
    ]


def fitted_samples(machine: Machine, visits: Sequence[Visit], *, since: int = 0) -> list[Sample]:
    """The samples that a profile is fitted to: on a CPU those at one speed (a GPU's kernels do not follow the
    speed of its host). `since`: of visits from this number on."""
    at_speed = at_one_speed(visits) if machine.device_kind == "cpu" else visits
    return merge_visits(at_speed[since:])


def _slowness(yardsticks: Sequence[tuple[int, float]], position: int) -> float:
    """Median of the yardsticks nearest to a position, over that of all."""
    if len(yardsticks) < _FEWEST:
        return 1.0
    at = bisect.bisect(yardsticks, (position, 0.0))
    first = min(max(0, at - _NEAREST // 2), len(yardsticks) - _NEAREST)
    now = statistics.median(seconds for _, seconds in yardsticks[first : first + _NEAREST])
    return now / statistics.median(seconds for _, seconds in yardsticks)
