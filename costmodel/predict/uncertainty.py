"""The spread of a step's time from the spreads of what it is made of.

Errors of operators that one fit prices are the same kind of error, so they add up linearly; different
fits, collectives and the framework's own residual are independent and add up in squares:

    sigma_step^2 = (sum_fit (sum of its operators' t * sigma)^2 + (comm * sigma_comm)^2) / step^2 + sigma_fw^2
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from costmodel.predict.learnt import residual_variance

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.hardware.learnt import Learnt
    from costmodel.predict.units import Unit

__all__ = ["step_log_sigma"]


def step_log_sigma(
    units: Sequence[Unit],
    breakdown_s: Mapping[str, float],
    step_time_s: float,
    *,
    comm: tuple[str, float],
    framework: FrameworkProfile,
    learnt: Learnt | None = None,
) -> float:
    """Standard deviation of ln(step time).

    The units' own errors are summed over one micro-batch of all stages and scaled to the share of the
    step that is spent computing. `comm`: link term and spread of ln(time) of exposed transfers. `learnt`:
    what runs taught takes away from it, see `learnt.residual_variance`.
    """
    by_fit: dict[str, float] = {}
    total = 0.0
    for unit in units:
        for (fit, _part), seconds in unit.costs.error_s.items():
            by_fit[fit] = by_fit.get(fit, 0.0) + seconds
        total += unit.seconds(1.0)
    exposed = sum(breakdown_s.get(k, 0.0) for k in ("dp_comm", "pp_comm"))
    share = exposed / step_time_s if step_time_s else 0.0
    moved: dict[str, float] = {}
    for fit, seconds in by_fit.items():
        kind = fit.partition("/")[0]
        moved[kind] = math.hypot(moved.get(kind, 0.0), (1.0 - share) * seconds / total if total else 0.0)
    link, comm_log_sigma = comm
    moved[link] = math.hypot(moved.get(link, 0.0), share * comm_log_sigma)
    return math.sqrt(residual_variance(learnt, framework, moved))
