"""How long a synchronous pipeline takes: warm-up, steady and ending phase around a pivot stage.

DAPPLE (arXiv 2007.01045, section 4.1): with M micro-batches and pivot stage Q

    warm-up  = sum of F_s, s <= Q
    steady   = (M - 1) (F_Q + B_Q)
    ending   = max over s of tail_s + (sum of B_a, s <= a <= Q  |  - sum of B_a, Q < a < s)

where tail_s is what a stage still does after its last backward (gradient reduction, update). A transfer
between stages counts as a stage of its own where it runs beside computing, else its receiver waits for it.
Here the pivot is the stage that makes the three longest, which is what the paper's own rule looks for from
the last stage backwards.

From the last stage to the first the same number is two recursions, which is what a search can use:

    flow_s = max(M (F_s + B_s), F_s + B_s + flow_(s+1))     from the first input to the last backward
    late_s = max(tail_s, late_(s+1) - B_s)                  how far tails reach beyond it
    latency = flow_0 + max(0, late_0)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["NOTHING", "Flow", "Phases", "StageTime", "before", "phases"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """Seconds of one stage (or one transfer) for one micro-batch, and of what follows its last backward."""

    forward_s: float
    backward_s: float
    tail_s: float = 0.0

    @property
    def both_s(self) -> float:
        """Forward and backward."""
        return self.forward_s + self.backward_s


Flow = tuple[float, float]
"""(flow, late) of a pipeline's end, both in seconds; what is less in both is better whatever comes before."""

NOTHING: Flow = (0.0, -math.inf)
"""The flow after the last stage."""


def before(stage: StageTime, follows: Flow, num_microbatches: int) -> Flow:
    """The flow of a stage and what follows it."""
    flow, late = follows
    both = stage.forward_s + stage.backward_s
    late = max(stage.tail_s, late - stage.backward_s)
    # what ends before the first stage does never shows, whatever comes before
    return max(num_microbatches * both, both + flow), late if late > 0.0 else -math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """DAPPLE's three phases, seconds. `pivot`: the stage that paces the steady phase."""

    warm_up_s: float
    steady_s: float
    ending_s: float
    pivot: int

    @property
    def latency_s(self) -> float:
        """Sum of the three."""
        return self.warm_up_s + self.steady_s + self.ending_s


def phases(stages: Sequence[StageTime], num_microbatches: int) -> Phases:
    """The phases of a pipeline of these stages (transfers among them), as the module's head defines them."""
    best: Phases | None = None
    tails = [stage.tail_s for stage in stages]
    for pivot, paces in enumerate(stages):
        warm_up = sum(stage.forward_s for stage in stages[: pivot + 1])
        steady = (num_microbatches - 1) * paces.both_s
        ending = max(
            [
                *(
                    tails[s] + sum(stage.backward_s for stage in stages[s : pivot + 1])
                    for s in range(pivot + 1)
                ),
                *(
                    tails[s] - sum(stage.backward_s for stage in stages[pivot + 1 : s])
                    for s in range(pivot + 1, len(stages))
                ),
            ]
        )
        found = Phases(warm_up_s=warm_up, steady_s=steady, ending_s=ending, pivot=pivot)
        if best is None or found.latency_s > best.latency_s:
            best = found
    assert best is not None, "a pipeline has at least one stage"
    return best
