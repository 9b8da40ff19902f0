"""Regression on Matern-3/2 kernels around centres: what is left of ln(time) after the physical form.

Lengths and variances maximise the marginal likelihood of a subset; weights around k-means centres solve a
ridge problem on all rows, reweighted so that outliers count by their size only (Huber).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodel.estimate import FloatArray
from costmodel.hardware.forms.correction import kernel

__all__ = ["KernelShape", "Weighted", "blocks", "choose_centres", "solve_weights", "tune_shape"]

_BLOCK = 4096
_TUNE_STEPS = 40
_WARM_STEPS = 3
_WARM_REACH = 0.5
"""How far each ln goes in those few steps: without a limit they end midway of a search, far from its ends."""
_LONGEST = 150.0
_SIGNAL_BOUNDS = (1e-3, 1.0)
_NOISE_BOUNDS = (5e-3, 0.5)
_HUBER_STEPS = 3
_HUBER_WIDTH = 1.345
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShape:
    """Length per feature, standard deviation of the signal and of the noise, all of ln(time)."""

    length: FloatArray
    signal: float
    noise: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """Centres [c, f] (divided by the lengths) and their weights [c]."""

    shape: KernelShape
    centres: FloatArray
    weights: FloatArray

    def __call__(self, features: FloatArray) -> FloatArray:
        """ln(time) shift [n]."""
        out = np.zeros(len(features))
        for rows in blocks(len(features)) if len(self.centres) else ():
            out[rows] = kernel(features[rows] / self.shape.length, self.centres) @ self.weights
        return out


def blocks(n: int) -> Iterator[slice]:
    """Slices of `n` rows, each small enough that rows x centres is a few MB."""
    return (slice(start, start + _BLOCK) for start in range(0, n, _BLOCK))


def tune_shape(
    features: FloatArray,
    target: FloatArray,
    *,
    seed: int = 0,
    start: KernelShape | None = None,
    rows: int = 360,
    shortest: float = 1.0,
) -> KernelShape:
    """Lengths and variances by marginal likelihood on at most `rows` rows (L-BFGS, exact gradient).

    No length is below `shortest`. With `start` (say from nearly the same rows) only a few steps are made from
    there.
    """
    from scipy.optimize import minimize

    n, n_features = features.shape
    chosen = np.random.default_rng(seed).permutation(n)[:rows]
    x, y = features[chosen], target[chosen]
    spread = np.std(features, axis=0)
    varies = spread > 1e-9
    x = x[:, varies]
    y = np.clip(y, *np.quantile(y, [0.01, 0.99]))
    if start is None:
        first = np.concatenate([np.log(np.maximum(2.0 * spread[varies], 1.5)), np.log([0.1, 0.05])])
    else:
        first = np.log(np.concatenate([start.length[varies], [start.signal, start.noise]]))
    lengths = (shortest, _LONGEST)
    limits = (*[lengths] * int(varies.sum()), _SIGNAL_BOUNDS, _NOISE_BOUNDS)
    bounds = [(float(np.log(low)), float(np.log(high))) for low, high in limits]
    if start is not None:
        first = np.clip(first, *np.transpose(bounds))
        bounds = [
            (max(low, x - _WARM_REACH), min(high, x + _WARM_REACH))
            for (low, high), x in zip(bounds, first, strict=True)
        ]
    above = np.triu_indices(len(x), 1)
    squares = (x[above[0]] - x[above[1]]) ** 2
    result = minimize(
        _negative_likelihood,
        first,
        args=(squares, above, y),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": _TUNE_STEPS if start is None else _WARM_STEPS},
    )
    length = np.full(n_features, _LONGEST)
    length[varies] = np.exp(result.x[:-2])
    return KernelShape(length=length, signal=float(np.exp(result.x[-2])), noise=float(np.exp(result.x[-1])))


def _negative_likelihood(
    log_parameters: FloatArray,
    squares: FloatArray,
    above: tuple[NDArray[np.intp], NDArray[np.intp]],
    y: FloatArray,
) -> tuple[float, FloatArray]:
    """-log p(y) of a Gaussian process and its gradient by the logs of lengths, signal and noise.

    `squares` [pairs, f]: squared differences of the pairs of points that `above` [pairs] names.
    """
    from scipy.linalg import cho_factor, cho_solve
    from scipy.linalg.lapack import dpotri

    inverse = np.exp(-2.0 * log_parameters[:-2])
    signal2, noise2 = np.exp(2.0 * log_parameters[-2:])
    scaled = np.sqrt(3.0 * (squares @ inverse))
    decay = np.exp(-scaled)
    off_diagonal = signal2 * (1.0 + scaled) * decay
    n = len(y)
    place = above[0] + n * above[1]  # in one dimension and column by column: half the time of two indices
    covariance = np.zeros(n * n)
    covariance[place] = off_diagonal
    covariance[:: n + 1] = signal2 + noise2 + 1e-8
    square = covariance.reshape(n, n, order="F")
    factor = cho_factor(square, lower=False, overwrite_a=True, check_finite=False)
    log_determinant = np.log(np.diag(factor[0])).sum()
    alpha = cho_solve(factor, y, check_finite=False)
    value = 0.5 * y @ alpha + log_determinant
    precision, _ = dpotri(factor[0], lower=0, overwrite_c=True)
    slack = precision.reshape(-1, order="F")[place] - alpha[above[0]] * alpha[above[1]]
    trace = float(np.diag(precision).sum() - alpha @ alpha)
    # dK/dln(length_i) = signal^2 * 3 * squares_i / length_i^2 * exp(-scaled); every pair counts twice
    by_length = (slack * decay * (3.0 * signal2)) @ squares * inverse
    by_signal = 2.0 * float(slack @ off_diagonal) + signal2 * trace
    by_noise = noise2 * trace
    return float(value), np.concatenate([by_length, [by_signal, by_noise]])


def choose_centres(scaled: FloatArray, count: int, *, seed: int = 0) -> FloatArray:
    """At most `count` k-means centres of points (already divided by the lengths), sampled for speed."""
    from scipy.cluster.vq import kmeans2

    unique = np.unique(scaled, axis=0)
    rng = np.random.default_rng(seed)
    if len(unique) > 12 * count:
        unique = unique[rng.permutation(len(unique))[: 12 * count]]
    if count >= len(unique):
        return np.asarray(unique, dtype=np.float64)
    start = unique[rng.permutation(len(unique))[:count]]
    centres, _ = kmeans2(unique, start, minit="matrix", iter=8, missing="warn", seed=rng)
    return np.asarray(centres, dtype=np.float64)


def solve_weights(
    shape: KernelShape, centres: FloatArray, features: FloatArray, target: FloatArray
) -> Weighted:
    """Ridge weights of the centres: min sum v (target - K w)^2 / noise^2 + w' K w / signal^2, v by Huber."""
    if not len(centres) or not len(target):
        return Weighted(shape=shape, centres=np.zeros((0, features.shape[1])), weights=np.zeros(0))
    from scipy.linalg import cho_factor, cho_solve

    design = kernel(features / shape.length, centres)
    prior = kernel(centres, centres) * (shape.noise / shape.signal) ** 2
    prior += 1e-4 * np.eye(len(centres))  # keeps weights small enough to be stored rounded
    full = design.T @ design + prior
    weight: NDArray[np.float64] = np.ones(len(target))
    solution = np.zeros(len(centres))
    for _ in range(_HUBER_STEPS):
        lighter = np.flatnonzero(weight < 1.0)  # few rows are outliers: what they weigh less is taken off
        less = design[lighter] * np.sqrt(1.0 - weight[lighter])[:, None]
        solution = cho_solve(cho_factor(full - less.T @ less), design.T @ (weight * target))
        error = np.abs(target - design @ solution)
        width = _HUBER_WIDTH * max(_MAD_TO_SIGMA * float(np.median(error)), 1e-4)
        weight = np.minimum(1.0, width / np.maximum(error, 1e-12))
    return Weighted(shape=shape, centres=centres, weights=solution)
