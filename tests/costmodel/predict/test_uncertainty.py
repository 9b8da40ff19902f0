"""Errors by what errs together: splitting keeps the variance, shared factors cancel, probabilities hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.framework import load_framework
from costmodel.graph.model_graph import Operator, Phase
from costmodel.hardware.pricing import operator_times
from costmodel.hardware.store import list_profiles, load_profile
from costmodel.plan import Plan
from costmodel.predict.pricing import price_operators
from costmodel.predict.uncertainty import (
    StepErrors,
    component_of,
    difference_log_sigma,
    error_model,
    probability_shorter,
    relative_loadings,
)
from tests.costmodel.hardware.devices import plain_fit, profile
from tests.costmodel.predict.test_forecaster import forecaster

COMPONENTS = st.dictionaries(
    st.sampled_from(["fit gemm/nt/fp16", "collective all_reduce/nvlink3", "host", "bubble", "framework"]),
    st.floats(0.0, 10.0),
)


def by_component(errors: StepErrors) -> dict[str, float]:
    """Component -> seconds of one standard deviation, its factors together."""
    found: dict[str, float] = {}
    for key, seconds in zip(errors.keys, errors.seconds, strict=True):
        found[component_of(key)] = math.hypot(found.get(component_of(key), 0.0), seconds)
    return found


@given(COMPONENTS)
def test_splitting_keeps_the_variance_of_every_component(components: dict[str, float]) -> None:
    errors = error_model().factors(components, Plan.parse("dp2.tp2.pp2.gbs8"))
    assert by_component(errors) == pytest.approx({k: v for k, v in components.items() if v > 0})
    assert errors.log_sigma(2.0) == pytest.approx(math.hypot(*components.values()) / 2.0)


def test_what_two_plans_share_cancels() -> None:
    model, components = error_model(), {"fit gemm/nt/fp16": 0.3, "framework": 0.4}
    plans = [Plan.parse(text) for text in ("dp4.gbs8", "dp4.gbs8", "dp2.tp2.gbs8", "tp4.gbs8.mbs8")]
    errors = [model.factors(components, plan) for plan in plans]
    _, loadings = relative_loadings(errors, [1.0] * 4)
    sigma = difference_log_sigma(loadings, 0)
    assert sigma[1] == 0.0
    assert 0.0 < sigma[2] <= sigma[3] < math.sqrt(2.0) * errors[0].log_sigma(1.0)
    apart = model.factors({"collective p2p/other": 0.5}, plans[0])
    _, loadings = relative_loadings([errors[0], apart], [1.0, 1.0])
    assert difference_log_sigma(loadings, 0)[1] == pytest.approx(math.hypot(0.3, 0.4, 0.5))


def test_experts_split_otherwise_are_other_shapes() -> None:
    model, products = error_model(), {"fit gemm/nt/fp16": 0.3}
    plans = [Plan.parse(f"dp4.tp2.ep4{width}") for width in ("", ".etp2", ".etp1")]
    keys = [{k for k in model.factors(products, plan).keys if "@mbs" in k} for plan in plans]
    assert keys[0] == keys[1]
    assert not keys[0] & keys[2]


def test_probability_is_that_of_drawn_factors() -> None:
    rng = np.random.default_rng(1)
    loadings = rng.normal(0.0, 0.1, (2, 6))
    gap = 0.05
    drawn = loadings @ rng.standard_normal((6, 200_000))
    share = float(np.mean(drawn[0] < drawn[1] + gap))
    found = probability_shorter(np.array([gap]), difference_log_sigma(loadings, 1)[:1])
    assert found[0] == pytest.approx(share, abs=0.005)


def test_without_uncertainty_the_shorter_is_sure() -> None:
    assert probability_shorter(np.array([1.0, 0.0, -1.0]), np.zeros(3)).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("plan", ["dp4.mbs4", "dp2.tp2.pp2.gbs8", "dp4.zero3.mbs4"])
def test_the_interval_is_that_of_the_factors(plan: str) -> None:
    p = forecaster().forecast(Plan.parse(plan)).prediction
    sigma = p.errors.log_sigma(p.step_time_s)
    assert p.step_time_high_s == pytest.approx(p.step_time_s * math.exp(1.6448536 * sigma))
    names = {component_of(key).partition(" ")[0] for key in p.errors.keys}
    assert "fit" in names
    assert names <= {"fit", "collective", "host", "bubble", "framework"}


def test_sizes_of_one_fit_err_apart_but_for_what_they_have_in_common() -> None:
    small, large = (
        Operator(
            index=i,
            phase=Phase.FORWARD,
            target="aten.mm.default",
            module="m",
            kind="gemm",
            variant="nt",
            dtype="fp16",
            dims={"batch": 1, "m": size, "n": size, "k": size},
            flop=2 * size**3,
            bytes_read=4 * size * size,
            bytes_written=2 * size * size,
            inputs=(),
            outputs=(),
        )
        for i, size in enumerate((512, 4096))
    )
    framework, operators = load_framework("pytorch"), (small, large, large)
    for extra in (0.0, 0.3):
        fit = plain_fit(dtype="fp16").model_copy(update={"extra_log_sigma": extra})
        priced = price_operators(operators, profile(fit), framework)
        found: dict[str, float] = {}
        for errors in priced.errors(operators):
            for name, seconds in errors:
                found[name] = found.get(name, 0.0) + seconds
        in_common = {"fit gemm/nt/fp16": extra * float(priced.device_s.sum())} if extra else {}
        own_sigma = math.sqrt(float(priced.log_sigma[0]) ** 2 - extra**2)
        # calls of one size err alike
        own = {
            f"fit gemm/nt/fp16 @{size}": own_sigma * float(priced.device_s[i]) * calls
            for i, (size, calls) in enumerate((("1x512x512x512", 1), ("1x4096x4096x4096", 2)))
        }
        assert found == pytest.approx({**in_common, **own})


def test_nothing_but_a_datasheet_errs_as_one() -> None:
    sizes = {"m": [64, 4096], "n": [64, 4096], "k": [64, 4096], "batch": [1, 1]}
    estimate = operator_times(profile(), "gemm", "nt", "fp16", sizes)
    assert estimate.common == pytest.approx(estimate.log_sigma)


def test_a_cpu_errs_alike_at_all_sizes() -> None:
    sizes = {"m": [64, 4096], "n": [64, 4096], "k": [64, 4096], "batch": [1, 1]}
    cpu = next(load_profile(name) for name in list_profiles() if load_profile(name).device.kind == "cpu")
    estimate = operator_times(cpu, "gemm", "nt", "fp32", sizes)
    assert estimate.common == pytest.approx(estimate.log_sigma)


def test_transfers_err_by_collective_and_link() -> None:
    p = forecaster().forecast(Plan.parse("dp2.tp2.pp2.gbs8")).prediction
    transfers = {n for n in by_component(p.errors) if n.startswith("collective")}
    assert "collective all_reduce/nvlink3" in transfers
    assert all(name.partition("/")[2] for name in transfers)


def test_a_factor_is_named_once() -> None:
    with pytest.raises(AssertionError):
        StepErrors(keys=("host", "host"), seconds=(1.0, 1.0))
