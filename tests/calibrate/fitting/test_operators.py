"""Fits recover what made the samples, never score a shape they saw, and know how wrong they are."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.fitting.operators import cross_validate, fit_operator, fitting_groups
from calibrate.samples import SampleTable
from costmodel.errors import MeasurementError
from costmodel.hardware.datasheets import datasheets
from costmodel.hardware.forms.evaluate import evaluate_fit, form_of
from costmodel.hardware.forms.gemm import GemmForm
from costmodel.hardware.pricing import choose_fit, operator_times
from tests.costmodel.hardware.devices import device, profile

DEVICE = datasheets()["A100-SXM4-80GB"].device
FORM = GemmForm()


def _samples(
    n: int, *, noise: float, frameworks: tuple[str, ...] = ("one-1.0",), seed: int = 0
) -> SampleTable:
    """Times of the form itself with a smooth distortion it cannot express, and log-normal noise."""
    rng = np.random.default_rng(seed)
    dims = {name: np.exp2(rng.integers(4, 14, n).astype(float)) for name in ("m", "n", "k")}
    theta = {p.name: p.start for p in FORM.parameters(DEVICE, "bf16", "nt")}
    time_s = FORM.physical(theta, DEVICE, dims, "bf16", "nt") * np.exp(0.15 * np.sin(np.log(dims["n"])))
    tables = []
    for number, name in enumerate(frameworks):
        shift = np.exp(0.2 * number + noise * rng.normal(size=n))
        tables.append(
            SampleTable.of(
                "gemm",
                dims,
                time_s=time_s * shift,
                variant="nt",
                dtype="bf16",
                timing="cuda_graph",
                device="A100-SXM4-80GB",
                source="made",
                framework=name,
            )
        )
    return SampleTable.concat(tables)


def test_held_out_error_is_near_the_noise_and_intervals_hold() -> None:
    table = _samples(350, noise=0.03)
    check = cross_validate(table, DEVICE, folds=3)
    error = np.abs(np.expm1(check.log_error))
    assert error.mean() < 0.05
    assert np.abs(check.physical_log_error).mean() > 1.5 * np.abs(check.log_error).mean()
    assert 0.83 <= check.coverage <= 0.97


def test_fit_evaluates_as_it_was_scored() -> None:
    table = _samples(200, noise=0.02)
    fit = fit_operator(table, DEVICE, folds=3)
    estimate = evaluate_fit(fit, DEVICE, table.dims)
    error = np.abs(estimate.median_s / table.time_s - 1)
    assert error.mean() < 0.05
    assert fit.residual.mape < 0.08
    assert sum(region.n for region in fit.residual.regions) <= len(table)
    assert (fit.n_samples, fit.source, fit.timing) == (200, "made", "cuda_graph")


def test_frameworks_get_their_own_shift() -> None:
    table = _samples(120, noise=0.01, frameworks=("one-1.0", "two-1.0"))
    fit = fit_operator(table, DEVICE, folds=3)
    assert {a.framework for a in fit.adjustments} == {"one-1.0", "two-1.0"}
    one, two = (
        evaluate_fit(fit, DEVICE, table.dims, framework=name).median_s for name in ("one-1.0", "two-1.0")
    )
    assert np.median(two / one) == pytest.approx(np.exp(0.2), rel=0.03)


def test_shapes_are_held_out_whole() -> None:
    # every shape twice, once right and once off by its own random factor: a fit that saw the other row of a
    # shape would predict the factor, one that did not cannot
    table = _samples(60, noise=0.0, frameworks=("one-1.0", "two-1.0"))
    factor = np.exp(0.5 * np.random.default_rng(5).normal(size=int(table.shape_ids().max()) + 1))
    off = factor[table.shape_ids()]
    spoiled = SampleTable.of(
        "gemm", table.dims, time_s=table.time_s * off, variant="nt", dtype="bf16", timing="cuda_graph",
        device="A100-SXM4-80GB", framework=list(table.framework),
    )  # fmt: skip
    check = cross_validate(spoiled, DEVICE, folds=3)
    assert np.abs(check.log_error).mean() > 0.25


def test_few_samples_still_fit() -> None:
    fit = fit_operator(_samples(6, noise=0.02), DEVICE)
    assert fit.correction is None
    assert fit.residual.log_sigma > 0


def test_groups_do_not_mix() -> None:
    table = _samples(30, noise=0.02)
    other = SampleTable.of(
        "gemm", table.dims, time_s=table.time_s * 3, variant="nt", dtype="bf16", timing="event_eager",
        device="A100-SXM4-80GB",
    )  # fmt: skip
    both = SampleTable.concat([table, other])
    with pytest.raises(MeasurementError, match="2 groups"):
        fit_operator(both, DEVICE)
    fits = [fit_operator(rows, DEVICE) for _, rows in fitting_groups(both)]
    assert [fit.timing for fit in fits] == ["cuda_graph", "event_eager"]
    assert "floor_s" in fits[1].parameters


def test_variants_that_differ_in_a_size_share_one_fit() -> None:
    gpu = device("H100-SXM5-80GB")
    form = form_of("moe")
    rng = np.random.default_rng(3)
    n = 60
    dims = {
        "num_tokens": np.exp2(rng.integers(0, 14, n)),
        "hidden": np.exp2(rng.integers(10, 13, n)),
        "inter": np.exp2(rng.integers(9, 13, n)),
        "topk": np.exp2(rng.integers(0, 4, n)),
        "num_experts": np.full(n, 64.0),
        "moe_tp": np.ones(n),
        "moe_ep": np.exp2(rng.integers(0, 6, n)),
    }
    theta = {p.name: p.start for p in form.parameters(gpu, "bf16", "balanced")}
    tables = [
        SampleTable.of(
            "moe",
            dims,
            time_s=form.physical(theta, gpu, dims, "bf16", variant) * np.exp(rng.normal(0, 0.02, n)),
            variant=variant,
            dtype="bf16",
            timing="cuda_graph",
            device=gpu.name,
        )
        for variant in ("power_law_1.2", "balanced")
    ]
    table = SampleTable.concat(tables)
    ((group, rows),) = fitting_groups(table)
    assert (group.variant, len(rows)) == ("balanced", 2 * n)
    fit = fit_operator(rows, gpu)
    assert fit.variants == ("balanced", "power_law_1.2")
    assert fit.residual.mape < 0.05
    own = profile(fit, on=gpu.name)
    for part in tables:
        variant = str(part.variant[0])
        estimate = operator_times(own, "moe", variant, "bf16", part.dims, "cuda_graph")
        assert np.mean(np.abs(estimate.median_s / part.time_s - 1)) < 0.05
        chosen = choose_fit(own, "moe", variant, "bf16")
        assert chosen is not None
        assert (chosen.variant, chosen.extra_log_sigma) == (variant, 0.0)


@pytest.mark.parametrize(("n", "every"), [(60, False), (320, True)])
def test_where_steps_show_every_shape_is_a_centre(n: int, every: bool) -> None:
    table = _samples(n, noise=0.01)
    n_shapes = int(table.shape_ids().max()) + 1
    fit = fit_operator(table, DEVICE, folds=3)
    assert FORM.steps
    assert fit.correction is not None
    assert (len(fit.correction.weights) == n_shapes) is every
