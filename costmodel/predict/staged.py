"""Pipelines of uneven stages on equal or unequal devices: the best one found, held against the event engine.

Searched by closed form (`costmodel.partition.cuts`: contiguous, replicated, placed stages under each device's
memory); the best of each number of stages is then priced like any forecast, each stage on its own pool's
profile, and run by the event engine. The answer is the fastest by the engine. The engine runs the replicas of
a stage in lockstep, each on its share of every micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from costmodel.errors import InfeasibleError, PlanError
from costmodel.estimate import Z90
from costmodel.partition import POLICIES, Cut, Phases, Problem, Stage, cuts, phases, steps_of
from costmodel.predict.assemble import errors_of, simulate_plan, stage_costs
from costmodel.predict.peak import memory_of_rank
from costmodel.predict.pools import Interlink, Pool, StagePricer
from costmodel.predict.pricing import host_cost_s
from costmodel.predict.units import tied_elements
from costmodel.rendering import bytes_text
from costmodel.schedules import SCHEDULES, in_flight
from costmodel.stage_costs import BREAKDOWN_PARTS

if TYPE_CHECKING:
    from costmodel.plan import Plan
    from costmodel.predict.forecaster import Forecaster
    from costmodel.predict.prediction import StageMemory
    from costmodel.predict.units import Unit

__all__ = ["StageForecast", "StagedForecast", "best_pipeline", "forecast_cut", "micro_batches", "problem_of"]

_SLOWER_FRACTION = 0.15
"""Closed forms leave out waits of a fixed order: pipelines this much slower by them go to the engine too."""
_CONTENTION_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StageForecast:
    """One stage: its units, devices, and what it takes per micro-batch (seconds) and holds (bytes)."""

    first_module: str
    last_module: str
    start: int
    stop: int
    hardware: str
    pool: str
    replicas: int
    placement: tuple[int, ...]
    """Tensor-parallel groups on each node."""
    policy: str
    forward_s: float
    backward_s: float
    after_s: float
    """Reduction left over and update after the last backward, by the closed form."""
    send_bytes: int
    """What a replica hands to the next stage per micro-batch."""
    send_s: float
    memory_bytes: int
    memory_limit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedForecast:
    """A pipeline of uneven stages. `step_time_s` is the event engine's; `latency_s` the closed form's."""

    model: str
    micro_batch_size: int
    global_batch_size: int
    schedule: str
    tp: int
    n_devices: int
    n_devices_used: int
    step_time_s: float
    step_time_low_s: float
    step_time_high_s: float
    latency_s: float
    closed_form: Phases
    breakdown_s: Mapping[str, float]
    bubble_fraction: float
    samples_per_s: float
    stages: tuple[StageForecast, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def _check(template: Plan) -> None:
    """PlanError where a template says more than stages can follow."""
    how = SCHEDULES[template.schedule]
    if how.copies > 1 or how.swaps or how.update_every != "step":
        raise PlanError(
            f"schedule {template.schedule}: uneven stages are modelled for schedules that flush and hold "
            "each stage once; take 1f1b, gpipe, dapple or dapple-b"
        )
    if template.zero_stage == 3 or template.flags or max(template.cp, template.ep, template.vpp) > 1:
        raise PlanError(
            f"plan {template}: uneven stages are modelled with tp, sp, zero1, zero2, recomputation and a "
            "schedule; leave out zero3, cp, ep, vpp and strategies"
        )


def micro_batches(global_batch_size: int, n_devices: int) -> list[int]:
    """Micro-batches worth trying: powers of two that divide the batch, up to two samples per device, with at
    least two of them in a step where there is more than one device."""
    most = min(global_batch_size, 2 * n_devices)
    sizes = [2**k for k in range(most.bit_length()) if 2**k <= most and global_batch_size % 2**k == 0]
    return sizes if n_devices == 1 else [b for b in sizes if global_batch_size // b > 1] or sizes[:1]


def problem_of(pricer: StagePricer, max_stages: int = 0, policies: Sequence[str] | None = None) -> Problem:
    """What is searched: all stages the pricer's pools can take, under its schedule."""
    m, name = pricer.num_microbatches, pricer.template.schedule
    return Problem(
        n_units=pricer.n_units,
        nodes=pricer.nodes,
        num_microbatches=m,
        in_flight=lambda n: in_flight(name, n, m),
        replicas=pricer.replicas,
        kinds=pricer.pool_of,
        max_stages=max_stages,
        policies=tuple(policies or POLICIES),
        blocking=pricer.blocking,
    )


