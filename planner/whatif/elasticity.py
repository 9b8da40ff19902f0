"""Elasticities: what 1 % more of one speed, of GPUs or of batch does to the step time.

    e = d ln(step time) / d ln(speed), by a central difference over re-priced forecasts of one plan

so e = -0.6 says: 1 % more of it, 0.6 % less time. The plan is held: at the best of many plans the derivative
of the best time is that of the best plan's own time (envelope theorem), until another plan takes over.

The interval of e comes from what the forecast does not know: arithmetic, memory traffic and collectives are
re-priced slower and faster by one standard deviation of their fits, and what that does to e is added up in
squares. GPUs and batch come in whole numbers: their elasticity is that of an arc, a doubling with the plan
searched anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.errors import InfeasibleError, PlanError, UsageError
from costmodel.estimate import Z90
from costmodel.predict.uncertainty import difference_log_sigma, relative_loadings, unit_errors
from costmodel.predict.units import expand
from planner.whatif.levers import LEVERS, scaled

if TYPE_CHECKING:
    from costmodel.plan import Plan
    from costmodel.predict import Forecaster, Prediction

__all__ = ["Elasticity", "arc_elasticities", "elasticities", "error_sigmas", "log_ratio_sigma"]

_STEP = 0.01
"""1 % to each side."""
_COMPUTING = ("compute",)
_STREAMING = ("memory", "kernel_overhead")
_COLLECTIVES = ("intra_link", "inter_link", "link_latency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Elasticity:
    """d ln(step time) / d ln(what) with its 90 % interval; None, with the reason, where it cannot be had."""

    what: str
    about: str
    value: float | None
    low: float | None = None
    high: float | None = None
    kind: str = "derivative"
    """derivative: at 1 %; arc: over a doubling, the plan searched anew."""
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain fields."""
        return {
            "what": self.what,
            "about": self.about,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "kind": self.kind,
            "reason": self.reason,
        }


def error_sigmas(forecaster: Forecaster, plan: Plan) -> tuple[float, float]:
    """Standard deviations of ln(time) of the plan's operators taken together, and of its widest collective.

    What errs together is as `costmodel.predict.uncertainty` has it.
    """
    units = expand(forecaster, plan)
    total_s = sum(unit.seconds(1.0) for unit in units)
    by_fit = (seconds for name, seconds in unit_errors(units).items() if name.startswith("fit "))
    operators = math.hypot(*by_fit) / total_s if total_s else 0.0
    gradients = max(sum(unit.elements) for unit in units) * forecaster.framework.gradient_comm_bytes
    outputs = max(unit.shard.output_bytes for unit in units)
    axes = (
        ("dp", plan.dp * plan.cp, "all_reduce", gradients),
        ("tp", plan.tp, "all_reduce", outputs),
        ("pp", plan.pp, "p2p", outputs),
    )
    sigmas = [
        float(forecaster.collective(plan, op, float(size), axis).log_sigma[0])
        for axis, degree, op, size in axes
        if degree > 1
    ]
    return operators, max(sigmas, default=0.0)


def elasticities(
    forecaster: Forecaster, plan: Plan, *, levers: Iterable[str] | None = None
) -> tuple[Elasticity, ...]:
    """Elasticity of the plan's step time in every lever (or in those named), strongest first.

    Raises PlanError where the plan cannot be run, UsageError on an unknown lever.
    """
    names = [LEVERS[name].name for name in (LEVERS if levers is None else levers)]
    middle = _derivatives(forecaster, plan, {*names, *_COMPUTING, *_STREAMING}, {})
    moving = [name for name in names if middle[name]]
    spread = dict.fromkeys(names, 0.0)
    for group, sigma in _sources(forecaster, plan, middle):
        slow, fast = (
            _derivatives(forecaster, plan, moving, dict.fromkeys(group, math.exp(sign * sigma)))
            for sign in (-1.0, 1.0)
        )
        for name in moving:
            spread[name] += (0.5 * (fast[name] - slow[name])) ** 2
    found = [
        Elasticity(
            what=name,
            about=LEVERS[name].about,
            value=middle[name],
            low=middle[name] - Z90 * math.sqrt(spread[name]),
            high=middle[name] + Z90 * math.sqrt(spread[name]),
        )
        for name in names
    ]
    return tuple(sorted(found, key=lambda e: e.value or 0.0))


def _sources(
    forecaster: Forecaster, plan: Plan, middle: Mapping[str, float]
) -> list[tuple[tuple[str, ...], float]]:
    """(levers that err together, standard deviation of ln speed): arithmetic, traffic, collectives.

    Arithmetic and traffic err alike and apart from each other, so that together they are as uncertain as the
    plan's operators are: s hypot(e_a, e_t) = sigma (|e_a| + |e_t|), with their elasticities e.
    """
    operators, collectives = error_sigmas(forecaster, plan)
    shares = [sum(abs(middle[name]) for name in group) for group in (_COMPUTING, _STREAMING)]
    together = math.hypot(*shares)
    each = operators * sum(shares) / together if together else 0.0
    found = ((_COMPUTING, each), (_STREAMING, each), (_COLLECTIVES, collectives))
    return [(group, sigma) for group, sigma in found if sigma]


def _derivatives(
    forecaster: Forecaster, plan: Plan, names: Iterable[str], around: Mapping[str, float]
) -> dict[str, float]:
    """Central differences of ln(step time), on hardware whose levers are `around`."""
    found = {}
    for name in names:
        log_s = []
        for factor in (1.0 / (1.0 + _STEP), 1.0 + _STEP):
            factors = {**around, name: around.get(name, 1.0) * factor}
            log_s.append(math.log(scaled(forecaster, factors).forecast(plan).prediction.step_time_s))
        found[name] = (log_s[1] - log_s[0]) / (2.0 * math.log1p(_STEP))
    return found


def log_ratio_sigma(a: Prediction, b: Prediction) -> float:
    """Standard deviation of ln(step time of a / that of b), as `planner.search.probability_faster` has it."""
    _, loadings = relative_loadings([a.errors, b.errors], [a.step_time_s, b.step_time_s])
    return float(difference_log_sigma(loadings, 0)[1])


def arc_elasticities(
    forecaster: Forecaster,
    best: Prediction,
    search: Callable[[Forecaster, int, int], Prediction],
) -> tuple[Elasticity, ...]:
    """Elasticities over a doubling of the GPUs (same batch) and of the batch (same GPUs).

    `search`: (forecaster, GPUs, batch) -> best prediction there. That of the batch is of the time per sample.
    """
    n, batch = best.plan.world_size, best.plan.global_batch_size
    return (
        _arc(forecaster, best, search, "gpus", "twice the GPUs, same batch", 2 * n, batch),
        _arc(forecaster, best, search, "batch", "twice the batch, same GPUs; time per sample", n, 2 * batch),
    )


def _arc(
    forecaster: Forecaster,
    best: Prediction,
    search: Callable[[Forecaster, int, int], Prediction],
    what: str,
    about: str,
    n: int,
    batch: int,
) -> Elasticity:
    try:
        other = search(forecaster, n, batch)
    except (InfeasibleError, PlanError, UsageError) as error:
        return Elasticity(what=what, about=about, value=None, kind="arc", reason=str(error))
    per_sample = best.plan.global_batch_size / batch
    value = math.log(other.step_time_s * per_sample / best.step_time_s) / math.log(2.0)
    half = Z90 * log_ratio_sigma(best, other) / math.log(2.0)
    return Elasticity(what=what, about=about, value=value, low=value - half, high=value + half, kind="arc")
