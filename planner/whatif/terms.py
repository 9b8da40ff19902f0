"""Terms of a step: the parts of a breakdown gathered into what can be the limit, and where one takes over."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

__all__ = ["TERMS", "Crossover", "bisected", "interpolated", "largest", "terms_s"]

TERMS: Mapping[str, tuple[str, ...]] = {
    "compute": ("compute", "recompute", "optimizer"),
    "communication": ("tp_comm", "cp_comm", "ep_comm", "dp_comm", "pp_comm"),
    "bubble": ("bubble",),
    "host": ("host",),
    "offload": ("offload",),
}
"""Term -> parts of a breakdown; together all of them."""
_TOLERANCE = 0.005
"""A crossover on a continuous axis is located to this fraction."""
_MOST_STEPS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossover:
    """Along `axis` the largest term changes from `before` to `after` at `at`."""

    axis: str
    at: float
    before: str
    after: str
    how: str
    """bisected: by forecasts in between; interpolated: between two points, the terms taken as powers."""

    def to_dict(self) -> dict[str, Any]:
        """Plain fields."""
        return {
            "axis": self.axis,
            "at": self.at,
            "before": self.before,
            "after": self.after,
            "how": self.how,
        }


def terms_s(breakdown_s: Mapping[str, float]) -> dict[str, float]:
    """Seconds per term; adds up to the breakdown's sum."""
    return {term: sum(breakdown_s.get(part, 0.0) for part in parts) for term, parts in TERMS.items()}


def largest(breakdown_s: Mapping[str, float]) -> str:
    """The largest term, the earlier of TERMS where two are equal."""
    terms = terms_s(breakdown_s)
    return max(terms, key=lambda term: terms[term])


def interpolated(axis: str, points: Sequence[tuple[float, Mapping[str, float]]]) -> tuple[Crossover, ...]:
    """Crossovers between neighbouring points (value, breakdown), each term a power of the value in between.

    ln a + (ln a' - ln a) s = ln b + (ln b' - ln b) s, at = x (x'/x)^s. A term that is 0 at an end is taken as
    linear instead.
    """
    found = []
    for (x, first), (y, second) in pairwise(points):
        before, after = largest(first), largest(second)
        if before == after:
            continue
        a, b = (tuple(terms_s(parts)[term] for parts in (first, second)) for term in (before, after))
        values = (*a, *b)
        if min(values) > 0:
            gaps = math.log(a[0] / b[0]), math.log(a[1] / b[1])
        else:
            gaps = a[0] - b[0], a[1] - b[1]
        share = gaps[0] / (gaps[0] - gaps[1]) if gaps[0] != gaps[1] else 0.5
        found.append(
            Crossover(axis=axis, at=x * (y / x) ** share, before=before, after=after, how="interpolated")
        )
    return tuple(found)


def bisected(
    axis: str, low: float, high: float, breakdown_at: Callable[[float], Mapping[str, float]]
) -> tuple[Crossover, ...]:
    """Every change of the largest term that bisection over a continuous axis finds between two values.

    Where a third term is largest in between, both changes are found.
    """
    names = {x: largest(breakdown_at(x)) for x in (low, high)}

    def search(x: float, y: float) -> list[Crossover]:
        if names[x] == names[y]:
            return []
        lower, upper = x, y
        for _ in range(_MOST_STEPS):
            if upper / lower <= 1.0 + _TOLERANCE:
                break
            middle = math.sqrt(lower * upper)
            names[middle] = largest(breakdown_at(middle))
            if names[middle] == names[lower]:
                lower = middle
            elif names[middle] == names[upper]:
                upper = middle
            else:
                return [*search(lower, middle), *search(middle, upper)]
        at = math.sqrt(lower * upper)
        return [Crossover(axis=axis, at=at, before=names[lower], after=names[upper], how="bisected")]

    return tuple(search(low, high))
