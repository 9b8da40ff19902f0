"""The space of plans for N devices: every combination of degrees, with what each exclusion is for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from costmodel.errors import PlanError
from costmodel.plan import Plan

__all__ = ["Limits", "Space", "divisors", "enumerate_plans"]


def divisors(n: int) -> list[int]:
    """All divisors of n, ascending."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What of the model and machine bounds the degrees."""

    n_units: int
    """Pieces that the model can be cut into for the pipeline."""
    tp_degrees: frozenset[int]
    """Tensor-parallel degrees that divide the model's sharded dimensions."""
    ep_degrees: frozenset[int] = frozenset({1})
    cp_degrees: frozenset[int] = frozenset({1})
    max_tp: int = 8
    """Ranks of one node: tensor parallelism beyond it crosses the slow network."""


@dataclass(slots=True, kw_only=True)
class Space:
    """Plans to price, and why the others were not."""

    plans: list[Plan] = field(default_factory=list)
    n_considered: int = 0
    n_excluded: Counter[str] = field(default_factory=Counter)


def enumerate_plans(
    n_devices: int,
    global_batch_size: int,
    limits: Limits,
    *,
    schedules: Sequence[str] = ("gpipe", "1f1b"),
    zero_stages: Sequence[int] = (0, 1, 3),
    recompute: Sequence[str] = ("none",),
    vpps: Sequence[int] = (1,),
    max_micro_batch_size: int = 64,
) -> Space:
    """Every plan of `n_devices` whose degrees multiply, with exclusions counted by reason."""
    space = Space()
    for candidate, reason in _candidates(
        n_devices,
        global_batch_size,
        limits,
        schedules=schedules,
        zero_stages=zero_stages,
        recompute=recompute,
        vpps=vpps,
        max_micro_batch_size=max_micro_batch_size,
    ):
        space.n_considered += 1
        if reason:
            space.n_excluded[reason] += 1
        elif candidate is not None:
            space.plans.append(candidate)
    return space


def _candidates(
    n: int,
    batch: int,
    limits: Limits,
    *,
    schedules: Sequence[str],
    zero_stages: Sequence[int],
    recompute: Sequence[str],
    vpps: Sequence[int],
    max_micro_batch_size: int,
) -> Iterator[tuple[Plan | None, str]]:
    for tp in divisors(n):
        for cp in divisors(n // tp):
            for pp in divisors(n // tp // cp):
                dp = n // tp // cp // pp
                reason = _degree_reason(tp, cp, pp, dp, batch, limits)
                if reason:
                    yield None, reason
                    continue
                for mbs in divisors(batch // dp):
                    if mbs > max_micro_batch_size:
                        yield None, f"micro-batch above {max_micro_batch_size}"
                        continue
                    yield from _policies(
                        tp, cp, pp, dp, mbs, batch, limits, schedules, zero_stages, recompute, vpps
                    )


def _degree_reason(tp: int, cp: int, pp: int, dp: int, batch: int, limits: Limits) -> str:
    if tp > limits.max_tp:
        return f"tp > {limits.max_tp} leaves the node"
    if tp not in limits.tp_degrees:
        return "tp does not divide the model's sharded dimensions"
    if cp not in limits.cp_degrees:
        return "cp is not modelled for this model"
    if pp > limits.n_units:
        return f"pp > {limits.n_units} pieces the model can be cut into"
    if batch % dp:
        return "dp does not divide the global batch"
    return ""


def _policies(
    tp: int,
    cp: int,
    pp: int,
    dp: int,
    mbs: int,
    batch: int,
    limits: Limits,
    schedules: Sequence[str],
    zero_stages: Sequence[int],
    recompute: Sequence[str],
    vpps: Sequence[int],
) -> Iterator[tuple[Plan | None, str]]:
    for ep in sorted(limits.ep_degrees):
        for zero in zero_stages:
            if zero and dp * cp == 1:
                continue
            for policy in recompute:
                for vpp, schedule in [(v, s) for v in vpps for s in schedules]:
                    if pp == 1 and (vpp > 1 or schedule != schedules[-1]):
                        continue
                    if (vpp > 1) != (schedule in ("interleaved", "looped-bfs")):
                        continue
                    if pp * vpp > limits.n_units:
                        yield None, f"pp * vpp > {limits.n_units} pieces the model can be cut into"
                        continue
                    if pp > 1 and zero == 3:
                        yield None, "ZeRO-3 gathers parameters for every micro-batch of a pipeline"
                        continue
                    try:
                        yield (
                            Plan(
                                tp=tp,
                                cp=cp,
                                pp=pp,
                                dp=dp,
                                ep=ep,
                                vpp=vpp,
                                micro_batch_size=mbs,
                                global_batch_size=batch,
                                schedule=schedule,
                                zero_stage=zero,
                                recompute=policy,
                                sequence_parallel=False,
                            ),
                            "",
                        )
                    except PlanError as error:
                        yield None, str(error).split(":")[0]
