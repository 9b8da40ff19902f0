"""Size curves: what a broken line can and must not do."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.fitting.size_curves import fit_curve, fold_numbers, spread_of
from costmodel.estimate import Z90


def test_a_smooth_correction_is_found_between_its_samples() -> None:
    x = np.arange(10.0, 30.0)
    truth = 0.2 * np.sin(x / 4.0)
    curve = fit_curve(x, truth)
    between = x[:-1] + 0.5
    assert curve.at(between) == pytest.approx(0.2 * np.sin(between / 4.0), abs=0.03)


def test_one_outlier_moves_its_neighbours_little() -> None:
    x = np.arange(10.0, 30.0)
    y = np.zeros_like(x)
    y[8] = 1.0
    curve = fit_curve(x, y)
    assert abs(curve.at(x[[6, 10]])).max() < 0.15


def test_flat_outside_its_samples() -> None:
    curve = fit_curve(np.array([10.0, 12.0, 14.0, 16.0]), np.full(4, 0.3))
    assert curve.at(np.array([0.0]))[0] == curve.at(np.array([10.0]))[0]
    assert curve.at(np.array([40.0]))[0] == curve.at(np.array([16.0]))[0]


def test_folds_keep_equal_sizes_together_and_neighbours_apart() -> None:
    x = np.repeat(np.arange(20.0), 3)
    folds = fold_numbers(x, 5)
    assert set(folds) == set(range(5))
    for value in np.unique(x):
        assert len(set(folds[x == value])) == 1
    unique = folds[::3]
    assert np.all(unique[1:] != unique[:-1])


def test_spread_covers_ninety_per_cent_and_follows_the_size() -> None:
    rng = np.random.default_rng(1)
    x = np.linspace(5.0, 30.0, 3000)
    wide = np.where(x < 15.0, 0.2, 0.02)
    errors = rng.normal(0.0, wide)
    at, sigma = spread_of(x, errors)
    inside = np.abs(errors) <= Z90 * np.interp(x, at, sigma)
    assert 0.87 < inside.mean() < 0.97
    assert np.interp(6.0, at, sigma) > 3 * np.interp(29.0, at, sigma)
