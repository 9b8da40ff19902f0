"""Bands hold the share they say, and follow where the errors are."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.fitting.kernel_regression import KernelShape, Weighted
from calibrate.fitting.spread import band, fit_spread
from costmodel.estimate import Z90


def test_band_of_a_normal_is_its_sigma() -> None:
    error = np.random.default_rng(0).normal(0, 0.07, 20_000)
    assert band(error) == pytest.approx(0.07, rel=0.03)
    assert band(np.array([0.1])) == pytest.approx(0.1 / Z90)  # one row: its own error


def test_spread_is_local_and_covers() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(0, 20, (4000, 1))
    error = rng.normal(0, np.where(x[:, 0] < 10, 0.02, 0.2))
    shape = KernelShape(length=np.array([1.5]), signal=0.1, noise=0.1)
    weighted = Weighted(shape=shape, centres=np.linspace(0, 20, 30)[:, None] / 1.5, weights=np.zeros(30))
    spread = fit_spread(weighted, x, error, far=0.3)
    sigma = spread(x)
    assert np.mean(np.abs(error) <= Z90 * sigma) == pytest.approx(0.9, abs=0.01)
    assert sigma[x[:, 0] < 7].mean() < 0.5 * sigma[x[:, 0] > 13].mean()
    assert spread(np.array([[500.0]]))[0] == pytest.approx(0.45)  # far: the form's own, half as much again
