"""The spread of a step's time from the spreads of what it is made of.

Errors of operators that one fit prices are the same kind of error, so they add up linearly; different
fits, collectives and the framework's own residual are independent and add up in squares:

    sigma_step^2 = (sum_fit (sum of its operators' t * sigma)^2 + (comm * sigma_comm)^2) / step^2 + sigma_fw^2
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.predict.units import Unit

__all__ = ["step_log_sigma"]


def step_log_sigma(
    units: Sequence[Unit],
    breakdown_s: Mapping[str, float],
    step_time_s: float,
    *,
    comm_log_sigma: float,
    framework: FrameworkProfile,
) -> float:
    """Standard deviation of ln(step time).

    The units' own errors are summed over one micro-batch of all stages and scaled to the share of the
    step that is spent computing.
    """
    by_fit: dict[str, float] = {}
    total = 0.0
    for unit in units:
        for (fit, _part), seconds in unit.costs.error_s.items():
            by_fit[fit] = by_fit.get(fit, 0.0) + seconds
        total += unit.seconds(1.0)
    relative = math.sqrt(sum(v * v for v in by_fit.values())) / total if total else 0.0
    exposed = sum(breakdown_s.get(k, 0.0) for k in ("dp_comm", "pp_comm"))
    share = exposed / step_time_s if step_time_s else 0.0
    return math.sqrt(
        ((1.0 - share) * relative) ** 2 + (share * comm_log_sigma) ** 2 + framework.residual_log_sigma**2
    )
