"""Sums of what errs: one name adds up, the shorter of two brings its own errors."""

from __future__ import annotations

import numpy as np
import pytest

from costmodel.predict.erring import Erring, together

A = Erring(np.array([1.0, 4.0]), {"fit a": np.array([0.1, 0.4]), "fit b": np.array([0.2, 0.2])})
B = Erring(np.array([2.0, 2.0]), {"fit b": np.array([0.3, 0.3])})


def test_errors_of_one_name_add_up() -> None:
    both = together((A, B, A.times(2.0)))
    assert both.seconds == pytest.approx([5.0, 14.0])
    assert both.errors["fit a"] == pytest.approx([0.3, 1.2])
    assert both.errors["fit b"] == pytest.approx([0.9, 0.9])
    assert (A + B).errors["fit b"] == pytest.approx([0.5, 0.5])


def test_the_shorter_brings_its_errors() -> None:
    found = A.or_shorter(B)
    assert found.seconds == pytest.approx([1.0, 2.0])
    assert found.errors_at(0) == pytest.approx({"fit a": 0.1, "fit b": 0.2})
    assert found.errors_at(1) == pytest.approx({"fit a": 0.0, "fit b": 0.3})


def test_between_sizes_the_share_of_the_nearest_counts() -> None:
    found = A.errors_near(np.array([16.0, 64.0]), 20.0)
    seconds = 4.0 ** (np.log(20.0 / 16.0) / np.log(4.0))
    assert found["fit a"] == pytest.approx(0.1 * seconds)
