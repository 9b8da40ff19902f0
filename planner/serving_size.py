"""Sizing of servers: the fewest devices that answer requests within limits of latency.

A replica is a tensor- and pipeline-parallel group; replicas share the requests. For each shape of replica the
highest rate is found at which the first token and the tokens after it come in time (`costmodel.predict.
serving`, a steady rate; both rise with it), and as many replicas as the rate asked for needs.

    devices = tp pp ceil(rate / rate of one replica)

A limit counts as met where the probability of that reaches the confidence: the time predicted, stretched by
that quantile of the forecast's spread, stays within it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from costmodel.closed_form import divisors
from costmodel.errors import InfeasibleError, PlanError, UsageError
from costmodel.plan import Plan
from costmodel.predict.serving import serve

if TYPE_CHECKING:
    from costmodel.predict.inference import InferenceForecaster
    from costmodel.predict.serving import ServingPrediction

__all__ = ["LatencyGoal", "Replica", "ServingSize", "replica_plans", "size_serving"]

_BISECTIONS = 12
"""Of the rate on a log scale from a hundredth of the capacity: to 0.1 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyGoal:
    """Limits in seconds (None: none) at a rate of requests."""

    rate_per_s: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    confidence: float = 0.9

    def __post_init__(self) -> None:
        for name in ("rate_per_s", "ttft_s", "tpot_s"):
            limit = getattr(self, name)
            if limit is not None and not (limit > 0 and math.isfinite(limit)):
                raise UsageError(f"{name}={limit:g}: must be positive")
        if not 0.0 < self.confidence < 1.0:
            raise UsageError(f"confidence {self.confidence:g}: must lie between 0 and 1, for example 0.9")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One shape of replica on one device: what it holds within the limits, and how many are needed."""

    hardware: str
    plan: Plan
    rate_per_s: float = 0.0
    """The highest rate of one replica within the limits; 0 where it meets them at no rate."""
    n_replicas: int | None = None
    prediction: ServingPrediction | None = None
    """At the share of the rate that each replica gets; alone, at next to no load, where it meets none."""
    usd_per_hour: float | None = None
    """Of all devices."""
    reason: str = ""

    @property
    def n_devices(self) -> int | None:
        """Devices of all replicas."""
        return None if self.n_replicas is None else self.n_replicas * self.plan.world_size

    def to_dict(self) -> dict[str, Any]:
        """Plain fields."""
        return {
            "hardware": self.hardware,
            "plan": str(self.plan),
            "n_devices": self.n_devices,
            "n_replicas": self.n_replicas,
            "rate_per_replica_per_s": self.rate_per_s,
            "usd_per_hour": self.usd_per_hour,
            "prediction": None if self.prediction is None else self.prediction.to_dict(),
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSize:
    """Every shape tried, and the choice with the fewest devices and with the lowest price."""

    goal: LatencyGoal
    replicas: tuple[Replica, ...]
    fewest: Replica
    cheapest: Replica | None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields of `size --json` for serving."""
        return {
            "rate_per_s": self.goal.rate_per_s,
            "ttft_s": self.goal.ttft_s,
            "tpot_s": self.goal.tpot_s,
            "confidence": self.goal.confidence,
            "fewest": self.fewest.to_dict(),
            "cheapest": None if self.cheapest is None else self.cheapest.to_dict(),
            "candidates": [replica.to_dict() for replica in self.replicas],
            "warnings": list(self.warnings),
        }


def replica_plans(ranks_per_node: int, most_nodes: int = 4) -> list[Plan]:
    """Tensor parallelism over divisors of a node, and pipelines of whole nodes of it."""
    plans = [Plan(tp=tp) for tp in divisors(ranks_per_node)]
    return plans + [Plan(tp=ranks_per_node, pp=pp) for pp in range(2, most_nodes + 1)]


