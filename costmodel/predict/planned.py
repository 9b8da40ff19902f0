"""Stages of a plan cut for the least latency: transfers of each cut and every stage's memory counted.

The degrees are the plan's, so each stage has the same replicas; what is chosen is where the model is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from costmodel.errors import InfeasibleError, PlanError
from costmodel.partition import Placement, Problem, StageTime, cuts
from costmodel.predict.peak import memory_of_rank
from costmodel.predict.stage_sums import StageSums, updates_s
from costmodel.rendering import bytes_text
from costmodel.schedules import SCHEDULES, in_flight

if TYPE_CHECKING:
    from costmodel.plan import Plan
    from costmodel.predict.forecaster import Forecaster
    from costmodel.predict.units import Unit
    from costmodel.stage_costs import UnitCosts

__all__ = ["planned_starts"]


@dataclass
class _Stages:
    """Prices of a plan's stages (a `costmodel.partition.StageModel`). `sends_s`: per cut, one way."""

    forecaster: Forecaster
    plan: Plan
    units: Sequence[Unit]
    sums: StageSums
    sends_s: Sequence[float]

    def stage(self, start: int, stop: int, placement: Placement) -> StageTime | None:
        del placement
        return self.sums.stage_time(start, stop)

    def send_s(self, cut: int, sender: Placement, receiver: Placement) -> float:
        del sender, receiver
        return self.sends_s[cut - 1]

    def fits(self, start: int, stop: int, placement: Placement, in_flight: int) -> bool:
        del placement
        return self.memory_bytes(start, stop, in_flight) <= self.forecaster.profile.device.memory_bytes

    def memory_bytes(self, start: int, stop: int, in_flight: int) -> int:
        """Peak of a rank with these units and so many micro-batches in flight."""
        units = list(self.units[start:stop])
        held = in_flight * sum(unit.costs.memory.saved_bytes for unit in units)
        return memory_of_rank(self.forecaster, self.plan, 0, [units], held_bytes=held).peak_memory_bytes

    def least_work_s(self, start: int) -> float:
        both = self.sums.forward + self.sums.backward
        return float(both[-1] - both[start])


def planned_starts(
    forecaster: Forecaster,
    plan: Plan,
    units: Sequence[Unit],
    *,
    costs: Sequence[UnitCosts],
    sends_s: Sequence[float],
) -> list[tuple[int, ...]]:
    """First units of the plan's stages, the best cut by the closed form first.

    `costs`: of each unit; `sends_s`: per cut, one way. Raises PlanError where the schedule gives a rank
    several stages or has no flush, InfeasibleError with the nearest change where no cut fits the device.
    """
    how = SCHEDULES[plan.schedule]
    if plan.vpp > 1 or how.copies > 1 or how.swaps or how.update_every != "step":
        raise PlanError(
            f"plan {plan}: planned-stages is modelled for one stage per rank and schedules that flush; "
            "take vpp1 with 1f1b, gpipe, dapple or a zero-bubble schedule"
        )
    if plan.pp > len(units):
        raise PlanError(
            f"pp({plan.pp}) stages, but the model can be cut into at most {len(units)} pieces; lower pp"
        )
    updates = updates_s(forecaster, units, plan.dp if plan.zero_stage else 1)
    sums = StageSums(plan, costs, updates, overlap_dp=forecaster.framework.overlap_dp)
    model = _Stages(forecaster, plan, units, sums, sends_s)
    m = plan.num_microbatches
    problem = Problem(
        n_units=len(units),
        nodes=(plan.pp,),
        num_microbatches=m,
        in_flight=lambda n: in_flight(plan.schedule, n, m),
        n_stages=plan.pp,
        blocking=not forecaster.framework.overlaps_p2p(plan.schedule, plan.vpp),
    )
    found = cuts(problem, model)
    if not found:
        raise InfeasibleError(_nearest(model, in_flight(plan.schedule, plan.pp, m)))
    return [tuple(stage.start for stage in cut.stages) for cut in found]


def _nearest(model: _Stages, held: Sequence[int]) -> str:
    """Which unit is too large alone, or how much the leanest stages of equal length need."""
    n, plan = len(model.units), model.plan
    starts = [k * n // plan.pp for k in range(plan.pp)]
    needs = max(model.memory_bytes(a, b, k) for a, b, k in zip(starts, [*starts[1:], n], held, strict=True))
    have = model.forecaster.profile.device.memory_bytes
    change = "recompute=full" if plan.recompute == "none" else f"pp({2 * plan.pp})"
    return (
        f"plan {plan}: no cut into {plan.pp} stages fits {bytes_text(have)} per device (equal runs need "
        f"{bytes_text(needs)}); try {change}, a smaller micro-batch or zero1"
    )
