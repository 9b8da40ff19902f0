"""Whether P(plan A is faster than plan B) is what it says: of the pairs given 70 to 80 %, do so many hold?

Pairs are rows of one group, one problem (model, GPU, types, framework) and one metric whose plans differ.
Neither row comes first by right, so a pair counts both ways: P for one order, 1 - P for the other. Equal
measurements decide nothing and are left out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from planner.validation.scoring import ScoredRow, is_higher_better

__all__ = ["PLAN", "PROBLEM", "Pair", "pairs_of", "reliability"]

PROBLEM = "problem"
PLAN = "plan"
"""Labels of a row: what all plans of a comparison have in common, and the plan."""
_BINS = 10
_ENOUGH_PAIRS = 30
"""A bin of fewer pairs says little: its share of hits has a standard error near 10 points."""


class Pair(NamedTuple):
    """P that the first row's step is shorter, and whether it was; `source` is the rows'."""

    source: str
    probability: float
    shorter: bool


def pairs_of(rows: Sequence[ScoredRow]) -> list[Pair]:
    """Every comparison that the rows allow."""
    from costmodel.predict.uncertainty import probability_shorter

    groups: dict[tuple[str, str, str], list[ScoredRow]] = defaultdict(list)
    for row in rows:
        if row.skipped is None and row.group and row.loadings:
            groups[row.group, row.label(PROBLEM), row.metric].append(row)
    found = []
    for (_, _, metric), members in groups.items():
        sign = -1.0 if is_higher_better(metric) else 1.0
        for a, b in combinations(members, 2):
            if a.label(PLAN) == b.label(PLAN) or a.measured == b.measured:
                continue
            keys = a.loadings.keys() | b.loadings.keys()
            sigma = math.hypot(*(a.loadings.get(k, 0.0) - b.loadings.get(k, 0.0) for k in keys))
            predicted = [row.predicted or math.nan for row in (a, b)]
            gap = sign * math.log(predicted[1] / predicted[0])
            probability = float(probability_shorter(np.array([gap]), np.array([sigma]))[0])
            found.append(Pair(a.source, probability, sign * ((b.measured or 0.0) - (a.measured or 0.0)) > 0))
    return found


def reliability(rows: Sequence[ScoredRow]) -> dict[str, Any]:
    """The table overall and per source, as `validate published --json` prints it under `reliability`.

    `bins`: {low, high, n, mean_probability, share_shorter}, n of both orders; `largest_gap`: of the bins with
    enough pairs (`enough`), the largest |share_shorter - mean_probability|; `brier`: mean squared error of P.
    """
    pairs = pairs_of(rows)
    by_source: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_source[pair.source].append(pair)
    return {
        "overall": _table(pairs),
        "by_source": {name: _table(found) for name, found in sorted(by_source.items())},
        "enough": _ENOUGH_PAIRS,
    }


def _table(pairs: Sequence[Pair]) -> dict[str, Any]:
    one_way = np.array([p.probability for p in pairs])
    was = np.array([p.shorter for p in pairs], dtype=np.float64)
    probability = np.concatenate([one_way, 1.0 - one_way])
    shorter = np.concatenate([was, 1.0 - was])
    place = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    bins: list[dict[str, float | int | None]] = []
    gaps = []
    for k in range(_BINS):
        inside = place == k
        n = int(inside.sum())
        mean, share = (float(v[inside].mean()) if n else None for v in (probability, shorter))
        if mean is not None and share is not None and n >= _ENOUGH_PAIRS:
            gaps.append(abs(share - mean))
        bins.append(
            {
                "low": k / _BINS,
                "high": (k + 1) / _BINS,
                "n": n,
                "mean_probability": mean,
                "share_shorter": share,
            }
        )
    return {
        "n_pairs": len(pairs),
        "bins": bins,
        "largest_gap": max(gaps, default=None),
        "brier": float(np.mean((probability - shorter) ** 2)) if len(pairs) else None,
    }
