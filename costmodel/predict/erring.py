"""Seconds at many sizes, with what of them errs together.

Errors bear the names of `costmodel.predict.uncertainty`: those of one name add up, those of different names
are independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from costmodel.estimate import FloatArray

__all__ = ["Erring", "together"]


@dataclass(frozen=True, slots=True)
class Erring:
    """`seconds` [n]; `errors`: what errs together -> seconds [n] of one standard deviation."""

    seconds: FloatArray
    errors: Mapping[str, FloatArray] = field(default_factory=dict)

    def __add__(self, other: Erring) -> Erring:
        return together((self, other))

    def times(self, factor: float) -> Erring:
        """So many of them."""
        return Erring(factor * self.seconds, {name: factor * e for name, e in self.errors.items()})

    def or_shorter(self, other: Erring) -> Erring:
        """At each size the shorter of both."""
        own = self.seconds <= other.seconds
        errors = {name: np.where(own, e, 0.0) for name, e in self.errors.items()}
        for name, e in other.errors.items():
            errors[name] = errors.get(name, 0.0) + np.where(own, 0.0, e)
        return Erring(np.minimum(self.seconds, other.seconds), errors)

    def taking(self, seconds: FloatArray) -> Erring:
        """The same errors of other seconds [n]: what comes off or on has none of its own."""
        return Erring(seconds, self.errors)

    def errors_at(self, place: int) -> dict[str, float]:
        """What errs together -> seconds of one standard deviation at one size."""
        return {name: float(e[place]) for name, e in self.errors.items()}

    def errors_near(self, sizes: FloatArray, size: float) -> dict[str, float]:
        """The same between `sizes` [n], by the shares of the seconds at the nearest one."""
        at = np.log(sizes)
        place = int(np.argmin(np.abs(at - np.log(size))))
        here = float(np.exp(np.interp(np.log(size), at, np.log(self.seconds))))
        scale = here / float(self.seconds[place])
        return {name: scale * seconds for name, seconds in self.errors_at(place).items()}


def together(parts: Iterable[Erring]) -> Erring:
    """All of them, one after another."""
    seconds: FloatArray | float = 0.0
    errors: dict[str, FloatArray] = {}
    for part in parts:
        seconds = seconds + part.seconds
        for name, e in part.errors.items():
            errors[name] = errors.get(name, 0.0) + e
    return Erring(np.asarray(seconds, dtype=np.float64), errors)
