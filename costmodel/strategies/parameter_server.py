"""Parameter servers (Li et al., OSDI 2014): workers push gradients to s servers and pull parameters.

Each server holds 1/s of the parameters and serves W workers over one link of rate B:

    push of P_g bytes by all   W P_g / (s B)        ps: every worker waits for all pushes, then pulls
    pull of P_p bytes by all   W P_p / (s B)

    ps        synchronous: exposed at least (W (P_g + P_p)) / (s B) less what the backward hides
    ps-async  no worker waits for another: a worker's own pace, or that of the servers' links and updates
              where those are slower

`ps4` has four servers; without a number there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from costmodel.errors import PlanError
from costmodel.plan import Plan
from costmodel.strategies.registry import STRATEGIES, Strategy, chosen, number_of

if TYPE_CHECKING:
    from costmodel.predict.forecaster import Forecaster
    from costmodel.stage_costs import StageCosts
    from costmodel.step import StepResult

__all__ = ["FAMILY", "Servers", "paced", "served_s", "servers_of"]

FAMILY = "server"
STRATEGIES.register("ps")(
    Strategy(name="ps", family=FAMILY, about="synchronous parameter servers", numbered=True)
)
STRATEGIES.register("ps-async")(
    Strategy(name="ps-async", family=FAMILY, about="asynchronous parameter servers", numbered=True)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """`count` servers; `waits`: whether workers wait for each other."""

    count: int
    waits: bool

    def link_bytes(self, size_bytes: float, workers: int) -> float:
        """Bytes over one server's link while `workers` move `size_bytes` each."""
        return size_bytes * workers / self.count


def servers_of(plan: Plan) -> Servers | None:
    """The plan's servers, or None. PlanError where the plan cannot have any."""
    word = chosen(plan, FAMILY)
    if word is None:
        return None
    if plan.dp == 1 or plan.zero_stage or plan.pp > 1:
        raise PlanError(
            f"plan {plan}: parameter servers serve whole replicas: dp > 1, no pipeline and no ZeRO; "
            f"got dp({plan.dp}), pp({plan.pp}), zero({plan.zero_stage})"
        )
    return Servers(count=number_of(plan, word, 1), waits=word == "ps")


def served_s(forecaster: Forecaster, plan: Plan, servers: Servers, stages: Sequence[StageCosts]) -> float:
    """Seconds that the busiest server works for one push and one pull of every worker: its link both ways, or
    its updates, whichever is longer."""
    framework, workers = forecaster.framework, plan.dp * plan.cp
    held = sum(u.parameter_bytes for stage in stages for u in stage.units) / framework.parameter_bytes
    link_s = sum(
        float(
            forecaster.collective(plan, "p2p", servers.link_bytes(held * size, workers), "server").median_s[0]
        )
        for size in (framework.gradient_comm_bytes, framework.parameter_comm_bytes)
    )
    return max(link_s, workers * sum(stage.optimizer_s for stage in stages))


def paced(step: StepResult, served: float) -> StepResult:
    """The step at the servers' pace where that is slower than the workers' own."""
    waiting = max(0.0, served - step.step_time_s)
    parts = {**step.breakdown_s, "dp_comm": step.breakdown_s["dp_comm"] + waiting}
    return replace(step, step_time_s=step.step_time_s + waiting, breakdown_s=parts)
