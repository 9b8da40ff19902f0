"""P(A beats B), ties and what would decide them, on predictions with known errors."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.plan import Plan
from costmodel.predict import Prediction
from costmodel.predict.uncertainty import StepErrors
from planner.certainty import (
    deciding_measurement,
    probabilities_best,
    probabilities_faster,
    probability_faster,
    tie,
)
from tests.costmodel.predict.test_forecaster import forecaster


@lru_cache(maxsize=8)
def predicted(plan: str) -> Prediction:
    return forecaster().forecast(Plan.parse(plan)).prediction


def plan_with(step_s: float, plan: str = "dp4.mbs4", **errors: float) -> Prediction:
    """A prediction of this step time and these factors (seconds; "_" in names as a space)."""
    base = predicted(plan)
    scale = step_s / base.step_time_s
    names = tuple(name.replace("_", " ", 1).replace("__", "/") for name in errors)
    return replace(
        base,
        step_time_s=step_s,
        breakdown_s={k: v * scale for k, v in base.breakdown_s.items()},
        errors=StepErrors(keys=names, seconds=tuple(errors.values())),
    )


@settings(deadline=None)  # the first example traces the model
@given(st.floats(0.5, 2.0), st.floats(0.0, 0.3), st.floats(0.0, 0.3), st.floats(0.0, 0.3))
def test_either_is_the_faster(b_s: float, shared: float, own_a: float, own_b: float) -> None:
    a = plan_with(1.0, host=shared, framework=own_a)
    b = plan_with(b_s, host=shared * b_s, bubble=own_b)
    assert probability_faster(a, b) + probability_faster(b, a) == pytest.approx(1.0)
    if own_a == own_b == 0.0:  # in proportion to the step, what is shared says nothing
        assert probability_faster(a, b) == pytest.approx(float(b_s > 1.0) + 0.5 * (b_s == 1.0), abs=1e-9)


def test_more_that_is_shared_makes_surer() -> None:
    sure = [
        probability_faster(
            plan_with(1.0, host=s, framework=0.2 - s), plan_with(1.1, host=1.1 * s, bubble=0.2 - s)
        )
        for s in (0.0, 0.05, 0.1, 0.15)
    ]
    assert sure == sorted(sure)
    assert 0.5 < sure[0] < sure[-1]


def test_chances_of_being_best() -> None:
    plans = [plan_with(1.0, host=0.1), plan_with(1.05, framework=0.1), plan_with(3.0, bubble=0.1)]
    best = probabilities_best(plans)
    assert best.sum() == pytest.approx(1.0)
    assert best[2] == 0.0
    assert best[0] == pytest.approx(probability_faster(plans[0], plans[1]), abs=0.03)
    assert np.allclose(probabilities_faster(plans, of=1), [probability_faster(p, plans[1]) for p in plans])


def test_a_tie_and_what_decides_it() -> None:
    a = plan_with(1.0, fit_gemm__nt__fp16=0.03, collective_all_reduce__nvlink3=0.1, host=0.02)
    b = plan_with(1.04, "dp2.tp2.mbs4", fit_gemm__nt__fp16=0.03, host=0.021)
    assert tie(a, b)
    assert not tie(plan_with(1.0, host=0.01), plan_with(1.5, bubble=0.01))
    first = deciding_measurement(a, b)[0]
    assert first.component == "collective all_reduce/nvlink3"
    assert first.variance_share > 0.95
    assert "all_reduce" in first.measure
    assert "nvlink3" in first.measure
    assert probability_faster(a, b) < first.probability_after <= 1.0


def test_the_sizes_to_measure_are_named() -> None:
    a, b = predicted("dp4.mbs4"), plan_with(1.0, "dp2.tp2.mbs4", fit_gemm__nt__fp32=0.3)
    first = deciding_measurement(a, b, forecaster())[0]
    assert first.component == "fit gemm/nt/fp32"
    assert "m 256" in first.measure  # 4 samples of 64 tokens
    assert "n 128..1024" in first.measure
    other = plan_with(1.0, "dp2.tp2.mbs4", collective_all_reduce__nvlink3=0.3)
    assert "ranks 2" in deciding_measurement(plan_with(1.0), other, forecaster())[0].measure


def test_knowing_all_that_differs_makes_sure() -> None:
    a, b = plan_with(1.0, host=0.1), plan_with(1.01)
    (only,) = deciding_measurement(a, b)
    assert only.probability_after == 1.0
    assert deciding_measurement(a, a) == ()


def test_residuals_are_told_by_running() -> None:
    a, b = plan_with(1.0, framework=0.1), plan_with(1.01, "dp2.tp2.mbs4")
    assert "dp2.tp2.mbs4" in deciding_measurement(a, b)[0].measure
