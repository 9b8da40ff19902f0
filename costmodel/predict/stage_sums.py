"""Times of any run of a model's units as a pipeline stage, from sums over its units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.partition import StageTime
from costmodel.predict.optimizer_costs import optimizer_s

if TYPE_CHECKING:
    from costmodel.plan import Plan
    from costmodel.predict.forecaster import Forecaster
    from costmodel.predict.units import Unit
    from costmodel.stage_costs import UnitCosts

__all__ = ["StageSums", "updates_s"]


def updates_s(forecaster: Forecaster, units: Sequence[Unit], shard: int) -> list[float]:
    """Seconds of each unit's update where `shard` replicas share it."""
    fused = forecaster.framework.fused_optimizer
    priced: dict[int, float] = {}
    for unit in units:
        if unit.segment not in priced:
            sizes = [max(1, math.ceil(n / shard)) for n in unit.elements]
            update_s, _ = optimizer_s(sizes, forecaster.optimizer, forecaster.profile, fused=fused)
            priced[unit.segment] = update_s
    return [priced[unit.segment] for unit in units]


class StageSums:
    """Prefix sums over priced units; `updates`: seconds of each unit's update."""

    def __init__(
        self, plan: Plan, costs: Sequence[UnitCosts], updates: Sequence[float], *, overlap_dp: bool
    ) -> None:
        again = (plan.num_microbatches - 1) / plan.num_microbatches
        gathers = [c.gather_s if plan.zero_stage in (1, 2) else 0.0 for c in costs]
        self.forward = _prefix([c.forward.total_s for c in costs])
        self.backward = _prefix(
            [c.backward_input.total_s + c.backward_weight.total_s + again * c.accumulate_s for c in costs]
        )
        self.after = _prefix([u + g for u, g in zip(updates, gathers, strict=True)])
        self.reduced = _prefix([c.reduce_s for c in costs])
        self.saved = _prefix([float(c.saved_bytes) for c in costs])
        if overlap_dp:
            # a unit's reduction waits for its own backward and for the reductions before it:
            # ends max over u of R[first..u] - B[first..u) after the stage's backward
            n = len(costs)
            ready = self.reduced[1:] - self.backward[:-1]
            late = np.full((n, n + 1), -np.inf)
            for i in range(n):
                late[i, i + 1 :] = np.maximum.accumulate(ready[i:]) - (self.reduced[i] - self.backward[i])
            self.exposed: FloatArray = np.maximum(0.0, late)
        else:
            self.exposed = np.maximum(0.0, self.reduced[None, :] - self.reduced[:-1, None])

    def stage_time(self, start: int, stop: int) -> StageTime:
        """Sums of these units, and what of reduction and update follows the last backward."""
        return StageTime(
            forward_s=float(self.forward[stop] - self.forward[start]),
            backward_s=float(self.backward[stop] - self.backward[start]),
            tail_s=float(self.exposed[start, stop] + self.after[stop] - self.after[start]),
        )


def _prefix(values: Sequence[float]) -> FloatArray:
    return np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
