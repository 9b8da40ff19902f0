"""`calibrate --for`: measure what a search's contenders differ in, and say again which of them wins.

One figure ends measuring and is reported: P(the winner is the fastest of the contenders), as the profile that
is written says it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.api import calibrate_for
from calibrate.environment import Machine
from calibrate.journal import samples_path, taken_on
from calibrate.refit import require_same_kind
from costmodel.errors import InfeasibleError, PlanError
from costmodel.hardware.store import load_profile
from planner.certainty import TIE_BELOW, probabilities_best, probabilities_faster, restated
from planner.problem import read_plan_file
from planner.wanted import alike_with, contenders_of, wanted_list

if TYPE_CHECKING:
    from calibrate.deciding import Outcome
    from calibrate.wanted import Wanted
    from costmodel.hardware.schema import HardwareProfile
    from costmodel.plan import Plan
    from costmodel.predict import Forecaster, Prediction

__all__ = ["Contender", "DecidedPlan", "ToDecide", "decide", "list_for"]

_PLANS_LOOKED_AT = 40
"""Of a long list, the first ones: a plan far down is no contender."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A plan before and after measuring; probabilities are of being the fastest of the contenders (those that
    are forecast alike share theirs). `alike`: other plans of the list that nothing can tell from it."""

    plan: str
    alike: tuple[str, ...] = ()
    before_s: float
    after_s: float
    probability_before: float
    probability_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedPlan:
    """The contenders, fastest first after measuring, and how measuring went. `others`: plans of the list that
    were no contenders and by the new profile may be faster than the winner."""

    profile: HardwareProfile
    contenders: tuple[Contender, ...]
    outcome: Outcome
    others: tuple[str, ...] = ()

    @property
    def winner(self) -> Contender:
        """The fastest as the new profile predicts."""
        return self.contenders[0]

    def to_dict(self) -> dict[str, Any]:
        """The fields of `calibrate --for --json`."""
        return {
            "winner": self.winner.plan,
            "probability": self.winner.probability_after,
            "contenders": [{name: getattr(c, name) for name in Contender.__slots__} for c in self.contenders],
            "others": list(self.others),
            "n_items": self.outcome.n_items,
            "n_unmeasurable": self.outcome.n_unmeasurable,
            "n_visits": self.outcome.n_visits,
            "ended": self.outcome.reason,
            "profile": self.profile.name,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ToDecide:
    """What to measure, the contenders, the plans that are forecast alike with each, and all the others."""

    wanted: Wanted
    contenders: tuple[Prediction, ...]
    alike: tuple[tuple[str, ...], ...]
    others: tuple[Plan, ...] = ()


def list_for(forecaster: Forecaster, plans: Sequence[Plan]) -> ToDecide:
    """What to measure for some plans of a forecaster, and the contenders among them.

    Raises InfeasibleError where fewer than two of the plans can be predicted: there is nothing to decide.
    """
    predictions = []
    for plan in plans[:_PLANS_LOOKED_AT]:
        try:
            predictions.append(forecaster.forecast(plan).prediction)
        except PlanError:
            continue
    fitting = [p for p in predictions if p.fits]
    if len(fitting) < 2:
        raise InfeasibleError(
            f"of {len(plans)} plan{'s' * (len(plans) != 1)} in the list {len(fitting)} can be predicted on "
            f"{forecaster.profile.name!r} and fit: a decision needs at least two; give a longer list or "
            "another --base"
        )
    contenders = contenders_of(fitting)
    alike = tuple(alike_with(c, fitting) for c in contenders)
    named = {str(c.plan) for c in contenders}.union(*alike)
    return ToDecide(
        wanted=wanted_list(forecaster, contenders),
        contenders=tuple(contenders),
        alike=alike,
        others=tuple(p.plan for p in fitting if str(p.plan) not in named),
    )


def decide(
    plan_file: Path,
    *,
    out: Path,
    base: str | None = None,
    budget_s: float = 20.0,
    world_size: int = 2,
    resume: bool = True,
    backend: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> DecidedPlan | None:
    """Measure for the plans of a `plan --json` file; None on a joined rank other than 0.

    `base`: profile to start from; default: the one the plans were made with. With `resume` the samples beside
    `out`, or else those of a base that was measured here, are kept. Raises InputFileError, InfeasibleError,
    UsageError, MeasurementError, WorkerError.
    """
    asked = read_plan_file(plan_file)
    name = base or asked.problem.hardware.partition(":")[0]
    profile = load_profile(name)
    here = Machine.here(world_size=world_size, backend=backend or "gloo")
    require_same_kind(profile, here)
    forecaster = asked.problem.forecaster(profile)
    listed = list_for(forecaster, asked.plans)

    def forecast(there: HardwareProfile, plans: Sequence[Plan]) -> list[Prediction]:
        again = forecaster.on(profile=there)
        return [again.forecast(plan).prediction for plan in plans]

    plans = [p.plan for p in listed.contenders]

    earlier = samples_path(Path(name))
    if progress is not None:
        progress(
            f"{len(listed.contenders)} contenders differ in {len(listed.wanted.items)} things to measure"
        )
    answer = calibrate_for(
        listed.wanted,
        base=profile,
        out=out,
        restated=lambda there: restated(forecast(there, plans)),
        earlier=earlier if taken_on(here, earlier) else None,
        world_size=world_size,
        budget_s=budget_s,
        resume=resume,
        backend=backend,
        progress=progress,
    )
    if answer is None:
        return None
    measured, outcome = answer
    after = forecast(measured, plans)
    winner = min(after, key=lambda p: (p.step_time_s, str(p.plan)))
    all_ = [winner, *forecast(measured, listed.others)]
    chances = probabilities_faster(all_, of=0)
    able = [(p.step_time_s, str(p.plan)) for p, c in zip(all_, chances, strict=True) if c > TIE_BELOW]
    return DecidedPlan(
        profile=measured,
        contenders=_before_and_after(listed, after),
        outcome=outcome,
        others=tuple(plan for _, plan in sorted(able) if plan != str(winner.plan)),
    )


def _before_and_after(listed: ToDecide, after: list[Prediction]) -> tuple[Contender, ...]:
    chances = [probabilities_best(ps) for ps in (listed.contenders, after)]
    found = [
        Contender(
            plan=str(old.plan),
            alike=listed.alike[i],
            before_s=old.step_time_s,
            after_s=new.step_time_s,
            probability_before=float(chances[0][i]),
            probability_after=float(chances[1][i]),
        )
        for i, (old, new) in enumerate(zip(listed.contenders, after, strict=True))
    ]
    return tuple(sorted(found, key=lambda c: (c.after_s, c.plan)))
