"""The forecast of a step in the tables that a trace gives: by module, by operator kind, by part."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from costmodel.estimate import Z90
from costmodel.predict.module_costs import OperatorCost, forward_calls, operator_costs

if TYPE_CHECKING:
    from costmodel.plan import Plan
    from costmodel.predict import Forecast, Forecaster, Prediction

__all__ = ["Expected", "PredictedStep", "predict_step"]

_PARTS = {
    "kernel": ("compute", "recompute"),
    "communication": ("tp_comm", "cp_comm", "ep_comm", "dp_comm", "pp_comm"),
    "bubble": ("bubble",),
    "optimizer": ("optimizer",),
    "copy": ("offload",),
    "host": ("host",),
}
"""Part of a traced step -> parts of the forecast's breakdown."""
HOST = "host"
"""Kind of operators without a kernel: views."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Predicted seconds of a step with their 90 % interval."""

    time_s: float
    low_s: float
    high_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedStep:
    """One step as forecast. Modules and kinds: on a rank that holds them, all micro-batches."""

    prediction: Prediction
    """As calibrated; what follows is as slow as the machine was when the trace was taken."""
    step: Expected
    parts_s: Mapping[str, float]
    modules: Mapping[tuple[str, str], Expected]
    """(module, phase) -> kernel time."""
    kinds: Mapping[tuple[str, str], Expected]
    """(operator kind, phase) -> kernel time."""
    kind_of: Mapping[str, str]
    """Operator as the profiler names it -> kind."""
    forward: tuple[tuple[tuple[str, str], ...], ...]
    """Of every pipeline rank the (operator, module) of one micro-batch's forward, in order."""

    def forward_of(self, rank: int) -> tuple[tuple[str, str], ...]:
        """The forward of a rank of the world; pipelines lie outermost (`predict.placement`)."""
        plan = self.prediction.plan
        return self.forward[rank // (plan.world_size // plan.pp)]


def predict_step(forecaster: Forecaster, plan: Plan, *, slowdown: float = 1.0) -> PredictedStep:
    """Forecast a plan in a trace's tables, on a machine that is just now `slowdown` times as slow as when it
    was calibrated. Raises PlanError where the plan cannot be run."""
    forecast = forecaster.forecast(plan)
    prediction = forecast.prediction
    costs = operator_costs(forecaster, plan, bubble_fraction=forecast.step.bubble_fraction)
    modules: dict[tuple[str, str], list[OperatorCost]] = defaultdict(list)
    kinds: dict[tuple[str, str], list[OperatorCost]] = defaultdict(list)
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for cost in costs:
        votes[cost.target][cost.kind] += 1
        if cost.kind != HOST:
            modules[cost.module, cost.phase].append(cost)
            kinds[cost.kind, cost.phase].append(cost)
    times = plan.num_microbatches * slowdown
    return PredictedStep(
        prediction=prediction,
        step=Expected(
            time_s=prediction.step_time_s * slowdown,
            low_s=prediction.step_time_low_s * slowdown,
            high_s=prediction.step_time_high_s * slowdown,
        ),
        parts_s={
            part: slowdown * sum(prediction.breakdown_s.get(name, 0.0) for name in names)
            for part, names in _PARTS.items()
        },
        modules={key: _sum(members, times) for key, members in modules.items()},
        # a rank of a pipeline runs its share of every kind
        kinds={key: _sum(members, times / plan.pp) for key, members in kinds.items()},
        kind_of={name: found.most_common(1)[0][0] for name, found in votes.items()},
        forward=_forward(forecaster, forecast),
    )


def _forward(forecaster: Forecaster, forecast: Forecast) -> tuple[tuple[tuple[str, str], ...], ...]:
    """The calls of each pipeline rank's stages, in forward order of the stages."""
    units = list(forward_calls(forecaster, forecast.prediction.plan))
    stages = []
    for modules in forecast.prediction.stage_modules:
        stages.append([call for unit in units[: len(modules)] for call in unit])
        units = units[len(modules) :]
    return tuple(tuple(call for stage in held for call in stages[stage]) for held in forecast.step.stages_of)


def _sum(costs: Iterable[OperatorCost], times: float) -> Expected:
    """Their time, with what errs together as `costmodel.predict.uncertainty` has it."""
    errors: dict[str, float] = defaultdict(float)
    total = 0.0
    for cost in costs:
        total += cost.device_s
        for name, seconds in cost.errors:
            errors[name] += seconds
    sigma = math.hypot(*errors.values()) / total if total else 0.0
    total *= times
    return Expected(time_s=total, low_s=total * math.exp(-Z90 * sigma), high_s=total * math.exp(Z90 * sigma))
