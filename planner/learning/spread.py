"""A measured run, and how far runs lie from their forecast for reasons that are none of the machine's.

With k what the framework's own statement counts for, n runs of b models, and p the number of terms that the
runs determine (the trace of the posterior's hat matrix), over the residuals r = ln measured - ln forecast:

    residual^2 = (k stated^2 + sum (r - mean of its model)^2 - own^2) / (k + n - b)
    model^2    = (k stated^2 + sum over models (mean^2 - residual^2 / its runs)) / (k + b - p)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from costmodel.hardware.learnt import Learnt, learning_constants

if TYPE_CHECKING:
    from costmodel.estimate import FloatArray
    from costmodel.plan import Plan
    from costmodel.predict import Forecaster

__all__ = ["LearningRun", "Spread", "stated_variance"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRun:
    """One measured run and who forecasts it.

    `step_time_s`: at the speed the machine had when its profile was measured. `log_sigma`: spread of the
    run's own measurement. `model` and the plan's ranks say what is held back together.
    """

    fingerprint: str
    label: str
    model: str
    source: str
    plan: Plan
    forecaster: Forecaster
    step_time_s: float
    log_sigma: float = 0.0

    @property
    def group(self) -> str:
        """Model and number of ranks."""
        return f"{self.model}/{self.plan.world_size}"

    @property
    def framework(self) -> str:
        """Name of the framework profile."""
        return self.forecaster.framework.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Framework -> spread of single runs, and spread of models, of ln(measured / forecast)."""

    residual: Mapping[str, float]
    model: Mapping[str, float]

    @classmethod
    def stated(cls, before: Learnt, runs: Sequence[LearningRun]) -> Spread:
        """As learnt before, else as the frameworks' profiles state it."""
        constants = learning_constants()
        residual, model = dict(before.residual_log_sigma), dict(before.model_log_sigma)
        for run in runs:
            variance = stated_variance(run)
            own = 1.0 - constants.shared_fraction - constants.model_fraction
            residual.setdefault(run.framework, math.sqrt(own * variance))
            model.setdefault(run.framework, math.sqrt(constants.model_fraction * variance))
        return cls(residual=residual, model=model)

    @classmethod
    def estimated(
        cls, before: Learnt, runs: Sequence[LearningRun], off: FloatArray, n_fitted: float
    ) -> Spread:
        """From residuals `off` [n] of a fit of `n_fitted` terms, drawn to what was known before."""
        start = cls.stated(before, runs)
        weight = learning_constants().prior_runs + len(before.runs)
        residual, model = dict(start.residual), dict(start.model)
        blocks = _blocks(runs)
        for name in dict.fromkeys(run.framework for run in runs):
            parts = [places for (framework, _), places in blocks.items() if framework == name]
            within = sum(float(((off[p] - off[p].mean()) ** 2).sum()) for p in parts)
            own = sum(runs[i].log_sigma ** 2 for p in parts for i in p if len(p) > 1)
            free = sum(len(p) for p in parts) - len(parts)
            variance = (weight * start.residual[name] ** 2 + max(0.0, within - own)) / (weight + free)
            residual[name] = math.sqrt(variance)
            between = sum(max(0.0, float(off[p].mean()) ** 2 - variance / len(p)) for p in parts)
            share = n_fitted * sum(len(p) for p in parts) / len(runs)
            counted = max(weight + len(parts) - share, weight)
            model[name] = math.sqrt((weight * start.model[name] ** 2 + between) / counted)
        return cls(residual=residual, model=model)

    def covariance(self, runs: Sequence[LearningRun]) -> FloatArray:
        """Covariance [n, n] of ln(measured / forecast) of the runs, the machine as it is."""
        found = np.diag([run.log_sigma**2 + self.residual[run.framework] ** 2 for run in runs])
        for (framework, _), places in _blocks(runs).items():
            found[np.ix_(places, places)] += self.model[framework] ** 2
        return found


def _blocks(runs: Sequence[LearningRun]) -> dict[tuple[str, str], list[int]]:
    """(framework, model) -> places of its runs."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, run in enumerate(runs):
        found[run.framework, run.model].append(i)
    return found


def stated_variance(run: LearningRun) -> float:
    """Variance of ln(measured / forecast) that the run's framework states, or the least there is."""
    least = learning_constants().least_residual_log_sigma
    return max(run.forecaster.framework.residual_log_sigma, least) ** 2
