"""Sizing: the fewest devices, or the least money, that train an amount by a deadline and within a budget.

For each kind of device the counts are tried upwards (powers of two up to a node, then whole nodes doubling)
until one meets the limits; then the whole nodes between the last that failed and the first that met them are
halved until few are left, and those are tried upwards. A count meets a limit where the probability of that,
from the interval of its best plan, reaches the confidence asked for.

Counts that cannot do it are left out without a search, by a bound that no plan beats:

    time >= 1/2 model FLOP of the amount / (devices x peak)    every FLOP at the datasheet's rate; half of
                                                               them, as a causal mask hides up to half
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from costmodel.errors import InfeasibleError, PlanError, UsageError
from costmodel.estimate import Z90
from costmodel.hardware.device import product_flop_per_s
from planner.objectives import OBJECTIVES, Terms, log_sigma, probability_within, training_time_s
from planner.render import duration
from planner.whatif.sweep import best_plan

if TYPE_CHECKING:
    from costmodel.predict import Forecaster, Prediction

__all__ = ["Candidate", "Goal", "Sizing", "candidate_counts", "size_training"]

_FEW = 8
"""Counts between two that are all tried: times do not fall with every count (a prime one splits badly)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What must be met, with what probability. None: no limit."""

    deadline_s: float | None = None
    budget_usd: float | None = None
    confidence: float = 0.9

    def __post_init__(self) -> None:
        for name in ("deadline_s", "budget_usd"):
            limit = getattr(self, name)
            if limit is not None and not (limit > 0 and math.isfinite(limit)):
                raise UsageError(f"{name}={limit:g}: must be positive")
        if not 0.0 < self.confidence < 1.0:
            raise UsageError(f"confidence {self.confidence:g}: must lie between 0 and 1, for example 0.9")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One device at one count: the best plan and what it takes, or why there is none."""

    hardware: str
    n_devices: int
    prediction: Prediction | None = None
    time_s: float | None = None
    cost_usd: float | None = None
    energy_j: float | None = None
    log_sigma: float = 0.0
    """Spread of ln(time) and of ln(cost)."""
    p_deadline: float | None = None
    p_budget: float | None = None
    reason: str = ""

    @property
    def probability(self) -> float:
        """P(both limits are met): time and cost of one run err together, so the lower of the two."""
        if self.prediction is None:
            return 0.0
        return min((p for p in (self.p_deadline, self.p_budget) if p is not None), default=1.0)

    def interval(self, value: float | None, sigma: float | None = None) -> tuple[float, float] | None:
        """90 % interval of a time or a cost of this candidate (or of another spread of the logarithm)."""
        if value is None:
            return None
        factor = math.exp(Z90 * (self.log_sigma if sigma is None else sigma))
        return value / factor, value * factor

    def to_dict(self) -> dict[str, Any]:
        """Plain fields."""
        return {
            "hardware": self.hardware,
            "n_devices": self.n_devices,
            "plan": None if self.prediction is None else str(self.prediction.plan),
            "step_time_s": None if self.prediction is None else self.prediction.step_time_s,
            "time_s": self.time_s,
            "time_interval_s": self.interval(self.time_s),
            "cost_usd": self.cost_usd,
            "cost_interval_usd": self.interval(self.cost_usd),
            "energy_j": self.energy_j,
            "energy_interval_j": self.interval(
                self.energy_j, None if self.prediction is None else log_sigma(self.prediction, "energy")
            ),
            "p_deadline": self.p_deadline,
            "p_budget": self.p_budget,
            "probability": self.probability,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """The counts tried, and which of them meet the goal with the fewest devices and with the least money."""

    goal: Goal
    candidates: tuple[Candidate, ...]
    fewest: Candidate
    cheapest: Candidate | None
    """None where no price is known."""
    prices: Mapping[str, str] = field(default_factory=dict)
    """Hardware -> its price and where that is from."""
    warnings: tuple[str, ...] = ()
    """Notes of the traces."""

    def to_dict(self) -> dict[str, Any]:
        """The fields of `size --json`."""
        return {
            "deadline_s": self.goal.deadline_s,
            "budget_usd": self.goal.budget_usd,
            "confidence": self.goal.confidence,
            "fewest": self.fewest.to_dict(),
            "cheapest": None if self.cheapest is None else self.cheapest.to_dict(),
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "prices": dict(self.prices),
            "warnings": list(self.warnings),
        }


def candidate_counts(ranks_per_node: int, most: int) -> list[int]:
    """1, 2, 4, ... up to a node, then 1, 2, 4, ... whole nodes, up to `most`.

    >>> candidate_counts(8, 40)
    [1, 2, 4, 8, 16, 32]
    """
    counts, count = [], 1
    while count < ranks_per_node:
        counts.append(count)
        count *= 2
    node = ranks_per_node
    while node <= most:
        counts.append(node)
        node *= 2
    return [n for n in counts if n <= most]


def size_training(
    forecasters: Mapping[str, Forecaster],
    *,
    goal: Goal,
    terms: Mapping[str, Terms],
    global_batch_size: int,
    most_devices: int = 16384,
    search: Callable[[Forecaster, int, int], Prediction] = best_plan,
) -> Sizing:
    """Size every kind of device (name -> forecaster) and choose.

    `terms`: per name the amount, price and power. Raises InfeasibleError, with the nearest change, where no
    count tried meets the goal; UsageError where a budget is given for devices without a price.
    """
    if goal.budget_usd is not None:
        unpriced = sorted(name for name in forecasters if terms[name].usd_per_hour is None)
        if unpriced:
            raise UsageError(
                f"--budget needs prices, and none is known of {', '.join(unpriced)}; give --price "
                f"{unpriced[0]}=USD per device-hour"
            )
    candidates: list[Candidate] = []
    for name, forecaster in forecasters.items():
        sizer = _Sizer(name, forecaster, goal, terms[name], global_batch_size, search)
        candidates += sizer.run(most_devices)
    meeting = [c for c in candidates if c.probability >= goal.confidence]
    if not meeting:
        raise InfeasibleError(_nearest(candidates, goal, most_devices))
    priced = [c for c in meeting if c.cost_usd is not None]
    return Sizing(
        goal=goal,
        candidates=tuple(candidates),
        fewest=min(meeting, key=lambda c: (c.n_devices, c.cost_usd or 0.0, c.time_s)),
        cheapest=min(priced, key=lambda c: (c.cost_usd, c.n_devices)) if priced else None,
        warnings=tuple(dict.fromkeys(note for made in forecasters.values() for note in made.notes)),
    )


class _Sizer:
    """Tries counts of one device."""

    def __init__(
        self,
        name: str,
        forecaster: Forecaster,
        goal: Goal,
        terms: Terms,
        batch: int,
        search: Callable[[Forecaster, int, int], Prediction],
    ) -> None:
        self.name, self.forecaster, self.goal, self.terms = name, forecaster, goal, terms
        self.batch, self.search = batch, search
        self.tried: dict[int, Candidate] = {}

    def run(self, most: int) -> list[Candidate]:
        network = self.forecaster.profile.network
        node = 1 if network is None else network.ranks_per_node
        counts = candidate_counts(node, most)
        below = 0
        for i, count in enumerate(counts):
            if self.meets(count):
                self.refine(below, count, node)
                self.look_further(counts[i:])
                break
            if self.hopeless(count):
                break
            below = count
        return [self.tried[count] for count in sorted(self.tried)]

    def meets(self, count: int) -> bool:
        if count not in self.tried:
            self.tried[count] = self.candidate(count)
        return self.tried[count].probability >= self.goal.confidence

    def refine(self, low: int, high: int, node: int) -> None:
        """The counts (whole nodes above one) between one that fails and one that meets the goal: halved until
        few are left, then tried upwards."""
        unit = node if high > node else 1
        while (high - low) // unit > _FEW:
            middle = (low + high) // 2 // unit * unit
            low, high = (low, middle) if self.meets(middle) else (middle, high)
        for count in range(low // unit * unit + unit, high, unit):
            if self.meets(count):
                return

    def look_further(self, counts: Sequence[int]) -> None:
        """Try larger counts for as long as they cost less: what fits only with recomputation costs more."""
        for count, following in pairwise(counts):
            cost = self.tried[count].cost_usd
            if cost is None or not self.meets(following):
                return
            if (self.tried[following].cost_usd or cost) >= cost:
                return

    def hopeless(self, count: int) -> bool:
        """Whether more devices cannot help: in time already, over the budget, and dearer than fewer were."""
        found = self.tried[count]
        if found.cost_usd is None or found.p_budget is None or found.p_budget >= self.goal.confidence:
            return False
        if found.p_deadline is not None and found.p_deadline < self.goal.confidence:
            return False
        fewer = [c.cost_usd for n, c in self.tried.items() if n < count and c.cost_usd is not None]
        return bool(fewer) and min(fewer) <= found.cost_usd

    def candidate(self, count: int) -> Candidate:
        if reason := self.impossible(count):
            return Candidate(hardware=self.name, n_devices=count, reason=reason)
        try:
            prediction = self.search(self.forecaster, count, self.batch)
        except (InfeasibleError, PlanError) as error:
            return Candidate(hardware=self.name, n_devices=count, reason=str(error))
        time_s = training_time_s(prediction, self.terms)
        sigma = log_sigma(prediction)
        cost = None if self.terms.usd_per_hour is None else OBJECTIVES["cost"].of(prediction, self.terms)
        energy = None if self.terms.board_w is None else OBJECTIVES["energy"].of(prediction, self.terms)
        deadline, budget = self.goal.deadline_s, self.goal.budget_usd
        return Candidate(
            hardware=self.name,
            n_devices=count,
            prediction=prediction,
            time_s=time_s,
            cost_usd=cost,
            energy_j=energy,
            log_sigma=sigma,
            p_deadline=None if deadline is None else probability_within(time_s, deadline, sigma),
            p_budget=None if budget is None or cost is None else probability_within(cost, budget, sigma),
        )

    def impossible(self, count: int) -> str:
        """Why no plan on so many devices can be in time; "" where the bound allows it."""
        if self.goal.deadline_s is None:
            return ""
        graph = self.forecaster.graph(1)
        samples = self.terms.samples or (self.terms.tokens or 0.0) / max(1, graph.seq_len or 1)
        framework, device = self.forecaster.framework, self.forecaster.profile.device
        types = {framework.compute_dtype, framework.half_products}
        types |= {framework.fp32_products, framework.fp32_convolutions}
        peak = count * max(product_flop_per_s(device, name) for name in types - {"same", "as products"})
        least_s = 0.5 * samples * self.forecaster.model_flop() / peak
        if least_s <= self.goal.deadline_s:
            return ""
        return f"takes {duration(least_s)} even at half of its FLOP and the datasheet's peak rate"


def _nearest(candidates: Sequence[Candidate], goal: Goal, most: int) -> str:
    """What failed, and the smallest change of the goal that a count tried would meet."""
    feasible = [c for c in candidates if c.prediction is not None]
    if not feasible:
        last = max(candidates, key=lambda c: c.n_devices)
        return (
            f"nothing up to {most} devices can do it: {last.hardware} x {last.n_devices}: {last.reason}; "
            "allow more devices (--max-gpus) or a later deadline, or take a larger device"
        )
    z = NormalDist().inv_cdf(goal.confidence)
    deadline, budget = goal.deadline_s or math.inf, goal.budget_usd or math.inf

    def days(c: Candidate) -> str:
        return f"{_at(c.time_s, c, z) / 86400:.3g} d"

    def dollars(c: Candidate) -> str:
        return f"{_at(c.cost_usd, c, z):.4g} USD"

    def way(c: Candidate) -> str:
        return f"({c.hardware} x {c.n_devices} as {c.prediction.plan if c.prediction else '-'})"

    changes = []
    affordable = [c for c in feasible if c.p_budget is None or c.p_budget >= goal.confidence]
    if goal.deadline_s is not None and affordable:
        c = min(affordable, key=lambda c: _at(c.time_s, c, z))
        changes.append(f"a deadline of {days(c)} {way(c)}")
    in_time = [c for c in feasible if c.p_deadline is None or c.p_deadline >= goal.confidence]
    if goal.budget_usd is not None and in_time:
        c = min(in_time, key=lambda c: _at(c.cost_usd, c, z))
        changes.append(f"a budget of {dollars(c)} {way(c)}")
    if goal.deadline_s is not None and goal.budget_usd is not None:
        c = min(feasible, key=lambda c: max(_at(c.time_s, c, z) / deadline, _at(c.cost_usd, c, z) / budget))
        changes.append(f"both {days(c)} and {dollars(c)} {way(c)}")
    tried = ", ".join(f"{c.hardware} x {c.n_devices}" for c in feasible)
    return (
        f"no count meets it with probability {goal.confidence:g} (tried {tried}); nearest: "
        f"{'; or '.join(changes) or 'another batch or device'}"
    )


def _at(value: float | None, candidate: Candidate, z: float) -> float:
    """The limit that a time or cost keeps with the probability of z."""
    return math.inf if value is None else value * math.exp(z * candidate.log_sigma)
