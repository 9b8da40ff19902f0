"""Search: price every plan of the space, rank them, and say why the losers lose."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import costmodel
from costmodel.errors import InfeasibleError, PlanError
from costmodel.estimate import Z90
from costmodel.predict import Prediction
from planner.space import Limits, Space, divisors, enumerate_plans

if TYPE_CHECKING:
    from costmodel.predict import Forecaster

__all__ = ["RankedPlan", "SearchResult", "explain", "pareto_front", "probability_faster", "search"]

_UNCERTAINTY = Path(costmodel.__path__[0]) / "data" / "uncertainty.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedPlan:
    """A feasible plan, its place, and what it loses against the first."""

    prediction: Prediction
    probability_best: float
    """Probability that it is faster than the plan ranked first (0.5 for the first itself)."""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Everything `plan --json` says."""

    n_considered: int
    n_excluded: dict[str, int]
    search_time_s: float
    ranked: tuple[RankedPlan, ...]
    pareto: tuple[Prediction, ...]
    explanation: str = ""

    def explaining(self, a: str, b: str) -> SearchResult:
        """The same result with `explanation` filled in for two of its plans. Raises PlanError."""
        from costmodel.plan import Plan

        found = {r.prediction.plan: r.prediction for r in self.ranked}
        pair = []
        for text in (a, b):
            plan = Plan.parse(text)
            matches = [p for key, p in found.items() if key == plan]
            if not matches:
                raise PlanError(
                    f"--explain {text!r}: not among the {len(found)} feasible plans of this search"
                )
            pair.append(matches[0])
        return replace(self, explanation=explain(*pair))

    def to_dict(self, *, top: int | None = None) -> dict[str, Any]:
        """The fields of `plan --json`; `top` limits the plans listed."""
        return {
            "n_considered": self.n_considered,
            "n_excluded": self.n_excluded,
            "search_time_s": self.search_time_s,
            "plans": [
                {
                    **r.prediction.to_dict(),
                    "probability_best": r.probability_best,
                    "why": r.why,
                }
                for r in self.ranked[:top]
            ],
            "pareto": [p.to_dict() for p in self.pareto],
            "explanation": self.explanation,
        }


def search(
    forecaster: Forecaster,
    *,
    n_devices: int,
    global_batch_size: int,
    schedules: Sequence[str] = ("gpipe", "1f1b"),
    zero_stages: Sequence[int] = (0, 1, 3),
    recompute: Sequence[str] | None = None,
) -> SearchResult:
    """Rank every feasible plan. Raises InfeasibleError with the nearest feasible change where none fits.

    Recomputation is tried where nothing fits without it, unless `recompute` says which to try.
    """
    start = time.perf_counter()
    policies: Sequence[str] = recompute or ("none",)
    space, predictions = _price(forecaster, n_devices, global_batch_size, schedules, zero_stages, policies)
    fitting = [p for p in predictions if p.fits]
    if not fitting and recompute is None:
        policies = ("selective", "full")
        space, predictions = _price(
            forecaster, n_devices, global_batch_size, schedules, zero_stages, policies
        )
        fitting = [p for p in predictions if p.fits]
    excluded = dict(space.n_excluded)
    too_large = len(predictions) - len(fitting)
    if too_large:
        excluded["does not fit the device's memory"] = too_large
    if not fitting:
        raise InfeasibleError(_nearest(predictions, n_devices, excluded))
    fitting.sort(key=lambda p: (p.step_time_s, p.peak_memory_bytes, str(p.plan)))
    best = fitting[0]
    ranked = tuple(
        RankedPlan(
            prediction=p,
            probability_best=0.5 if p is best else probability_faster(p, best),
            why="" if p is best else _why(best, p),
        )
        for p in fitting
    )
    return SearchResult(
        n_considered=space.n_considered,
        n_excluded=excluded,
        search_time_s=time.perf_counter() - start,
        ranked=ranked,
        pareto=pareto_front(fitting),
    )


def _price(
    forecaster: Forecaster,
    n_devices: int,
    batch: int,
    schedules: Sequence[str],
    zero_stages: Sequence[int],
    recompute: Sequence[str],
) -> tuple[Space, list[Prediction]]:
    network = forecaster.profile.network
    max_tp = 1 if network is None else max(1, network.ranks_per_node)
    limits = Limits(
        n_units=forecaster.n_units(),
        tp_degrees=frozenset(d for d in divisors(n_devices) if d <= max_tp and forecaster.can_shard(d)),
        max_tp=max_tp,
    )
    space = enumerate_plans(
        n_devices,
        batch,
        limits,
        schedules=schedules,
        zero_stages=zero_stages,
        recompute=recompute,
    )
    predictions = []
    for plan in space.plans:
        try:
            predictions.append(forecaster.forecast(plan).prediction)
        except PlanError as error:
            space.n_excluded[str(error).split(":")[0]] += 1
    return space, predictions


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


def _why(best: Prediction, other: Prediction) -> str:
    worst = [(part, gap) for part, gap in _differences(best, other) if gap > 0][:2]
    if not worst:
        return "equal time, more memory"
    return ", ".join(f"{part} {100 * gap / best.step_time_s:+.1f} %" for part, gap in worst)


def explain(a: Prediction, b: Prediction) -> str:
    """Why a beats b: the difference of their breakdowns, and what b would have to gain."""
    gap = b.step_time_s - a.step_time_s
    lines = [f"{a.plan}: {a.step_time_s:.6g} s; {b.plan}: {b.step_time_s:.6g} s; difference {gap:+.6g} s"]
    lines += [f"  {part}: {seconds:+.6g} s" for part, seconds in _differences(a, b) if seconds]
    lines.append(f"  P({a.plan} is faster) = {probability_faster(a, b):.2f}")
    losing = [(part, s) for part, s in _differences(a, b) if s > 0]
    if gap > 0 and losing:
        part, excess = losing[0]
        have = b.breakdown_s.get(part, 0.0)
        if have > gap:
            lines.append(f"  {b.plan} wins once its {part} falls by {gap / have:.0%} (has {have:.4g} s)")
        else:
            lines.append(f"  no {part} at all would not be enough for {b.plan}: it has {have:.4g} s")
        del excess
    return "\n".join(lines)


def _nearest(predictions: Sequence[Prediction], n_devices: int, excluded: dict[str, int]) -> str:
    if not predictions:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in excluded.items())
        return f"no plan for {n_devices} devices: {reasons}; change the batch or the number of devices"
    least = min(predictions, key=lambda p: p.peak_memory_bytes)
    need, have = least.peak_memory_bytes, least.device_memory_bytes
    more = math.ceil(n_devices * need / have)
    return (
        f"nothing fits: the leanest of {len(predictions)} plans, {least.plan}, needs "
        f"{need / 2**30:.1f} GiB of {have / 2**30:.1f} GiB per device; try about {more} devices "
        "or a device with more memory"
    )
