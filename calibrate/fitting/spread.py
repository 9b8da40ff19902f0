"""How wide a prediction's interval is: local size of held-out errors, scaled so that 90 % lie inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from calibrate.fitting.kernel_regression import Weighted, blocks
from costmodel.estimate import Z90, FloatArray
from costmodel.hardware.forms.correction import FAR_WEIGHT, kernel

__all__ = ["Spread", "band", "fit_spread"]

_LEAST_SIGMA = 0.004
_PRIOR_ROWS = 4.0
_FAR_WIDENING = 1.5
"""Away from every sample the form extrapolates: its error there is larger than where it was fitted."""
_KEPT = 8_000_000
"""Kernels that are kept between two passes over them (64 MB); those of more rows are worked out twice."""
_Kernels = tuple[slice, FloatArray]
"""Rows, and their kernels [n, c] around the centres."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """sigma(x) around the centres of `weighted`, as `evaluate_correction` computes it."""

    weighted: Weighted
    sigmas: FloatArray
    far_sigma: float

    def __call__(self, features: FloatArray) -> FloatArray:
        """Spread of ln(time) [n]."""
        return self._around(_kernels(self.weighted, features), len(features))

    def _around(self, kernels: Iterable[_Kernels], n: int) -> FloatArray:
        out = np.empty(n)
        for rows, near in kernels:
            out[rows] = (near @ self.sigmas + FAR_WEIGHT * self.far_sigma) / (near.sum(1) + FAR_WEIGHT)
        return out


def _kernels(weighted: Weighted, features: FloatArray) -> Iterator[_Kernels]:
    for rows in blocks(len(features)):
        yield rows, kernel(features[rows] / weighted.shape.length, weighted.centres)


def band(log_error: FloatArray) -> float:
    """Half-width of the band around zero that holds 90 % of the errors, over Z90.

    A finite-sample quantile: with few rows it leans to the largest error seen.
    """
    n = len(log_error)
    rank = min(1.0, 0.9 * (n + 1) / n) if n else 1.0
    return max(float(np.quantile(np.abs(log_error), rank)) / Z90, _LEAST_SIGMA) if n else 1.0


def fit_spread(weighted: Weighted, features: FloatArray, log_error: FloatArray, far: float) -> Spread:
    """Spread from held-out errors [n] at `features` [n, f]; `far`: spread of the form without correction."""
    whole = band(log_error)
    size = np.minimum(np.abs(log_error), 3.0 * whole * Z90)
    total = np.full(len(weighted.centres), _PRIOR_ROWS * size.mean())
    weight = np.full(len(weighted.centres), _PRIOR_ROWS)
    kernels = list(_kernels(weighted, features)) if len(features) * len(total) <= _KEPT else None
    for rows, near in kernels or _kernels(weighted, features):
        squared = near**2  # closer rows count more
        total += squared.T @ size[rows]
        weight += squared.sum(0)
    # mean absolute error -> standard deviation of a normal distribution
    mean = total / weight
    sigmas = np.maximum(mean * np.sqrt(np.pi / 2.0), _LEAST_SIGMA)
    far_sigma = max(_FAR_WIDENING * far, whole)
    first = Spread(weighted=weighted, sigmas=sigmas, far_sigma=far_sigma)
    raw = first._around(kernels or _kernels(weighted, features), len(features))
    scale = band(log_error / np.maximum(raw, 1e-9))
    return Spread(weighted=weighted, sigmas=np.maximum(sigmas * scale, _LEAST_SIGMA), far_sigma=far_sigma)
