"""PipeDream's partition of a model on one pool: the asynchronous pipeline whose slowest stage is fastest.

Levels: the devices of a node, then nodes (`costmodel.partition.hierarchical`). A replica takes whole
mini-batches there; the engine that the answer is held against splits each one over a stage's replicas, which
is the same work in the same time where kernels are as efficient on the smaller share.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from costmodel.errors import InfeasibleError, PlanError
from costmodel.estimate import FloatArray
from costmodel.hardware.collectives import collective_times
from costmodel.hardware.kinds import CollectiveGroup
from costmodel.partition import Level, Replicated, Stage, fastest_pipeline, placements
from costmodel.plan import Plan
from costmodel.predict.assemble import send_s
from costmodel.predict.pools import Pool, StagePricer
from costmodel.predict.staged import StagedForecast, forecast_cut
from costmodel.predict.units import unit_costs
from costmodel.rendering import bytes_text

__all__ = ["fastest_stages"]

_SCHEDULE = "pipedream"


def fastest_stages(
    pool: Pool, template: Plan, *, global_batch_size: int, micro_batch_size: int
) -> StagedForecast:
    """The stages with the most mini-batches per second in the steady state, all devices used.

    Raises PlanError where the template asks for more than tp and recomputation, InfeasibleError where a stage
    of the answer does not fit its devices (PipeDream's search does not know memory).
    """
    if template.flags or template.zero_stage or max(template.cp, template.ep, template.vpp) > 1:
        raise PlanError(
            f"plan {template}: PipeDream's partition is modelled with tp, sp and recomputation; leave out "
            "zero, cp, ep, vpp and strategies"
        )
    pricer = StagePricer(
        [pool],
        template.with_(schedule=_SCHEDULE),
        micro_batch_size=micro_batch_size,
        global_batch_size=global_batch_size,
    )
    counts = [pricer.nodes[0], len(pricer.nodes)]
    stages: tuple[Replicated, ...] = ()
    for allowed in (lambda m, _: micro_batch_size % m == 0, lambda m, count: count % m == 0):
        found = fastest_pipeline(*_levels(pricer, counts, allowed))
        stages = found.stages
        if all(micro_batch_size % stage.replicas == 0 for stage in stages):
            break
    if any(micro_batch_size % stage.replicas for stage in stages):
        raise PlanError(
            f"stages of {[s.replicas for s in stages]} replicas cannot share micro-batches of "
            f"{micro_batch_size}; take a multiple of {sum(pricer.nodes)}"
        )
    forecast = forecast_cut(pricer, _placed(pricer, stages))
    for stage in forecast.stages:
        if stage.memory_bytes > stage.memory_limit_bytes:
            raise InfeasibleError(
                f"the fastest asynchronous pipeline puts {bytes_text(stage.memory_bytes)} on a device of "
                f"{bytes_text(stage.memory_limit_bytes)} ({stage.first_module} and on); take "
                "--objective latency, which knows memory, a smaller micro-batch or recompute=full"
            )
    return forecast


def _levels(
    pricer: StagePricer, counts: list[int], allowed: Callable[[int, int], bool]
) -> tuple[list[float], list[Level]]:
    """Seconds of each unit, and the levels of links."""
    forecaster = pricer.pools[0].forecaster
    plan = pricer.plan_of(1)
    units = pricer.units(0, 1)
    costs = unit_costs(forecaster, plan, units, utilisation=1.0, waiting=0.0)
    unit_s = [(c.forward + c.backward_input + c.backward_weight).total_s for c in costs]
    weights = [sum(u.elements) * forecaster.framework.gradient_comm_bytes for u in units]
    prefix = np.concatenate([[0.0], np.cumsum(weights)])
    sizes: FloatArray = np.maximum(0.0, prefix[None, :] - prefix[:, None])
    network = forecaster.profile.network

    def level(number: int, count: int) -> Level:
        def reduce_s(m: int) -> FloatArray:
            if not allowed(m, count):
                return np.full(sizes.shape, np.inf)
            if network is None:
                raise PlanError(
                    f"profile {forecaster.profile.name!r} has no network to reduce gradients over"
                )
            group = CollectiveGroup(n_ranks=m, n_nodes=m if number else 1)
            times = collective_times(
                network, "all_reduce", sizes.ravel(), group, variant=forecaster.network_variant
            )
            return np.where(sizes > 0.0, times.median_s.reshape(sizes.shape), 0.0)

        near = CollectiveGroup(n_ranks=2, n_nodes=2 if number else 1)
        joined = forecaster.placed({"pp": near})
        sends = [
            2.0 * send_s(joined, plan, pricer.crossing_bytes(cut, 0, 1)) if count > 1 else 0.0
            for cut in range(1, len(units))
        ]
        return Level(count=count, send_s=sends, reduce_s=reduce_s)

    return unit_s, [level(number, count) for number, count in enumerate(counts)]


def _placed(pricer: StagePricer, stages: tuple[Replicated, ...]) -> list[Stage]:
    """Stages on devices one after the other, node after node."""
    used = (0,) * len(pricer.nodes)
    found = []
    for stage in stages:
        policy, placement = placements(used, pricer.nodes, stage.replicas, policies=("append-first",))[0]
        used = tuple(u + p for u, p in zip(used, placement, strict=True))
        found.append(Stage(start=stage.start, stop=stage.stop, placement=placement, policy=policy))
    return found
