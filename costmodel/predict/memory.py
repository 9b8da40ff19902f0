"""Peak memory of each stage's rank, by what holds it.

Model state follows the ZeRO paper (arXiv 1910.02054, section 3.1 and figure 1): with psi parameters and
mixed precision Adam 2 psi + 2 psi + 12 psi bytes; stage 1 divides the optimizer's part by the
data-parallel degree, stage 2 the gradients too, stage 3 the parameters too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from costmodel.predict.prediction import StageMemory

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile

__all__ = ["ModelState", "model_state", "stage_memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """Bytes of parameters, gradients and optimizer state on one rank."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Sum of the three."""
        return self.parameters + self.gradients + self.optimizer


def model_state(
    n_parameters: int,
    *,
    framework: FrameworkProfile,
    optimizer_bytes: float,
    zero_stage: int,
    dp: int,
    dp_shard: int = 0,
) -> ModelState:
    """Model state of a rank that holds `n_parameters` before data-parallel sharding.

    parameters = P * b_p / (shard if zero >= 3), gradients = P * b_g / (shard if zero >= 2),
    optimizer = P * b_o / (shard if zero >= 1), with shard = dp_shard or dp.
    """
    shard = dp_shard or dp
    divided = [shard if zero_stage >= needed else 1 for needed in (3, 2, 1)]
    each = (framework.parameter_bytes, framework.gradient_bytes, optimizer_bytes)
    sizes = [math.ceil(n_parameters / d) * b for d, b in zip(divided, each, strict=True)]
    return ModelState(parameters=round(sizes[0]), gradients=round(sizes[1]), optimizer=round(sizes[2]))


def stage_memory(
    *,
    stage: int,
    state: ModelState,
    activations: int,
    temporary: int,
    largest_unit_parameters: int,
    n_parameters: int,
    framework: FrameworkProfile,
    zero_stage: int,
    dp: int,
) -> StageMemory:
    """Put a stage's parts together; `activations` is the peak held over all micro-batches in flight.

    Communication buffers: under plain data parallelism the reducer's buckets (as large as the gradients);
    under ZeRO-3 two gathered units (the one in use and the prefetched one) and one unsharded gradient.
    """
    communication = 0
    if dp > 1 and zero_stage == 0:
        communication = round(n_parameters * framework.gradient_comm_bytes)
    elif dp > 1 and zero_stage == 3:
        communication = round(
            largest_unit_parameters * (2 * framework.parameter_comm_bytes + framework.gradient_comm_bytes)
        )
    elif dp > 1:
        communication = round(min(n_parameters * framework.gradient_comm_bytes, 2 * framework.bucket_bytes))
    return StageMemory(
        stage=stage,
        parameters=state.parameters,
        gradients=state.gradients,
        optimizer=state.optimizer,
        activations=activations,
        temporary=temporary,
        communication=communication,
        framework=framework.memory_overhead_bytes,
    )
