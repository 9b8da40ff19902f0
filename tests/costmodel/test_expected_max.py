"""How long the slowest of several ranks is awaited."""

from __future__ import annotations

import math

import numpy as np
import pytest

from costmodel.estimate import expected_max


def test_closed_forms() -> None:
    assert expected_max(1) == 0.0
    assert expected_max(2) == pytest.approx(1.0 / math.sqrt(math.pi), rel=1e-6)
    assert expected_max(3) == pytest.approx(1.5 / math.sqrt(math.pi), rel=1e-6)


@pytest.mark.parametrize("n", [8, 1000])
def test_against_drawing(n: int) -> None:
    drawn = np.random.default_rng(0).standard_normal((20_000_000 // n // 10, n)).max(axis=1)
    error = float(drawn.std() / math.sqrt(len(drawn)))
    assert expected_max(n) == pytest.approx(float(drawn.mean()), abs=5 * error)
