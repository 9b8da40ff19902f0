"""The smooth correction on top of a form: Matern-3/2 kernels around a few hundred centres.

    shift(x) = sum_c w_c K(|x - c| / length)         K(d) = (1 + sqrt(3) d) exp(-sqrt(3) d)
    sigma(x) = (sum_c K_c sigma_c + far * far_sigma) / (sum_c K_c + far)

Both fall back where no centre is near: the shift to 0, the spread to that of the form alone. Evaluated in
single precision in blocks that stay in cache; most of the time goes to roots and exponentials.
"""

from __future__ import annotations

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.hardware.schema import Correction

__all__ = ["FAR_WEIGHT", "evaluate_correction", "evaluate_update", "kernel"]

_BLOCK = 256
FAR_WEIGHT = 0.15
"""Kernel weight of `far_sigma`: a point with a sum of kernels below this is taken as far from samples."""
_SQRT3 = float(np.sqrt(3.0))


def kernel(x: FloatArray, centres: FloatArray) -> FloatArray:
    """Matern-3/2 [n, c] between points and centres, both already divided by the lengths."""
    out = np.empty((len(x), len(centres)))
    squares, across = (centres * centres).sum(1)[None, :], centres.T
    scratch = np.empty((min(_BLOCK, len(x)), len(centres)))
    for start in range(0, len(x), _BLOCK):  # in place, in blocks that stay in cache
        points = x[start : start + _BLOCK]
        scaled, decay = out[start : start + _BLOCK], scratch[: len(points)]
        np.matmul(points, across, out=scaled)
        scaled *= -2.0
        scaled += (points * points).sum(1)[:, None]
        scaled += squares
        np.maximum(scaled, 0.0, out=scaled)
        np.sqrt(scaled, out=scaled)
        scaled *= _SQRT3
        np.negative(scaled, out=decay)
        np.exp(decay, out=decay)
        scaled += 1.0
        scaled *= decay
    return out


def evaluate_correction(correction: Correction, features: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Shift and spread of ln(time), each [n], at `features` [n, f]."""
    n = len(features)
    if not correction.weights:
        return np.zeros(n), np.full(n, correction.far_sigma)
    shift, sigmas, near = _sums(correction, features)
    return shift, (sigmas + FAR_WEIGHT * correction.far_sigma) / (near + FAR_WEIGHT)


def evaluate_update(
    update: Correction, features: FloatArray, log_sigma: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Shift and spread [n] of a fit whose own spread is `log_sigma` [n]; see `OperatorFit.update`."""
    shift, sigmas, near = _sums(update, features)
    return shift, (sigmas + FAR_WEIGHT * update.far_sigma * log_sigma) / (near + FAR_WEIGHT)


def _sums(correction: Correction, features: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Shift, and sums over the centres of kernel times spread and of kernels, each [n]."""
    n = len(features)
    length, origin, centres, columns = correction.arrays
    points = np.ones((len(length) + 2, n), dtype=np.float32)
    np.subtract(features.T / length, origin, out=points[:-2], casting="same_kind")
    np.square(points[:-2]).sum(axis=0, out=points[-2])
    out = np.empty((3, n))
    scratch = np.empty((2, *centres.shape[:2], min(_BLOCK, n)), dtype=np.float32)
    for start in range(0, n, _BLOCK):
        part = points[:, start : start + _BLOCK]
        across, decay = scratch[..., : part.shape[1]]
        np.matmul(centres, part, out=across)
        np.abs(across, out=across)  # rounding leaves a point on a centre a little on either side of 0
        np.sqrt(across, out=across)
        np.subtract(-1.0, across, out=across)  # -(1 + distance)
        np.exp(across, out=decay)
        across *= decay
        out[:, start : start + _BLOCK] = np.matmul(columns, across).sum(axis=0)
    return np.clip(out[0], -correction.limit, correction.limit), out[1], out[2]
