"""One what-if study from names to results: points, curves, crossovers, elasticities, prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planner.prices import parse_prices, price_of
from planner.whatif.crossovers import Curve, crossovers, curves
from planner.whatif.elasticity import Elasticity, arc_elasticities, elasticities
from planner.whatif.scaling import ScalingPoint, scaling
from planner.whatif.sweep import best_plan, fitted_plan, forecaster_of
from planner.whatif.terms import Crossover

__all__ = ["Study", "point_elasticities", "run_study"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What `whatif` says."""

    points: tuple[ScalingPoint, ...]
    curves: tuple[Curve, ...]
    crossovers: tuple[tuple[Curve, tuple[Crossover, ...]], ...]
    """Of the curves that have one."""
    elasticities: tuple[tuple[ScalingPoint, tuple[Elasticity, ...]], ...]
    prices: Mapping[str, str]
    """Hardware -> its price and where that is from."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is noted of every point's forecast."""
        noted = [p.prediction.warnings for p in self.points if p.prediction is not None]
        return tuple(w for w in noted[0] if all(w in others for others in noted)) if noted else ()

    def to_dict(self) -> dict[str, Any]:
        """The fields of `whatif --json`."""
        return {
            "points": [point.to_dict() for point in self.points],
            "crossovers": [
                {**curve.to_dict(), "crossovers": [crossing.to_dict() for crossing in found]}
                for curve, found in self.crossovers
            ],
            "elasticities": [
                {
                    "hardware": point.hardware,
                    "n_devices": point.n_devices,
                    "varied": dict(point.varied),
                    "plan": str(point.prediction.plan) if point.prediction else None,
                    "elasticities": [e.to_dict() for e in found],
                }
                for point, found in self.elasticities
            ],
            "prices": dict(self.prices),
            "warnings": list(self.warnings),
        }


def run_study(
    model: str,
    *,
    hardware: Sequence[str],
    n_devices: Sequence[int],
    global_batch_size: int,
    weak: bool = False,
    vary: Mapping[str, Sequence[Any]] | None = None,
    plan: str | None = None,
    with_elasticities: bool = False,
    prices: Sequence[str] | None = None,
    seq_len: int | None = None,
    framework: str = "pytorch",
    optimizer: str = "adamw",
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    n_jobs: int = 1,
) -> Study:
    """Sweep, then find crossovers and (where asked) elasticities. Raises as `scaling` does."""
    own = parse_prices(prices)
    known = {name: price for name in hardware if (price := price_of(name, own)) is not None}
    points = scaling(
        model,
        hardware=hardware,
        n_devices=n_devices,
        global_batch_size=global_batch_size,
        weak=weak,
        seq_len=seq_len,
        framework=framework,
        optimizer=optimizer,
        overrides=overrides,
        trust_remote_code=trust_remote_code,
        vary=vary,
        plan=plan,
        prices={name: price.usd_per_hour for name, price in known.items()},
        n_jobs=n_jobs,
    )
    found = curves(points)
    crossed = [(curve, crossovers(curve)) for curve in found]
    feasible = [p for p in points if p.prediction is not None] if with_elasticities else []
    return Study(
        points=tuple(points),
        curves=found,
        crossovers=tuple((curve, crossings) for curve, crossings in crossed if crossings),
        elasticities=tuple((point, point_elasticities(point)) for point in feasible),
        prices={name: price.text for name, price in known.items()},
    )


def point_elasticities(point: ScalingPoint) -> tuple[Elasticity, ...]:
    """Elasticities in every lever, in GPUs and in batch at one feasible point of a study."""
    assert point.prediction is not None
    assert point.setting is not None
    setting, forecaster = point.setting, forecaster_of(point.setting)

    def search(forecaster: Any, n_devices: int, batch: int) -> Any:
        if setting.plan is None:
            return best_plan(forecaster, n_devices, batch)
        return forecaster.forecast(fitted_plan(setting.plan, n_devices, batch)).prediction

    return (
        *elasticities(forecaster, point.prediction.plan),
        *arc_elasticities(forecaster, point.prediction, search),
    )