def best_pipeline(
    pools: Sequence[Pool],
    template: Plan,
    *,
    global_batch_size: int,
    micro_batch_size: int | None = None,
    max_stages: int = 0,
    links: Mapping[frozenset[int], Interlink] | None = None,
    policies: Sequence[str] | None = None,
) -> StagedForecast:
    """The fastest pipeline on the pools' devices, by the engine. Without a micro-batch several are tried.

    Raises PlanError where the template cannot be followed, InfeasibleError (with the nearest change that
    fits) where no pipeline fits the devices.
    """
    _check(template)
    n_devices = sum(p.n_nodes * p.devices_per_node for p in pools)
    sizes = [micro_batch_size] if micro_batch_size else micro_batches(global_batch_size, n_devices)

    def search(pools: Sequence[Pool], template: Plan, sizes: Sequence[int]) -> list[tuple[Cut, StagePricer]]:
        found = []
        for size in sizes:
            pricer = StagePricer(
                pools, template, micro_batch_size=size, global_batch_size=global_batch_size, links=links
            )
            problem = problem_of(pricer, max_stages, policies)
            found += [(cut, pricer) for cut in cuts(problem, pricer)]
        return found

    found = search(pools, template, sizes)
    if not found:
        raise InfeasibleError(_nearest(pools, template, sizes, search))
    least = min(cut.latency_s for cut, _ in found)
    close = [entry for entry in found if entry[0].latency_s <= least * (1.0 + _SLOWER_FRACTION)]
    return min((forecast_cut(p, c.stages) for c, p in close), key=lambda f: f.step_time_s)


_Search = Callable[[Sequence[Pool], "Plan", Sequence[int]], list[tuple[Cut, StagePricer]]]


def _nearest(pools: Sequence[Pool], template: Plan, sizes: Sequence[int], search: _Search) -> str:
    """What was asked for, and the first change that makes it fit."""
    n_devices = sum(p.n_nodes * p.devices_per_node for p in pools)
    limits = ", ".join(f"{p.name} {bytes_text(p.memory_bytes)}" for p in pools)
    said = f"no pipeline of {n_devices} devices holds the model with {template} ({limits} per device)"
    for change, more_pools, plan, smaller in _changes(pools, template, sizes):
        if search(more_pools, plan, smaller):
            return f"{said}; it fits with {change}"
    return f"{said}; not with a micro-batch of 1, full recomputation and 8 times the devices either"


def _changes(
    pools: Sequence[Pool], template: Plan, sizes: Sequence[int]
) -> Iterator[tuple[str, Sequence[Pool], Plan, Sequence[int]]]:
    if min(sizes) > 1:
        yield "a micro-batch of 1", pools, template, [1]
    full = template.with_(recompute="full")
    if template.recompute != "full":
        yield "recompute=full", pools, full, sizes
        if min(sizes) > 1:
            yield "a micro-batch of 1 and recompute=full", pools, full, [1]
    for times in (2, 4, 8):
        more = [replace(p, n_nodes=p.n_nodes * times) for p in pools]
        n = sum(p.n_nodes * p.devices_per_node for p in more)
        yield f"{n} devices", more, template, sizes
        yield f"{n} devices and recompute=full", more, full, sizes


