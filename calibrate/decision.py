"""What measurements say of a decision: step times and how sure they are, after each item measured.

ln T_a = ln predicted + sum_i w_ai e_i + rest_a. The errors e of the items are normal with the spread of their
fits, correlated by `shared` among those that err together and by the machine's speed among all; measuring
one conditions all (Gaussian conditioning; Rasmussen and Williams 2006, eq. A.6). The item to measure next is
the one that is expected to lower the variance of the least sure difference most per second it takes: with
d = w_a - w_b that is (C d)_i^2 / (C_ii + noise) / seconds. A step time is not linear in its items' times:
what a fit of the measurements says of the contenders (`Restated`) takes the place of what they add up to
here, and later measurements move it from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibrate.timing import IQR_OF_NORMAL
from calibrate.wanted import SURE, Wanted
from costmodel.estimate import FloatArray
from costmodel.hardware.kinds import COLLECTIVE_KINDS

if TYPE_CHECKING:
    from calibrate.journal import Sample

__all__ = ["NOISE_LOG_SIGMA", "Decision", "Restated", "Standing", "alike", "chances_best", "noise_log_sigma"]

NOISE_LOG_SIGMA = 0.05
"""Spread of ln(time) among visits of one case: by how much they differ on a shared machine."""


_ALIKE = 1e-3
"""Contenders are alike whose step times differ by no more, and are known to: either is the fastest."""
_TELLS = 1e-9
"""Variance of ln(time) below which a measurement tells nothing: 0.003 % of a step."""
_DRAWS = 16384
_SEED = 7


class Standing(NamedTuple):
    """The winner now, the contender that is hardest to tell from it, and P(the winner is the fastest)."""

    winner: int
    challenger: int
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Restated:
    """What a fit says of the contenders: step times, seconds [n], and covariance [n][n] of their ln."""

    step_times_s: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        n = len(self.step_times_s)
        if len(self.covariance) != n or any(len(row) != n for row in self.covariance):
            raise ValueError(f"{n} step times need an {n} x {n} covariance")
        if not all(math.isfinite(t) and t > 0 for t in self.step_times_s):
            raise ValueError(f"step times {self.step_times_s} must be finite and above zero")

    def chances(self) -> FloatArray:
        """`chances_best` of the contenders."""
        return chances_best(np.log(self.step_times_s), np.array(self.covariance))


def chances_best(log_times: FloatArray, covariance: FloatArray) -> FloatArray:
    """P [n] that each contender is the fastest, or alike the fastest, given expected ln(step time) [n] and
    its covariance [n, n].

    Of two in closed form, of more by seeded draws (standard error at 95 %: 0.2 points). Contenders that are
    alike share what any of them has: with such the sum is above one.
    """
    n = len(log_times)
    first = np.argmax(alike(log_times, covariance), axis=1)
    kept = np.unique(first)
    of_first = np.ones(n)
    if len(kept) == 2:
        a, b = kept
        p = _probability(log_times[b] - log_times[a], _of_difference(covariance, a, b))
        of_first[[a, b]] = p, 1.0 - p
    elif len(kept) > 2:
        values, vectors = np.linalg.eigh(covariance[np.ix_(kept, kept)])
        z = np.random.default_rng(_SEED).standard_normal((len(kept), _DRAWS))
        drawn = log_times[kept, None] + vectors @ (np.sqrt(np.maximum(values, 0.0))[:, None] * z)
        of_first[kept] = np.bincount(np.argmin(drawn, axis=0), minlength=len(kept)) / _DRAWS
    return np.asarray(of_first[first])


def noise_log_sigma(samples: Sequence[Sample]) -> float:
    """By how much ln of a sample's time may be off, from how far its visits, and the calls of each, lie
    apart; the middle one of several samples'. The spread of a collective's sample is its mean's already."""
    found = []
    for sample in samples:
        spread = sample.spread / IQR_OF_NORMAL
        root = math.sqrt(max(1, sample.n_visits))
        if sample.kind in COLLECTIVE_KINDS:
            found.append(math.hypot(NOISE_LOG_SIGMA / root, spread))
        else:
            found.append(math.hypot(NOISE_LOG_SIGMA, spread) / root)
    return float(np.median(found)) if found else NOISE_LOG_SIGMA


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
        n = len(wanted.contenders)
        self._log_offset: FloatArray = np.zeros(n)
        self._more: FloatArray = np.zeros((n, n))

    def restate(self, said: Restated) -> None:
        """Take what a fit of all that was observed says of the contenders in place of their items' sums."""
        self._log_offset = np.zeros(len(said.step_times_s))
        self._more = np.zeros((len(said.step_times_s),) * 2)
        self._log_offset = np.log(said.step_times_s) - self.log_times()
        self._more = np.array(said.covariance) - self.covariance()

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
        items = np.log(np.array(self.wanted.step_times_s)) + self._mean @ self._weights
        return np.asarray(items + self._log_offset)

    def covariance(self) -> FloatArray:
        """Of ln(step time) [n, n], as things stand."""
        return np.asarray(self._weights.T @ self._covariance @ self._weights + self._rest + self._more)

    def variance(self, a: int, b: int) -> float:
        """Of ln T_a - ln T_b, as things stand."""
        return _of_difference(self.covariance(), a, b)

    def standing(self) -> Standing:
        """Who wins, against whom that is least sure, and how sure it is against all."""
        times, covariance = self.log_times(), self.covariance()
        winner = int(np.argmin(times))
        others = self._challengers(times, covariance, winner)
        challenger = others[0][1] if others else int(winner == 0)
        return Standing(winner, challenger, float(chances_best(times, covariance)[winner]))

    def gains(self, seconds: FloatArray, noise_log_sigma: FloatArray) -> FloatArray:
        """Variance [n] that measuring each item once more is expected to take off the least sure difference
        that measuring tells anything of, per second, given what each takes and how well one more visit knows
        it."""
        times, covariance = self.log_times(), self.covariance()
        winner = int(np.argmin(times))
        known = np.diag(self._covariance)[:-1]
        # with all others as sure as this, the winner is: no union of so many chances is larger
        enough = 1.0 - (1.0 - SURE) / len(times)
        for probability, challenger in self._challengers(times, covariance, winner):
            if probability >= enough:
                break
            d = self._weights[:, winner] - self._weights[:, challenger]
            told = ((self._covariance @ d) ** 2)[:-1] / (known + noise_log_sigma**2 + 1e-18)
            told = np.where(told > _TELLS, told, 0.0)
            if told.any():
                return np.asarray(told / seconds)
        return np.zeros(len(self.wanted.items))

    def _challengers(self, times: FloatArray, covariance: FloatArray, winner: int) -> list[tuple[float, int]]:
        """(P(the winner is faster), contender) of all that are not alike with it, the least sure first."""
        others = np.flatnonzero(~alike(times, covariance)[winner]).tolist()
        return sorted(
            (_probability(times[k] - times[winner], _of_difference(covariance, k, winner)), k) for k in others
        )

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


def alike(log_times: FloatArray, covariance: FloatArray) -> NDArray[np.bool_]:
    """Which contenders [n, n] are alike: the same time to a thousandth, and known to be; each with itself."""
    own = np.diag(covariance)
    variance = own[:, None] + own[None, :] - 2.0 * covariance
    gap = np.abs(log_times[:, None] - log_times[None, :])
    return np.asarray((gap <= _ALIKE) & (variance <= _ALIKE**2))


def _of_difference(covariance: FloatArray, a: int, b: int) -> float:
    return max(0.0, float(covariance[a, a] + covariance[b, b] - 2.0 * covariance[a, b]))


def _probability(log_gap: float, variance: float) -> float:
    if variance <= 0.0:
        return 0.5 if log_gap == 0.0 else float(log_gap > 0.0)
    return 0.5 * math.erfc(-log_gap / math.sqrt(2.0 * variance))
