"""How long the slowest of several ranks is awaited."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr

from costmodel.estimate import expected_max, normal_cdf


def test_closed_forms() -> None:
    assert expected_max(1) == 0.0
    assert expected_max(2) == pytest.approx(1.0 / math.sqrt(math.pi), rel=1e-6)
    assert expected_max(3) == pytest.approx(1.5 / math.sqrt(math.pi), rel=1e-6)


@pytest.mark.parametrize("n", [8, 1000])
def test_against_drawing(n: int) -> None:
    drawn = np.random.default_rng(0).standard_normal((20_000_000 // n // 10, n)).max(axis=1)
    error = float(drawn.std() / math.sqrt(len(drawn)))
    assert expected_max(n) == pytest.approx(float(drawn.mean()), abs=5 * error)


@pytest.mark.parametrize("n", [2, 16, 1024, 131072])
def test_against_adaptive_quadrature(n: int) -> None:
    above, _ = quad(lambda x: 1.0 - ndtr(x) ** n, 0.0, 12.0)
    below, _ = quad(lambda x: ndtr(x) ** n, -12.0, 0.0)
    assert expected_max(n) == pytest.approx(above - below, rel=1e-11)


def test_the_normal_distribution_in_both_tails() -> None:
    x = np.linspace(-30.0, 10.0, 400).reshape(8, 50)
    np.testing.assert_allclose(normal_cdf(x), ndtr(x), rtol=1e-12)
    assert normal_cdf(np.float64(0.0)) == 0.5
