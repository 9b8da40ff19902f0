"""Kernel regression: the gradient is the derivative, weights interpolate, outliers count little."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.fitting.kernel_regression import (
    KernelShape,
    _negative_likelihood,
    choose_centres,
    solve_weights,
    tune_shape,
)
from costmodel.hardware.forms.correction import kernel


def test_gradient_of_the_likelihood() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(25, 2)), rng.normal(size=25)
    above = np.triu_indices(25, 1)
    squares = (x[above[0]] - x[above[1]]) ** 2
    at = np.log(np.array([1.5, 0.8, 0.4, 0.1]))
    _, gradient = _negative_likelihood(at, squares, above, y)
    for i in range(4):
        step = np.zeros(4)
        step[i] = 1e-5
        up, down = (_negative_likelihood(at + sign * step, squares, above, y)[0] for sign in (1, -1))
        assert gradient[i] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-5)


def test_recovers_a_smooth_function_and_ignores_a_flat_feature() -> None:
    rng = np.random.default_rng(1)
    x = np.column_stack([rng.uniform(0, 10, 300), rng.uniform(0, 10, 300), np.ones(300)])
    y = 0.3 * np.sin(x[:, 0]) + 0.01 * rng.normal(size=300)
    shape = tune_shape(x, y)
    assert shape.length[1] > 3 * shape.length[0]  # the second feature says nothing
    weighted = solve_weights(shape, choose_centres(x / shape.length, 60), x, y)
    assert np.abs(weighted(x) - 0.3 * np.sin(x[:, 0])).mean() < 0.03


def test_short_lengths_follow_what_turns_within_a_unit() -> None:
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 10, (300, 1))
    y = 0.2 * np.sign(np.sin(4.0 * x[:, 0]))
    held = np.arange(300) % 5 == 0
    errors = {}
    for shortest in (1.0, 0.3):
        shape = tune_shape(x[~held], y[~held], shortest=shortest)
        assert shape.length[0] >= shortest - 1e-9
        weighted = solve_weights(shape, choose_centres(x[~held] / shape.length, 300), x[~held], y[~held])
        errors[shortest] = np.abs(weighted(x[held]) - y[held]).mean()
    assert errors[0.3] <= errors[1.0] + 1e-6
    assert tune_shape(x, y, shortest=0.3).length[0] < 1.0


def test_an_outlier_moves_little() -> None:
    x = np.linspace(0, 10, 80)[:, None]
    y = np.full(80, 0.1)
    y[40] = 5.0
    shape = KernelShape(length=np.array([2.0]), signal=0.2, noise=0.05)
    weighted = solve_weights(shape, choose_centres(x / 2.0, 20), x, y)
    assert weighted(np.array([[5.0]]))[0] < 0.4


def test_far_from_samples_nothing_is_said() -> None:
    x = np.linspace(0, 5, 50)[:, None]
    shape = KernelShape(length=np.array([1.0]), signal=0.2, noise=0.05)
    weighted = solve_weights(shape, choose_centres(x, 20), x, np.full(50, 0.2))
    assert abs(weighted(np.array([[60.0]]))[0]) < 1e-6


def test_centres_are_at_most_what_there_is() -> None:
    x = np.array([[0.0], [0.0], [1.0]])
    assert len(choose_centres(x, 10)) == 2


def test_a_few_steps_from_a_known_shape_stay_near_it() -> None:
    rng = np.random.default_rng(2)
    x = rng.uniform(0, 10, (300, 3))
    y = 0.3 * np.sin(x[:, 0]) + 0.01 * rng.normal(size=300)
    whole = tune_shape(x, y)
    # other rows, of which a few are outliers: their likelihood pulls far, three steps of it must not
    some = rng.permutation(300)[:120]
    disturbed = y[some] + np.where(np.arange(120) % 20 == 0, 3.0, 0.0)
    warm = tune_shape(x[some], disturbed, start=whole)
    assert np.abs(np.log(warm.length / whole.length)).max() <= 0.51
    assert abs(np.log(warm.signal / whole.signal)) <= 0.51
    assert tune_shape(x[some], disturbed).noise > 2.0 * warm.noise


def test_weights_are_those_of_the_reweighted_problem() -> None:
    rng = np.random.default_rng(5)
    x = rng.uniform(0.0, 10.0, (400, 2))
    y = 0.3 * np.sin(x[:, 0]) + 0.05 * rng.standard_t(2, size=400)  # many rows weigh less than one
    shape = KernelShape(length=np.array([1.5, 4.0]), signal=0.3, noise=0.05)
    centres = choose_centres(x / shape.length, 40)
    found = solve_weights(shape, centres, x, y)
    design, among = kernel(x / shape.length, centres), kernel(centres, centres)
    prior = among * (shape.noise / shape.signal) ** 2 + 1e-4 * np.eye(len(centres))
    weight, expected = np.ones(400), np.zeros(len(centres))
    for _ in range(3):
        expected = np.linalg.solve(design.T @ (weight[:, None] * design) + prior, design.T @ (weight * y))
        error = np.abs(y - design @ expected)
        weight = np.minimum(1.0, 1.345 * 1.4826 * np.median(error) / error)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-7, atol=1e-9)
