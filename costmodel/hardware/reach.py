"""How far samples at a few sizes speak: beyond them another fit decides.

    nearness(x) = exp(-(d / reach)^2)        d = distance of ln(sizes) from the nearest sample

A form that is fitted to a handful of sizes follows them and is free elsewhere: nine times of one length do
not tell how time grows with length. Such a fit keeps the sizes that it saw (`OperatorFit.samples_at`);
`pricing` blends it with the nearest fit that was timed, by nearness.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.hardware.fallback import fallback_spread
from costmodel.hardware.kinds import OPERATOR_KINDS

__all__ = ["nearness", "samples_of_kind", "sizes_of_samples"]

_DECIMALS = 2


def sizes_of_samples(kind: str, dims: Mapping[str, FloatArray]) -> tuple[tuple[float, ...], ...]:
    """Distinct ln(sizes) of samples, in the order of the kind's `dims`; sizes below 1 count as 1."""
    points = np.unique(np.round(_log_sizes(kind, dims), _DECIMALS), axis=0)
    return tuple(tuple(map(float, point)) for point in points)


def samples_of_kind(
    samples_at: tuple[tuple[float, ...], ...], kind: str, other: str
) -> tuple[tuple[float, ...], ...]:
    """The same samples in the sizes of another kind (a product as a batch of one)."""
    if kind == other:
        return samples_at
    names = OPERATOR_KINDS[kind].dims
    points = (dict(zip(names, point, strict=True)) for point in samples_at)
    return tuple(tuple(point.get(name, 0.0) for name in OPERATOR_KINDS[other].dims) for point in points)


def nearness(
    samples_at: tuple[tuple[float, ...], ...], kind: str, dims: Mapping[str, FloatArray]
) -> FloatArray:
    """Weight [n] of a fit with these samples: 1 at them, towards 0 away from them."""
    points, centres = _log_sizes(kind, dims), np.array(samples_at)
    apart = (points**2).sum(1)[:, None] + (centres**2).sum(1)[None, :] - 2.0 * points @ centres.T
    nearest = np.maximum(apart.min(axis=1), 0.0)
    return np.asarray(np.exp(-nearest / fallback_spread().few_samples_reach ** 2), dtype=np.float64)


def _log_sizes(kind: str, dims: Mapping[str, FloatArray]) -> FloatArray:
    columns = [np.log(np.maximum(dims[name], 1.0)) for name in OPERATOR_KINDS[kind].dims]
    return np.asarray(np.stack(columns, axis=1), dtype=np.float64)
