"""What measurements say of a decision: step times and how sure they are, after each item measured.

ln T_a = ln predicted + sum_i w_ai e_i + rest_a. The errors e of the items are normal with the spread of their
fits, correlated by `shared` among those that err together and by the machine's speed among all; measuring
one conditions all (Gaussian conditioning; Rasmussen and Williams 2006, eq. A.6). The item to measure next is
the one that is expected to lower the variance of the least sure difference most per second it takes: with
d = w_a - w_b that is (C d)_i^2 / (C_ii + noise) / seconds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibrate.wanted import Wanted
from costmodel.estimate import FloatArray

__all__ = ["NOISE_LOG_SIGMA", "Decision", "Standing"]

NOISE_LOG_SIGMA = 0.05
"""Spread of ln(time) among visits of one case: by how much they differ on a shared machine."""


class Standing(NamedTuple):
    """The winner now, the contender that is hardest to tell from it, and P(the winner is faster)."""

    winner: int
    challenger: int
    probability: float


class Decision:
    """A `Wanted` list and what was measured of it."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        weights = [i.weights for i in wanted.items]
        by_item = np.array(weights, dtype=np.float64).reshape(-1, len(wanted.contenders))
        follows = np.array([i.is_time for i in wanted.items], dtype=np.float64)
        # a machine half as fast doubles every step: what the items leave of that is the machine's own
        self._weights: FloatArray = np.vstack([by_item, 1.0 - follows @ by_item])
        self._prior = _prior(wanted)
        self._rest: FloatArray = np.array(wanted.rest, dtype=np.float64)
        self._seen: dict[int, tuple[float, float]] = {}
        self._mean: FloatArray = np.zeros(len(self._weights))
        self._covariance = self._prior.copy()

    def observe(self, item: int, time_s: float, *, noise_log_sigma: float) -> None:
        """Item number `item` takes `time_s`, known to within `noise_log_sigma`; replaces what it took before.

        A time or prediction of zero says nothing of a ratio and is left out.
        """
        predicted_s = self.wanted.items[item].predicted_s
        if time_s > 0.0 and predicted_s > 0.0:
            self._seen[item] = math.log(time_s / predicted_s), max(noise_log_sigma, 1e-6) ** 2
            self._condition()

    def log_times(self) -> FloatArray:
        """Expected ln(step time) [n] of the contenders."""
        return np.asarray(np.log(np.array(self.wanted.step_times_s)) + self._mean @ self._weights)

    def variance(self, a: int, b: int) -> float:
        """Of ln T_a - ln T_b, as things stand."""
        d = self._weights[:, a] - self._weights[:, b]
        rest = self._rest[a, a] + self._rest[b, b] - 2.0 * self._rest[a, b]
        return max(0.0, float(d @ self._covariance @ d) + float(rest))

    def standing(self) -> Standing:
        """Who wins, and against whom that is least sure."""
        times = self.log_times()
        winner = int(np.argmin(times))
        others = [k for k in range(len(times)) if k != winner]
        sure = {k: _probability(times[k] - times[winner], self.variance(k, winner)) for k in others}
        challenger = min(others, key=lambda k: (sure[k], k))
        return Standing(winner, challenger, sure[challenger])

    def gains(self, seconds: FloatArray, noise_log_sigma: FloatArray) -> FloatArray:
        """Variance [n] that measuring each item once more is expected to take off the least sure difference,
        per second, given what each takes and how well one more visit knows it."""
        standing = self.standing()
        d = self._weights[:, standing.winner] - self._weights[:, standing.challenger]
        known = np.diag(self._covariance)
        told = ((self._covariance @ d) ** 2)[:-1] / (known[:-1] + noise_log_sigma**2 + 1e-18)
        return np.asarray(told / seconds)

    def _condition(self) -> None:
        items = np.array(sorted(self._seen), dtype=np.int64)
        ratio = np.array([self._seen[i][0] for i in items])
        noise = np.array([self._seen[i][1] for i in items])
        cross = self._prior[:, items]
        gain = np.linalg.solve(self._prior[np.ix_(items, items)] + np.diag(noise), cross.T).T
        self._mean = gain @ ratio
        self._covariance = self._prior - gain @ cross.T


def _prior(wanted: Wanted) -> NDArray[np.float64]:
    """Covariance of the items' errors and, last, of the machine's speed."""
    sigma = np.array([i.log_sigma for i in wanted.items])
    names = np.array([i.together for i in wanted.items])
    together = names[:, None] == names[None, :]
    correlation = np.where(together, wanted.shared, 0.0)
    np.fill_diagonal(correlation, 1.0)
    own = np.pad(sigma[:, None] * sigma[None, :] * correlation, (0, 1))
    follows = np.array([*(i.is_time for i in wanted.items), True], dtype=np.float64)
    return np.asarray(own + wanted.machine_log_sigma**2 * np.outer(follows, follows), dtype=np.float64)


def _probability(log_gap: float, variance: float) -> float:
    if variance <= 0.0:
        return 0.5 if log_gap == 0.0 else float(log_gap > 0.0)
    return 0.5 * math.erfc(-log_gap / math.sqrt(2.0 * variance))
