"""Stages of a model on equal devices: uneven, replicated and placed as is fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.errors import PlanError, UsageError

if TYPE_CHECKING:
    from costmodel.predict import Forecaster, Prediction
    from costmodel.predict.pools import Pool
    from costmodel.predict.staged import StagedForecast

__all__ = ["OBJECTIVES", "Partition", "partition"]

OBJECTIVES = ("latency", "throughput")


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """The pipeline found, what crosses its cuts, and the best plan of equal degrees beside it."""

    objective: str
    forecast: StagedForecast
    sends: tuple[Mapping[str, Any], ...]
    """Per pair of stages: bytes of one micro-batch (all replicas) sent straight from maker to user."""
    skips: int
    """Pairs of stages of which one sends past others to the other."""
    even: Prediction | None
    """The fastest fitting forecast of a plan dp x pp of the same devices and micro-batch."""
    warnings: tuple[str, ...] = ()
    """Notes of the traces."""

    def to_dict(self) -> dict[str, Any]:
        """The fields of `partition --json`."""
        even = self.even
        return {
            "objective": self.objective,
            **self.forecast.to_dict(),
            "sends": [dict(send) for send in self.sends],
            "skips": self.skips,
            "even_plan": None if even is None else str(even.plan),
            "even_step_time_s": None if even is None else even.step_time_s,
            "warnings": list(self.warnings),
        }


def partition(
    model: str,
    *,
    hardware: str,
    n_devices: int,
    global_batch_size: int,
    micro_batch_size: int | None = None,
    template: str = "dp1",
    objective: str = "latency",
    max_stages: int = 0,
    policies: Sequence[str] | None = None,
    memory_limit_bytes: float = 0.0,
    seq_len: int | None = None,
    framework: str = "pytorch",
    optimizer: str = "adamw",
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Partition:
    """Cut a model into stages for `n_devices` equal devices.

    `template`: what all stages share (tp, recomputation, zero1, schedule), as a plan. `objective`: latency of
    a step (DAPPLE), or throughput of an asynchronous pipeline (PipeDream). Raises UsageError on an unknown
    objective or policy, PlanError, InfeasibleError with the nearest change where nothing fits.
    """
    from costmodel.partition import POLICIES
    from costmodel.predict.pools import Pool
    from costmodel.predict.staged import best_pipeline
    from costmodel.predict.throughput import fastest_stages
    from planner.api import forecaster, parse_plan

    if objective not in OBJECTIVES:
        raise UsageError(f"objective {objective!r}: must be one of {', '.join(OBJECTIVES)}")
    if unknown := sorted(set(policies or ()) - set(POLICIES)):
        raise UsageError(f"placement {', '.join(unknown)}: there are {', '.join(POLICIES)}")
    parsed = parse_plan(template)
    if parsed.dp > 1 or parsed.pp > 1 or parsed.micro_batch_size > 1 or parsed.global_batch_size > 1:
        raise PlanError(
            f"--with {template}: dp, pp, mbs and gbs are what is searched for; give tp, sp, recomputation, "
            "zero1 or a schedule only"
        )
    found = forecaster(
        model,
        hardware=hardware,
        seq_len=seq_len,
        framework=framework,
        optimizer=optimizer,
        overrides=overrides,
        trust_remote_code=trust_remote_code,
    )
    network = found.profile.network
    room = 1 if network is None else network.ranks_per_node
    per_node = max(d for d in range(1, min(room, n_devices) + 1) if n_devices % d == 0)
    pool = Pool(
        name=found.profile.name,
        forecaster=found,
        n_nodes=n_devices // per_node,
        devices_per_node=per_node,
        memory_limit_bytes=memory_limit_bytes,
    )
    if objective == "throughput":
        forecast = fastest_stages(
            pool,
            parsed,
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size or n_devices // parsed.tp,
        )
    else:
        forecast = best_pipeline(
            [pool],
            parsed,
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            max_stages=max_stages,
            policies=policies,
        )
    sends, skips = _crossing(found, forecast)
    even = _even(pool, template, forecast) if objective == "latency" else None
    return Partition(
        objective=objective, forecast=forecast, sends=sends, skips=skips, even=even, warnings=found.notes
    )


def _crossing(found: Forecaster, forecast: StagedForecast) -> tuple[tuple[Mapping[str, Any], ...], int]:
    """What each stage sends straight to each later one, and how many of these pairs are no neighbours."""
    from costmodel.partition import crossings, direct_bytes

    tensors = crossings(found.graph(forecast.micro_batch_size))
    starts = [stage.start for stage in forecast.stages]
    sends = tuple(
        {"from": source, "to": target, "bytes": size}
        for (source, target), size in direct_bytes(tensors, starts).items()
    )
    return sends, sum(send["to"] > send["from"] + 1 for send in sends)


def _even(pool: Pool, template: str, forecast: StagedForecast) -> Prediction | None:
    """The best plan of equal replicas and stages on all devices, at the same micro-batch."""
    from costmodel.plan import Plan

    base = Plan.parse(template)
    best: Prediction | None = None
    groups = pool.n_nodes * pool.devices_per_node // base.tp
    for pp in (d for d in range(1, groups + 1) if groups % d == 0):
        dp = groups // pp
        if forecast.micro_batch_size % dp:
            continue
        try:
            found = pool.forecaster.forecast(
                base.with_(
                    dp=dp,
                    pp=pp,
                    micro_batch_size=forecast.micro_batch_size // dp,
                    global_batch_size=forecast.global_batch_size,
                )
            ).prediction
        except PlanError:
            continue  # more stages than units
        fits = found.peak_memory_bytes <= pool.memory_bytes
        if fits and (best is None or found.step_time_s < best.step_time_s):
            best = found
    return best
