"""Replicas on unlike devices that train one batch: each takes as many micro-batches as it has time for.

Every replica (a tensor-parallel group of one pool) holds the whole model. Micro-batches are shared out so
that the last one to end ends first (`uneven.balanced_shares`, optimal). The event engine then runs one rank
per kind of share, each at the speed of its own profile's prices; gradients are reduced bucket by bucket as
soon as every kind has them: inside each pool, then between pools over the slowest of their links

    2 (G - 1) / G x bytes / (nodes of the smallest pool x link)      for G pools, on top of the slowest pool's
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from costmodel.errors import InfeasibleError, PlanError
from costmodel.estimate import Z90
from costmodel.predict.assemble import errors_of, stage_costs
from costmodel.predict.buckets import gradient_buckets
from costmodel.predict.peak import memory_of_rank
from costmodel.predict.pools import Interlink, Pool, StagePricer
from costmodel.predict.pricing import host_cost_s
from costmodel.predict.staged import micro_batches
from costmodel.predict.uneven import balanced_shares
from costmodel.rendering import bytes_text
from costmodel.schedules import Step
from costmodel.stage_costs import BREAKDOWN_PARTS, StageCosts, UnitCosts
from costmodel.step import Options, StepResult, simulate_order

if TYPE_CHECKING:
    from costmodel.plan import Plan

__all__ = ["MixedForecast", "PoolShare", "best_shares"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShare:
    """What the replicas of a pool do. `micro_batches`: (per replica, number of such replicas)."""

    pool: str
    hardware: str
    n_replicas: int
    micro_batches: tuple[tuple[int, int], ...]
    samples: int
    """Of a step, all replicas of the pool together."""
    micro_batch_s: float
    """Forward and backward of one micro-batch."""
    memory_bytes: int
    memory_limit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedForecast:
    """A step of unlike replicas. `step_time_s` is the event engine's."""

    model: str
    micro_batch_size: int
    global_batch_size: int
    tp: int
    n_devices: int
    step_time_s: float
    step_time_low_s: float
    step_time_high_s: float
    breakdown_s: Mapping[str, float]
    samples_per_s: float
    reduction_s: float
    """All reductions of a step, hidden or not."""
    shares: tuple[PoolShare, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class _Replica:
    """A replica of one pool: its prices at the micro-batch, gradients reduced with all others."""

    def __init__(self, pricer: StagePricer, number: int) -> None:
        pool = pricer.pools[number]
        self.pool = pool
        self.count = pool.n_nodes * pool.devices_per_node // pricer.template.tp
        everyone = sum(pricer.nodes)
        b = pricer.micro_batch_size
        self.plan: Plan = pricer.template.with_(
            dp=everyone, pp=1, micro_batch_size=b, global_batch_size=b * everyone * 2
        )
        self.forecaster = pricer.placed(number, self.count, pool.n_nodes)
        self.units = pricer.units(number, 1)
        self.stage = stage_costs(self.forecaster, self.plan, 0, self.units, last=True, utilisation=1.0)
        held = sum(unit.costs.memory.saved_bytes for unit in self.units)
        memory = memory_of_rank(self.forecaster, self.plan, 0, [self.units], held_bytes=held)
        self.memory_bytes = memory.peak_memory_bytes

    @property
    def micro_batch_s(self) -> float:
        """Forward and backward of one micro-batch."""
        return sum((u.forward + u.backward_input + u.backward_weight).total_s for u in self.stage.units)

    def work_s(self, n: int) -> float:
        """Computation of so many micro-batches and the update; infinite where a micro-batch does not fit."""
        if self.memory_bytes > self.pool.memory_bytes:
            return math.inf
        again = sum(u.accumulate_s for u in self.stage.units)
        return n * self.micro_batch_s + (n - 1) * again + self.stage.optimizer_s


def best_shares(
    pools: Sequence[Pool],
    template: Plan,
    *,
    global_batch_size: int,
    micro_batch_size: int | None = None,
    links: Mapping[frozenset[int], Interlink] | None = None,
) -> MixedForecast:
    """The fastest split of the batch over replicas on all pools. Without a micro-batch several are tried.

    Raises PlanError where the template asks for what replicas do not do, InfeasibleError where no pool holds
    the model.
    """
    if template.zero_stage or template.flags or max(template.cp, template.ep, template.pp) > 1:
        raise PlanError(
            f"plan {template}: uneven replicas are modelled with tp, sp and recomputation; leave out zero, "
            "cp, ep, pp and strategies"
        )
    n_replicas = sum(p.n_nodes * p.devices_per_node for p in pools) // template.tp
    sizes = [micro_batch_size] if micro_batch_size else micro_batches(global_batch_size, 1 + n_replicas)
    found = []
    needs: list[str] = []
    for size in sizes:
        pricer = StagePricer(
            pools, template, micro_batch_size=size, global_batch_size=global_batch_size, links=links
        )
        replicas = [_Replica(pricer, number) for number in range(len(pools))]
        if all(math.isinf(replica.work_s(1)) for replica in replicas):
            needs += [f"{bytes_text(r.memory_bytes)} on {r.pool.name}" for r in replicas]
            continue
        found.append(_forecast(pricer, replicas))
    if not found:
        raise InfeasibleError(
            f"no device holds a replica with micro-batches of {sizes} ({', '.join(needs[: len(pools)])}); "
            "cut the model into stages over the groups, or take tp, recompute=full or a smaller micro-batch"
        )
    return min(found, key=lambda forecast: forecast.step_time_s)


def _forecast(pricer: StagePricer, replicas: Sequence[_Replica]) -> MixedForecast:
    owners = [i for i, replica in enumerate(replicas) for _ in range(replica.count)]
    shares = balanced_shares([replicas[i].work_s for i in owners], pricer.num_microbatches)
    kinds = sorted(Counter((i, n) for i, n in zip(owners, shares, strict=True) if n).items())
    lead = replicas[kinds[0][0][0]]
    framework = lead.forecaster.framework
    overhead_s = max(host_cost_s(r.forecaster.profile, "step_s") for r in replicas)
    overhead_s += framework.step_overhead_s
    if len(kinds) == 1 and kinds[0][1] == len(owners):
        plan = lead.plan.with_(global_batch_size=pricer.global_batch_size)
        plain = lead.forecaster.forecast(plan)
        step, step_time_s = plain.step, plain.prediction.step_time_s
        breakdown = dict(plain.prediction.breakdown_s)
        reduction_s = sum(u.reduce_s for u in lead.stage.units)
    else:
        joined = _joined(pricer, {i: replicas[i] for (i, _), _ in kinds}, lead)
        reduction_s = sum(u.reduce_s for u in joined.units)
        step = _run(joined, [(replicas[i], n) for (i, n), _ in kinds], lead)
        step_time_s = step.step_time_s + overhead_s
        breakdown = {part: step.breakdown_s.get(part, 0.0) for part in BREAKDOWN_PARTS}
        breakdown["host"] += overhead_s
    sigma = max(
        errors_of(r.forecaster, r.plan, [r.units], breakdown, step_time_s, overhead_s).log_sigma(step_time_s)
        for r in replicas
    )
    return MixedForecast(
        model=lead.forecaster.source.name,
        micro_batch_size=pricer.micro_batch_size,
        global_batch_size=pricer.global_batch_size,
        tp=pricer.template.tp,
        n_devices=len(owners) * pricer.template.tp,
        step_time_s=step_time_s,
        step_time_low_s=step_time_s * math.exp(-Z90 * sigma),
        step_time_high_s=step_time_s * math.exp(Z90 * sigma),
        breakdown_s=breakdown,
        samples_per_s=pricer.global_batch_size / step_time_s,
        reduction_s=reduction_s,
        shares=tuple(
            PoolShare(
                pool=replica.pool.name,
                hardware=replica.forecaster.profile.name,
                n_replicas=replica.count,
                micro_batches=tuple((n, count) for (i, n), count in kinds if i == number),
                samples=sum(n * c for (i, n), c in kinds if i == number) * pricer.micro_batch_size,
                micro_batch_s=replica.micro_batch_s,
                memory_bytes=replica.memory_bytes,
                memory_limit_bytes=int(replica.pool.memory_bytes),
            )
            for number, replica in enumerate(replicas)
        ),
    )


def _joined(pricer: StagePricer, working: Mapping[int, _Replica], lead: _Replica) -> StageCosts:
    """The lead's stage with gradients reduced inside the slowest pool and between pools."""
    framework = lead.forecaster.framework
    ends = [tuple(int(n == pricer.pool_of.index(i)) for n in range(len(pricer.nodes))) for i in working]
    between = [0.0] * len(lead.units)
    if len(working) > 1:
        parameters = [
            (i, round(n * framework.gradient_comm_bytes))
            for i, unit in enumerate(lead.units)
            for n in unit.elements
        ]
        smallest = framework.bucket_bytes_per_rank * lead.plan.dp
        rounds = 2.0 * (len(working) - 1) / len(working) / min(r.pool.n_nodes for r in working.values())
        for bucket in gradient_buckets(
            parameters,
            bucket_bytes=max(framework.bucket_bytes, smallest),
            first_bucket_bytes=max(framework.first_bucket_bytes, smallest),
        ):
            between[bucket.ready_unit] += max(
                pricer.transfer_s(rounds * bucket.size_bytes, 1, a, b) for a, b in pairwise([*ends, ends[0]])
            )
    units: list[UnitCosts] = []
    for u, unit in enumerate(lead.stage.units):
        inside = max(r.stage.units[u].reduce_s for r in working.values())
        units.append(replace(unit, reduce_s=inside + between[u]))
    return StageCosts(
        index=0,
        units=tuple(units),
        send_bytes=0,
        send_s=0.0,
        optimizer_s=lead.stage.optimizer_s,
        state_bytes=lead.stage.state_bytes,
    )


def _run(stage: StageCosts, ranks: Sequence[tuple[_Replica, int]], lead: _Replica) -> StepResult:
    """One rank per kind of share, on micro-batches of its own; all hold the stage and reduce together."""
    order, number = [], 0
    for _, n in ranks:
        order.append([Step(0, kind, m) for m in range(number, number + n) for kind in ("F", "B")])
        number += n
    framework = lead.forecaster.framework
    overlaps = [replica.forecaster.profile.overlap for replica, _ in ranks]
    return simulate_order(
        order,
        [stage],
        Options(
            dp=2 if len(ranks) == 1 else 1,
            copies=len(ranks),
            overlap_dp=framework.overlap_dp,
        ),
        compute_slowdown=max(o.compute_slowdown for o in overlaps),
        comm_slowdown=max(o.comm_slowdown for o in overlaps),
        speed={i: lead.work_s(n) / replica.work_s(n) for i, (replica, n) in enumerate(ranks)},
    )