def size_serving(
    forecasters: Mapping[str, InferenceForecaster],
    *,
    goal: LatencyGoal,
    prompt_len: int,
    output_len: int,
    prices: Mapping[str, float] | None = None,
    plans: Iterable[Plan] | None = None,
) -> ServingSize:
    """Size every kind of device (name -> forecaster) and choose.

    `prices`: name -> USD per device-hour. Raises InfeasibleError, with the nearest change, where no shape
    meets the limits; UsageError or PlanError where the model cannot be served.
    """
    replicas = []
    for name, forecaster in forecasters.items():
        network = forecaster.profile.network
        shapes = list(plans or replica_plans(1 if network is None else network.ranks_per_node))
        for plan in shapes:
            price = (prices or {}).get(name)
            replicas.append(_replica(name, forecaster, plan, goal, prompt_len, output_len, price))
    meeting = [r for r in replicas if r.n_devices is not None]
    if not meeting:
        raise InfeasibleError(_nearest(replicas, goal))
    priced = [r for r in meeting if r.usd_per_hour is not None]
    return ServingSize(
        goal=goal,
        replicas=tuple(replicas),
        fewest=min(meeting, key=lambda r: (r.n_devices, r.usd_per_hour or 0.0, r.plan.world_size)),
        cheapest=min(priced, key=lambda r: (r.usd_per_hour, r.n_devices)) if priced else None,
        warnings=tuple(
            dict.fromkeys(w for f in forecasters.values() for w in f.warnings(prompt_len + output_len))
        ),
    )


def _replica(
    name: str,
    forecaster: InferenceForecaster,
    plan: Plan,
    goal: LatencyGoal,
    prompt_len: int,
    output_len: int,
    price: float | None,
) -> Replica:
    def at(rate_per_s: float) -> ServingPrediction:
        return serve(forecaster, plan, prompt_len=prompt_len, output_len=output_len, rate_per_s=rate_per_s)

    try:
        alone = forecaster.generate(plan, batch_size=1, prompt_len=prompt_len, output_len=output_len)
        stretch = math.exp(NormalDist().inv_cdf(goal.confidence) * alone.log_sigma)
        idle = at(0.01 / alone.latency_s)
    except (InfeasibleError, PlanError) as error:
        return Replica(hardware=name, plan=plan, reason=str(error))
    if missed := _missed(idle, goal, stretch):
        return Replica(hardware=name, plan=plan, prediction=idle, reason=f"without load, {missed}")

    def holds(rate_per_s: float) -> bool:
        try:
            return not _missed(at(rate_per_s), goal, stretch)
        except InfeasibleError:
            return False

    low, high = idle.rate_per_s, idle.capacity_per_s
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    n_replicas = math.ceil(goal.rate_per_s / low)
    return Replica(
        hardware=name,
        plan=plan,
        rate_per_s=low,
        n_replicas=n_replicas,
        prediction=at(goal.rate_per_s / n_replicas),
        usd_per_hour=None if price is None else price * n_replicas * plan.world_size,
    )


def _missed(prediction: ServingPrediction, goal: LatencyGoal, stretch: float) -> str:
    """Which limit a prediction misses, with the numbers; "" where none."""
    for what, seconds, limit in (
        ("the first token", prediction.time_to_first_token_s, goal.ttft_s),
        ("each further token", prediction.time_per_output_token_s, goal.tpot_s),
    ):
        if limit is not None and seconds * stretch > limit:
            return (
                f"{what} takes {seconds * stretch:.3g} s at probability {goal.confidence:g} "
                f"(limit {limit:.3g} s)"
            )
    return ""


def _nearest(replicas: list[Replica], goal: LatencyGoal) -> str:
    """What stands nearest to the limits."""
    served = [r for r in replicas if r.prediction is not None]
    if not served:
        return "no shape of replica can serve it: " + "; ".join(
            f"{r.hardware} {r.plan}: {r.reason}" for r in replicas
        )

    def excess(r: Replica) -> float:
        assert r.prediction is not None
        return max(
            r.prediction.time_to_first_token_s / (goal.ttft_s or math.inf),
            r.prediction.time_per_output_token_s / (goal.tpot_s or math.inf),
        )

    nearest = min(served, key=excess)
    return (
        f"no shape of replica meets the limits; nearest: {nearest.hardware} as {nearest.plan}, where "
        f"{nearest.reason}; relax that limit, shorten the prompt or take a faster device"
    )
