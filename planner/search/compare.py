"""Two predictions held against each other: which is faster, how sure, and why."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import costmodel
from costmodel.estimate import Z90
from costmodel.predict import Prediction

__all__ = ["pareto_front", "probability_faster", "why_slower"]

_UNCERTAINTY = Path(costmodel.__path__[0]) / "data" / "uncertainty.json"


@lru_cache(maxsize=1)
def _shared_error_fraction() -> float:
    return float(json.loads(_UNCERTAINTY.read_text())["shared_error_fraction"])


def probability_faster(a: Prediction, b: Prediction) -> float:
    """P(a's step is shorter than b's), both log-normal, errors correlated by what both run.

    d = ln b - ln a is normal with variance sa^2 + sb^2 - 2 rho sa sb.
    """
    sa, sb = (math.log(p.step_time_high_s / p.step_time_low_s) / (2 * Z90) for p in (a, b))
    variance = sa * sa + sb * sb - 2 * _shared_error_fraction() * sa * sb
    gap = math.log(b.step_time_s / a.step_time_s)
    if variance <= 0:
        return 0.5 if gap == 0 else float(gap > 0)
    return 0.5 * math.erfc(-gap / math.sqrt(2 * variance))


def pareto_front(predictions: Sequence[Prediction]) -> tuple[Prediction, ...]:
    """Plans that no other beats in both step time and peak memory, fastest first."""
    front: list[Prediction] = []
    for p in sorted(predictions, key=lambda p: (p.step_time_s, p.peak_memory_bytes)):
        if not front or p.peak_memory_bytes < front[-1].peak_memory_bytes:
            front.append(p)
    return tuple(front)


def _differences(a: Prediction, b: Prediction) -> list[tuple[str, float]]:
    parts = {k: b.breakdown_s.get(k, 0.0) - a.breakdown_s.get(k, 0.0) for k in b.breakdown_s}
    return sorted(parts.items(), key=lambda item: -abs(item[1]))


def why_slower(best: Prediction, other: Prediction) -> str:
    """The two parts of the step in which `other` loses most."""
    worst = [(part, gap) for part, gap in _differences(best, other) if gap > 0][:2]
    if not worst:
        return "equal time, more memory"
    return ", ".join(f"{part} {100 * gap / best.step_time_s:+.1f} %" for part, gap in worst)
