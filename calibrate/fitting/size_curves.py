"""Smooth corrections of ln(time) over log2(size), and the spread that is left, both cross-validated.

A curve has a knot every `octaves` doublings of size and is a penalised least-squares broken line, so that
few samples bend it little and one outlier less (weights are re-set twice by Huber's rule).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodel.estimate import Z90, FloatArray
from costmodel.hardware.network_schema import SizeCurve

__all__ = ["CurveFit", "fit_curve", "fold_numbers", "spread_of"]

_OCTAVES = 1.0
_MIN_SIGMA = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveFit:
    """Knots (log2 bytes) and values of ln(measured / paths)."""

    knots: FloatArray
    values: FloatArray

    def at(self, log2_bytes: FloatArray) -> FloatArray:
        """ln(time) correction at the given sizes."""
        return np.asarray(np.interp(log2_bytes, self.knots, self.values))

    def to_curve(
        self, n_ranks: int, n_nodes: int, version: str, sigma_at: tuple[FloatArray, FloatArray]
    ) -> SizeCurve:
        """As stored in a profile; `sigma_at`: (log2 bytes, spread) to interpolate the spread from."""
        return SizeCurve(
            n_ranks=n_ranks,
            n_nodes=n_nodes,
            version=version,
            log2_bytes=tuple(round(float(v), 4) for v in self.knots),
            log_ratio=tuple(round(float(v), 4) for v in self.values),
            log_sigma=tuple(round(float(v), 4) for v in np.interp(self.knots, *sigma_at)),
        )


def fit_curve(
    log2_bytes: FloatArray, log_ratio: FloatArray, *, smoothness: float = 0.3, octaves: float = _OCTAVES
) -> CurveFit:
    """Penalised broken line through ln(measured / predicted); flat outside its samples."""
    low, high = float(np.floor(log2_bytes.min())), float(np.ceil(log2_bytes.max()))
    knots = np.arange(low, max(high, low + octaves) + 0.5 * octaves, octaves)
    position = np.clip((log2_bytes - low) / octaves, 0.0, len(knots) - 1.0)
    left = np.minimum(position.astype(np.int64), len(knots) - 2)
    share = position - left
    design = np.zeros((len(log2_bytes), len(knots)))
    rows = np.arange(len(log2_bytes))
    design[rows, left] = 1.0 - share
    design[rows, left + 1] += share
    bend = np.diff(np.eye(len(knots)), n=min(2, len(knots) - 1), axis=0) * smoothness
    # A light pull to zero keeps knots without samples on the physical form.
    pull = np.eye(len(knots)) * 0.03
    weight = np.ones(len(log2_bytes))
    values = np.zeros(len(knots))
    for _ in range(3):
        system = np.vstack([design * weight[:, None], bend, pull])
        target = np.concatenate([log_ratio * weight, np.zeros(len(bend) + len(pull))])
        values = np.linalg.lstsq(system, target, rcond=None)[0]
        error = np.abs(design @ values - log_ratio)
        scale = max(float(np.median(error)) * 1.4826, _MIN_SIGMA)
        weight = np.sqrt(np.minimum(1.0, 2.0 * scale / np.maximum(error, 1e-12)))
    return CurveFit(knots=knots, values=values)


def fold_numbers(log2_bytes: FloatArray, folds: int) -> NDArray[np.int64]:
    """Fold of each sample: equal sizes share one, neighbours never, dealt in turn over the sorted sizes."""
    unique, inverse = np.unique(np.round(log2_bytes, 6), return_inverse=True)
    return np.asarray((np.arange(len(unique)) % folds)[inverse.reshape(-1)], dtype=np.int64)


def spread_of(log2_bytes: FloatArray, errors: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(log2 bytes, sigma): half-width over Z90 of the band that holds 90 % of held-out errors around a size.

    Over a sliding third of the samples (at least 10), so that small and large sizes keep their own spread.
    """
    order = np.argsort(log2_bytes, kind="stable")
    x, e = log2_bytes[order], np.abs(errors[order])
    width = max(10, len(x) // 3)
    if len(x) <= width:
        sigma = max(_quantile(e), _MIN_SIGMA)
        return np.array([x[0], x[-1] + 1e-6]), np.array([sigma, sigma])
    starts = np.arange(0, len(x) - width + 1, max(1, width // 4))
    centres = np.array([x[s : s + width].mean() for s in starts])
    sigmas = np.array([max(_quantile(e[s : s + width]), _MIN_SIGMA) for s in starts])
    centres, first = np.unique(centres, return_index=True)
    return centres, sigmas[first]


def _quantile(errors: FloatArray) -> float:
    """90th percentile of absolute errors, in standard deviations; of few errors a little higher."""
    return float(np.quantile(errors, min(1.0, 0.9 + 0.5 / len(errors)))) / Z90
