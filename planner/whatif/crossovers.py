"""Where along a study's curves another term of the step becomes the largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from planner.whatif.levers import LEVERS, scaled
from planner.whatif.scaling import ScalingPoint
from planner.whatif.sweep import Setting, forecaster_of
from planner.whatif.terms import Crossover, bisected, interpolated

__all__ = ["Curve", "crossovers", "curves"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points that differ in one numeric axis only, in its order."""

    axis: str
    held: tuple[tuple[str, Any], ...]
    """What the points share: hardware, count and other axes (where the axis is not the count)."""
    points: tuple[tuple[float, ScalingPoint], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain fields, without the points."""
        return {"axis": self.axis, "held": dict(self.held), "values": [x for x, _ in self.points]}


def curves(points: Sequence[ScalingPoint]) -> tuple[Curve, ...]:
    """Every curve of at least two feasible points, along the count and along each numeric axis."""
    found: dict[tuple[Any, ...], list[tuple[float, ScalingPoint]]] = {}
    for point in points:
        if point.prediction is None:
            continue
        values = {"hardware": point.hardware, "gpus": point.n_devices, **dict(point.varied)}
        for axis, value in values.items():
            if axis in ("hardware", "price") or not isinstance(value, (int, float)) or value <= 0:
                continue
            held = tuple((name, v) for name, v in values.items() if name != axis)
            found.setdefault((axis, held), []).append((float(value), point))
    return tuple(
        Curve(axis=axis, held=held, points=tuple(sorted(members, key=lambda m: m[0])))
        for (axis, held), members in found.items()
        if len({x for x, _ in members}) > 1
    )


def crossovers(curve: Curve) -> tuple[Crossover, ...]:
    """Every change of the largest term along a curve.

    On a lever, forecasts in between are made (of the plans of both neighbours, the faster counting) until the
    place is known to half a percent; on an axis of whole numbers it is interpolated.
    """
    found: list[Crossover] = []
    for (x, first), (y, second) in pairwise(curve.points):
        assert first.prediction is not None
        assert second.prediction is not None
        if first.limit == second.limit:
            continue
        ends = [(x, first.prediction.breakdown_s), (y, second.prediction.breakdown_s)]
        if curve.axis in LEVERS and first.setting is not None:
            found += bisected(curve.axis, x, y, _Between(curve.axis, first.setting, (first, second)))
        else:
            found += interpolated(curve.axis, ends)
    return tuple(found)


class _Between:
    """Breakdown of the faster of two points' plans, at a factor of a lever in between."""

    def __init__(self, lever: str, setting: Setting, ends: tuple[ScalingPoint, ScalingPoint]) -> None:
        self._lever = lever
        others = tuple(pair for pair in setting.factors if pair[0] != lever)
        self._forecaster = forecaster_of(replace(setting, factors=others))
        self._plans = tuple({p.prediction.plan for p in ends if p.prediction is not None})

    def __call__(self, factor: float) -> Mapping[str, float]:
        forecaster = scaled(self._forecaster, {self._lever: factor})
        predictions = [forecaster.forecast(plan).prediction for plan in self._plans]
        return min(predictions, key=lambda p: (p.step_time_s, str(p.plan))).breakdown_s
