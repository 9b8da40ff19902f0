"""Corrections: exact at one centre, nothing far away, the same in blocks as written out."""

from __future__ import annotations

import numpy as np
import pytest

from costmodel.hardware.forms.correction import FAR_WEIGHT, evaluate_correction, kernel
from costmodel.hardware.schema import Correction


def _correction(centres: np.ndarray, weights: np.ndarray, *, limit: float = 5.0) -> Correction:
    return Correction(
        length=(2.0, 0.5),
        centres=tuple(map(tuple, centres.tolist())),
        weights=tuple(weights.tolist()),
        sigmas=tuple([0.05] * len(weights)),
        far_sigma=0.4,
        limit=limit,
    )


def test_near_and_far() -> None:
    one = _correction(np.array([[1.0, 2.0]]), np.array([0.3]))
    shift, sigma = evaluate_correction(one, np.array([[2.0, 1.0], [200.0, 100.0]]))
    assert shift == pytest.approx([0.3, 0.0], abs=1e-6)
    assert sigma == pytest.approx([(0.05 + FAR_WEIGHT * 0.4) / (1 + FAR_WEIGHT), 0.4], rel=1e-5)


@pytest.mark.parametrize("n_centres", [60, 601])  # as one block of centres, and as blocks that do not divide
def test_equals_the_formula_in_double_precision(n_centres: int) -> None:
    rng = np.random.default_rng(0)
    centres, weights = rng.normal(size=(n_centres, 2)) * 3, rng.normal(size=n_centres)
    points = rng.normal(size=(9000, 2)) * np.array([4.0, 1.0])
    shift, _ = evaluate_correction(_correction(centres, weights, limit=100.0), points)
    exact = kernel(points / np.array([2.0, 0.5]), centres) @ weights
    np.testing.assert_allclose(shift, exact, atol=2e-3)


def test_shift_is_limited() -> None:
    one = _correction(np.array([[0.0, 0.0]]), np.array([3.0]), limit=0.7)
    assert evaluate_correction(one, np.zeros((1, 2)))[0] == pytest.approx([0.7])


def test_no_centres() -> None:
    none = _correction(np.zeros((0, 2)), np.zeros(0))
    shift, sigma = evaluate_correction(none, np.zeros((3, 2)))
    assert shift.tolist() == [0.0, 0.0, 0.0]
    assert sigma == pytest.approx([0.4] * 3)


def test_points_on_centres_far_from_the_origin_have_their_weight() -> None:
    # |x|^2 - 2 x c + |c|^2 in single precision leaves such a point on either side of zero
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(400, 2)) * 50.0
    weights = np.full(400, 0.3)
    far = _correction(centres, weights, limit=100.0)
    shift, sigma = evaluate_correction(far, centres * np.array([2.0, 0.5]))
    exact = kernel(centres, centres) @ weights
    assert np.isfinite(shift).all()
    assert np.isfinite(sigma).all()
    np.testing.assert_allclose(shift, exact, atol=0.05)


def test_kernels_in_blocks_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(2)
    x, centres = rng.normal(size=(1000, 3)), rng.normal(size=(70, 3))
    distance = np.sqrt(3.0) * np.sqrt(((x[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2))
    np.testing.assert_allclose(kernel(x, centres), (1.0 + distance) * np.exp(-distance), rtol=1e-7)
