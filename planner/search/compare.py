"""Predictions held against each other: which are worth having, and why one loses."""

from __future__ import annotations

from collections.abc import Sequence

from costmodel.predict import Prediction

__all__ = ["pareto_front", "why_slower"]


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
