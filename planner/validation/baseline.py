"""The forecast that takes no skill, to stand beside ours: half of the peak, and the bubble's formula.

    time = FLOP / (ranks x peak FLOP/s / 2) x (1 + (p - 1) / (v m))

FLOP: forward and backward of our own traced graph for the global batch, and what the plan computes again.
peak: dense datasheet FLOP/s of products in the run's type (fp8 rows: fp8's). p stages of v chunks and m
micro-batches stand idle for (p - 1) / (v m) of the time they compute (arXiv 2104.04473, section 2.2). Nothing
is fitted; memory traffic, communication, host and optimizer take no time.

>>> round(no_skill_s(3.12e14, n_ranks=2, peak_flop_per_s=312e12), 3)
1.0
>>> bubble_factor(pp=4, vpp=1, num_microbatches=6)
1.5
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from costmodel.graph.liveness import recomputed_operators
from costmodel.graph.model_graph import Phase
from costmodel.hardware.device import product_flop_per_s
from costmodel.recompute import Recompute

if TYPE_CHECKING:
    from costmodel.plan import Plan
    from costmodel.predict import Forecaster

__all__ = ["bubble_factor", "no_skill_s", "no_skill_step_s", "step_flop"]

_SHARE_OF_PEAK = 0.5


def bubble_factor(*, pp: int, vpp: int, num_microbatches: int) -> float:
    """Step time of a pipeline over the time that a stage computes, 1 + (p - 1) / (v m)."""
    return 1.0 + (pp - 1) / (vpp * num_microbatches)


def no_skill_s(flop: float, *, n_ranks: int, peak_flop_per_s: float, bubble: float = 1.0) -> float:
    """Seconds in which `n_ranks` devices do `flop` at half of their peak, times the `bubble` factor."""
    return flop / (n_ranks * _SHARE_OF_PEAK * peak_flop_per_s) * bubble


def step_flop(forecaster: Forecaster, plan: Plan) -> float:
    """FLOP of one step: forward, backward and recomputation of the global batch, summed over ranks.

    By the graph of the plan's micro-batch, which its forecast takes too.
    """
    sample = forecaster.model_flop(plan.micro_batch_size) + _again_flop(forecaster, plan)
    return sample * plan.global_batch_size


def _again_flop(forecaster: Forecaster, plan: Plan) -> float:
    """Forward FLOP of one sample that run a second time under the plan's recomputation."""
    policy = Recompute.parse(plan.recompute)
    if policy.kind == "none":
        return 0.0
    total, block = 0, 0
    for segment in forecaster.graph(plan.micro_batch_size).segments:
        if not segment.is_block:
            continue
        for number in range(block, block + segment.count):
            again = recomputed_operators(segment, policy.of_block(number))
            total += sum(op.flop for op in segment.phase(Phase.FORWARD) if op.index in again)
        block += segment.count
    return total / plan.micro_batch_size


def no_skill_step_s(forecaster: Forecaster, plan: Plan, *, dtype: str) -> float:
    """The no-skill forecast of a training step in seconds."""
    return no_skill_s(
        step_flop(forecaster, plan),
        n_ranks=plan.world_size,
        peak_flop_per_s=product_flop_per_s(forecaster.profile.device, dtype),
        bubble=bubble_factor(pp=plan.pp, vpp=plan.vpp, num_microbatches=plan.num_microbatches),
    )