def forecast_cut(pricer: StagePricer, stages: Sequence[Stage]) -> StagedForecast:
    """Price these stages as forecasts do and run a step of them in the event engine."""
    n = len(stages)
    spots = [pricer.spot(stage.placement) for stage in stages]
    plans = [pricer.plan_of(replicas, n) for _, replicas, _ in spots]
    placed = [pricer.placed(*spot) for spot in spots]
    groups = [
        pricer.units(pool, replicas)[s.start : s.stop]
        for s, (pool, replicas, _) in zip(stages, spots, strict=True)
    ]
    sends = [pricer.send_s(a.stop, a.placement, b.placement) for a, b in pairwise(stages)]
    sizes = [
        round(pricer.crossing_bytes(s.stop, pool, replicas))
        for s, (pool, replicas, _) in zip(stages[:-1], spots, strict=False)
    ]
    # the engine's own options come from the stage that is slowed most by what runs beside it
    lead = max(range(n), key=lambda i: placed[i].profile.overlap.compute_slowdown)
    widest = max(plans, key=lambda plan: plan.dp)
    alone = sum(s.replicas for s in stages) * pricer.template.tp == 1
    contended = any(f.profile.contention_s_per_byte for f in placed)
    utilisation = 0.0 if alone else 1.0
    for _ in range(_CONTENTION_ROUNDS if contended and n > 1 else 1):
        priced = [
            stage_costs(placed[i], plans[i], i, groups[i], last=i == n - 1, utilisation=utilisation)
            for i in range(n)
        ]
        priced[:-1] = [
            replace(costs, send_s=s, send_bytes=b)
            for costs, s, b in zip(priced[:-1], sends, sizes, strict=True)
        ]
        step = simulate_plan(placed[lead], widest, priced, _tied_s(pricer, stages, groups))
        utilisation = 0.0 if alone else 1.0 - step.bubble_fraction
    overhead_s = max(host_cost_s(f.profile, "step_s") + f.framework.step_overhead_s for f in placed)
    step_time_s = step.step_time_s + overhead_s
    breakdown = {part: step.breakdown_s.get(part, 0.0) for part in BREAKDOWN_PARTS}
    breakdown["host"] += overhead_s
    held_by = [list(group) for group in groups]
    sigma = max(
        errors_of(f, plan, held_by, breakdown, step_time_s, overhead_s).log_sigma(step_time_s)
        for f, plan in zip(placed, plans, strict=True)
    )
    steps = steps_of(pricer, stages, blocking=pricer.blocking)
    assert steps is not None
    closed = phases(steps, pricer.num_microbatches)
    return StagedForecast(
        model=placed[0].source.name,
        micro_batch_size=pricer.micro_batch_size,
        global_batch_size=pricer.global_batch_size,
        schedule=pricer.template.schedule,
        tp=pricer.template.tp,
        n_devices=sum(pricer.nodes) * pricer.template.tp,
        n_devices_used=sum(s.replicas for s in stages) * pricer.template.tp,
        step_time_s=step_time_s,
        step_time_low_s=step_time_s * math.exp(-Z90 * sigma),
        step_time_high_s=step_time_s * math.exp(Z90 * sigma),
        latency_s=closed.latency_s,
        closed_form=closed,
        breakdown_s=breakdown,
        bubble_fraction=step.bubble_fraction,
        samples_per_s=pricer.global_batch_size / step_time_s,
        stages=tuple(
            _stage_forecast(
                pricer,
                stage,
                placed[i],
                groups[i],
                sent=(sizes[i], sends[i]) if i < n - 1 else (0, 0.0),
                memory=memory_of_rank(
                    placed[i],
                    plans[i],
                    i,
                    [groups[i]],
                    held_bytes=int(step.peak_activation_bytes[i]),
                    weight_versions=step.weight_versions[i],
                ),
            )
            for i, stage in enumerate(stages)
        ),
    )


def _stage_forecast(
    pricer: StagePricer,
    stage: Stage,
    forecaster: Forecaster,
    units: Sequence[Unit],
    *,
    sent: tuple[int, float],
    memory: StageMemory,
) -> StageForecast:
    """One stage's line of a forecast. `sent`: bytes and seconds to the next stage."""
    pool = pricer.pools[pricer.spot(stage.placement)[0]]
    times = pricer.time(stage)
    return StageForecast(
        first_module=units[0].module,
        last_module=units[-1].module,
        start=stage.start,
        stop=stage.stop,
        hardware=forecaster.profile.name,
        pool=pool.name,
        replicas=stage.replicas,
        placement=stage.placement,
        policy=stage.policy,
        forward_s=times.forward_s,
        backward_s=times.backward_s,
        after_s=times.tail_s,
        send_bytes=sent[0],
        send_s=sent[1],
        memory_bytes=memory.peak_memory_bytes,
        memory_limit_bytes=int(pool.memory_bytes),
    )


def _tied_s(pricer: StagePricer, stages: Sequence[Stage], groups: Sequence[Sequence[Unit]]) -> float:
    """First and last stage add up the gradients of parameters that both hold."""
    tied = tied_elements(groups[-1])
    if len(stages) == 1 or not tied:
        return 0.0
    first, last = stages[0], stages[-1]
    pool, _, _ = pricer.spot(last.placement)
    size = tied * pricer.pools[pool].forecaster.framework.gradient_comm_bytes
    return pricer.transfer_s(size, 1, last.placement, first.placement)
