"""How sure a ranking is: P(A is faster than B), ties, and the measurement that would decide one.

All of it follows from the factors that predictions carry (`costmodel.predict.uncertainty`): what two plans
share cancels, what only one of them does remains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibrate.decision import Restated
from calibrate.wanted import SURE
from costmodel.estimate import FloatArray
from costmodel.predict.uncertainty import (
    component_of,
    difference_log_sigma,
    probability_shorter,
    relative_loadings,
)

if TYPE_CHECKING:
    from costmodel.predict import Forecaster, Prediction

__all__ = [
    "TIE_BELOW",
    "Deciding",
    "deciding_measurement",
    "probabilities_best",
    "probabilities_faster",
    "probability_faster",
    "restated",
    "tie",
]

TIE_BELOW = 1.0 - SURE
"""P below which a plan is not taken to be the faster one."""
_WORTH_NAMING = 0.1
"""Share of the variance of a difference below which a component decides nothing."""


def probabilities_faster(predictions: Sequence[Prediction], of: int = 0) -> FloatArray:
    """P [n] that each prediction's step is shorter than that of number `of` (0.5 for itself)."""
    times_s = np.array([p.step_time_s for p in predictions])
    _, loadings = relative_loadings([p.errors for p in predictions], list(times_s))
    gap = np.log(times_s[of]) - np.log(times_s)
    return probability_shorter(gap, difference_log_sigma(loadings, of))


def probability_faster(a: Prediction, b: Prediction) -> float:
    """P(a's step is shorter than b's): 1, 0.5 or 0 where nothing is uncertain."""
    return float(probabilities_faster((a, b), of=1)[0])


def probabilities_best(predictions: Sequence[Prediction]) -> FloatArray:
    """P [n] that each is the fastest of all, or alike the fastest (see `calibrate.decision.chances_best`)."""
    return restated(predictions).chances()


def restated(predictions: Sequence[Prediction]) -> Restated:
    """The predictions' step times, and the covariance of their ln."""
    times_s = [p.step_time_s for p in predictions]
    _, loadings = relative_loadings([p.errors for p in predictions], times_s)
    covariance = loadings @ loadings.T
    return Restated(
        step_times_s=tuple(times_s), covariance=tuple(tuple(map(float, row)) for row in covariance)
    )


def tie(a: Prediction, b: Prediction) -> bool:
    """Whether the two cannot be told apart: neither is faster with at least `SURE`."""
    return TIE_BELOW < probability_faster(a, b) < SURE


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciding:
    """One component of the difference of two plans, and what to measure to know it.

    `variance_share`: of the variance of ln(a / b). `probability_after`: of the one that leads now being the
    faster, on average over what the measurement may show.
    """

    component: str
    variance_share: float
    probability_after: float
    measure: str

    def to_dict(self) -> dict[str, Any]:
        """For `plan --json`."""
        return {name: getattr(self, name) for name in self.__slots__}


def deciding_measurement(
    a: Prediction, b: Prediction, forecaster: Forecaster | None = None
) -> tuple[Deciding, ...]:
    """What the difference of two plans hangs on, largest first; at least one where anything does.

    With the plans' `forecaster` the sizes to measure are named.
    """
    keys, loadings = relative_loadings([a.errors, b.errors], [a.step_time_s, b.step_time_s])
    parts: dict[str, float] = {}
    for key, difference in zip(keys, loadings[0] - loadings[1], strict=True):
        name = component_of(key)
        parts[name] = parts.get(name, 0.0) + float(difference) ** 2
    total = sum(parts.values())
    if total <= 0.0:
        return ()
    gap = abs(math.log(b.step_time_s / a.step_time_s))
    ordered = sorted(parts.items(), key=lambda item: (-item[1], item[0]))
    named = [(n, v) for i, (n, v) in enumerate(ordered) if i == 0 or v >= _WORTH_NAMING * total]
    return tuple(
        Deciding(
            component=name,
            variance_share=variance / total,
            probability_after=_sureness_after(gap, total, variance),
            measure=_what_to_measure(name, a, b, forecaster),
        )
        for name, variance in named
    )


def _sureness_after(gap: float, total: float, known: float) -> float:
    """Mean probability of the faster one once a component of variance `known` is measured.

    The gap is then normal with mean `gap` and variance `known`, what is left of the variance total - known.
    """
    if total - known <= 1e-12 * total:
        return 1.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    left = np.abs(gap + math.sqrt(known) * nodes)
    sure = probability_shorter(left, np.full_like(left, math.sqrt(total - known)))
    return float(np.sum(weights * sure) / np.sum(weights))


def _what_to_measure(component: str, a: Prediction, b: Prediction, forecaster: Forecaster | None) -> str:
    """A component as something to do."""
    sizes = "the sizes of both plans"
    if forecaster is not None:
        from planner.wanted import sizes_text

        sizes = sizes_text(component, forecaster, (a, b)) or sizes
    kind, _, rest = component.partition(" ")
    if kind == "fit":
        operator, variant, dtype = rest.split("/")
        return f"time {' '.join(filter(None, (operator, variant)))} in {dtype} at {sizes}"
    if kind == "collective":
        op, _, link = rest.partition("/")
        return f"time {op} over {link or 'the network'} at {sizes}"
    if kind == "host":
        return "measure the host's time per operator: foreshard calibrate --only host"
    return f"run both for a few steps: {a.plan} and {b.plan}"
