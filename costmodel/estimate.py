"""A time with its uncertainty, for one thing or for a million at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Z90", "FloatArray", "IntArray", "TimeEstimate", "expected_max", "normal_cdf"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Z90 = 1.6448536269514722
"""Half-width of a central 90 % interval of a normal distribution, in standard deviations."""
_FARTHEST, _STEP = 12.0, 1.0 / 64.0
"""Where a normal distribution is taken to end, and the step of sums over it, in standard deviations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeEstimate:
    """Log-normal time: `median_s` (seconds, shape [n]) and `log_sigma` (standard deviation of ln time).

    The 90 % interval is median * exp(+-Z90 * log_sigma).
    """

    median_s: FloatArray
    log_sigma: FloatArray
    common_log_sigma: FloatArray | None = None
    """The part of `log_sigma` that errs alike at all sizes; the rest (in quadrature) is each size's own.
    None: all of it does."""

    def __post_init__(self) -> None:
        for sigma in (self.log_sigma, self.common_log_sigma):
            if sigma is not None and self.median_s.shape != sigma.shape:
                raise ValueError(f"median_s {self.median_s.shape} and log_sigma {sigma.shape} differ")

    def shifted(self, log_shift: float) -> TimeEstimate:
        """Times exp(log_shift); itself where that is 1."""
        if log_shift == 0.0:
            return self
        return replace(self, median_s=self.median_s * math.exp(log_shift))

    @property
    def common(self) -> FloatArray:
        """`common_log_sigma`, where it is None `log_sigma`."""
        return self.log_sigma if self.common_log_sigma is None else self.common_log_sigma

    @property
    def low_s(self) -> FloatArray:
        """5th percentile, seconds."""
        return self.median_s * np.exp(-Z90 * self.log_sigma)

    @property
    def high_s(self) -> FloatArray:
        """95th percentile, seconds."""
        return self.median_s * np.exp(Z90 * self.log_sigma)


def normal_cdf(x: FloatArray) -> FloatArray:
    """Phi: the probability of a standard normal number below each `x`, exact in both tails."""
    below = [0.5 * math.erfc(-value / math.sqrt(2.0)) for value in np.ravel(x).tolist()]
    return np.array(below, dtype=np.float64).reshape(np.shape(x))


@lru_cache(maxsize=1024)
def expected_max(n: int) -> float:
    """Mean of the largest of `n` independent standard normal numbers; 0 for one.

    The integral of x n phi(x) Phi(x)^(n - 1), whose sum over equal steps converges faster than any power of
    the step, as of every smooth function that vanishes at both ends.
    """
    if n <= 1:
        return 0.0
    x = np.arange(-_FARTHEST, _FARTHEST, _STEP)
    density = n * np.exp(-0.5 * x**2) / math.sqrt(2.0 * math.pi) * normal_cdf(x) ** (n - 1)
    return float(_STEP * np.sum(x * density))
