"""What a search found."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.certainty import probability_faster, tie
from planner.render import bytes_text
from planner.search.compare import why_slower

if TYPE_CHECKING:
    from costmodel.closed_form import Evaluated
    from costmodel.plan import Plan
    from costmodel.predict import Prediction
    from planner.certainty import Deciding
    from planner.explaining import Explanation
    from planner.problem import Problem

__all__ = ["RankedPlan", "SearchResult", "Standing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedPlan:
    """A feasible plan, its place, and what it loses against the first."""

    prediction: Prediction
    probability_best: float
    """Probability that it is faster than the plan ranked first (0.5 for the first itself)."""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where one plan lies among all feasible ones."""

    prediction: Prediction
    n_faster: int
    """Feasible plans whose estimate is shorter."""
    n_feasible: int

    @property
    def fraction(self) -> float:
        """Share of the feasible plans that are faster."""
        return self.n_faster / max(1, self.n_feasible)

    def to_dict(self) -> dict[str, Any]:
        """Plain fields."""
        return {
            **self.prediction.to_dict(),
            "n_faster": self.n_faster,
            "n_feasible": self.n_feasible,
            "fraction": self.fraction,
        }

    def text(self, best: Prediction) -> str:
        """Where it stands, and by how much and why the best one is faster."""
        fits = "" if self.prediction.fits else f" (needs {bytes_text(self.prediction.peak_memory_bytes)})"
        gap = self.prediction.step_time_s / best.step_time_s - 1.0
        return (
            f"{self.prediction.plan}{fits}: {self.n_faster} of {self.n_feasible} feasible plans are faster "
            f"({self.fraction:.1%})\n"
            f"{best.plan} {_by(gap)}: {why_slower(best, self.prediction)}; "
            f"P = {probability_faster(best, self.prediction):.2f}"
        )


def _by(gap: float) -> str:
    """How a plan that another takes `gap` longer than compares; one that does not fit may take less."""
    return f"is {gap:.1%} faster" if gap >= 0 else f"fits and takes {1.0 / (1.0 + gap):.1f} times as long"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Everything `plan --json` says."""

    n_considered: int
    n_excluded: dict[str, int]
    n_feasible: int
    """Plans that fit the device's memory."""
    n_skipped: int
    """Feasible plans that the event engine was not asked about."""
    proven: bool
    """Whether none of those skipped can be faster than the first: their bounds say so."""
    search_time_s: float
    ranked: tuple[RankedPlan, ...]
    """The plans that the event engine priced, fastest first."""
    pareto: tuple[Prediction, ...]
    explanation: Explanation | None = None
    """Of the two plans that were asked about."""
    problem: Problem | None = None
    """What was asked, so that it can be asked again."""
    deciding: tuple[Deciding, ...] = ()
    """What to measure to tell the first plan from the next, where they are a tie."""
    standing: Standing | None = None
    """Of the plan that was asked about."""
    space: Evaluated | None = field(default=None, repr=False)
    """Every plan of the space with its bound, estimate and memory."""

    @property
    def ties(self) -> tuple[Plan, ...]:
        """Ranked plans that cannot be told from the first."""
        return tuple(
            r.prediction.plan for r in self.ranked[1:] if tie(self.ranked[0].prediction, r.prediction)
        )

    def with_standing(self, prediction: Prediction) -> SearchResult:
        """The same result with where this plan lies among the feasible plans' estimates; for one of the
        space's own plans its own estimate counts. At least those that the engine found faster are counted."""
        assert self.space is not None
        feasible = self.space.fits(prediction.device_memory_bytes)
        estimates = self.space.estimate_s[feasible]
        row = self.space.find(prediction.plan)
        own_s = prediction.step_time_s if row is None else float(self.space.estimate_s[row])
        if not np.isfinite(own_s):  # one that does not fit has no estimate
            own_s = prediction.step_time_s
        priced_faster = sum(r.prediction.step_time_s < prediction.step_time_s for r in self.ranked)
        standing = Standing(
            prediction=prediction,
            n_faster=max(int(np.sum(estimates < own_s)), priced_faster),
            n_feasible=int(feasible.sum()),
        )
        return replace(self, standing=standing)

    def to_dict(self, *, top: int | None = None) -> dict[str, Any]:
        """The fields of `plan --json`; `top` limits the plans listed."""
        return {
            "problem": None if self.problem is None else self.problem.to_dict(),
            "n_considered": self.n_considered,
            "n_excluded": self.n_excluded,
            "n_feasible": self.n_feasible,
            "n_skipped": self.n_skipped,
            "proven": self.proven,
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
            "ties": [str(plan) for plan in self.ties],
            "deciding": [d.to_dict() for d in self.deciding],
            "explanation": None if self.explanation is None else self.explanation.to_dict(),
            "standing": None if self.standing is None else self.standing.to_dict(),
        }
