"""Bytes of model state and of data parallelism's buffers.

Model state follows the ZeRO paper (arXiv 1910.02054, section 3.1 and figure 1): with psi parameters and
mixed precision Adam 2 psi + 2 psi + 12 psi bytes; stage 1 divides the optimizer's part by the
data-parallel degree, stage 2 the gradients too, stage 3 the parameters too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile

__all__ = ["ModelState", "communication_bytes", "model_state"]


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
    cp: int = 1,
    n_expert_parameters: int = 0,
    ep: int = 1,
    n_frozen: int = 0,
    n_frozen_experts: int = 0,
    n_bucketed: int = 0,
) -> ModelState:
    """Model state of a rank that holds `n_parameters` before data-parallel sharding.

    parameters = P * b_p / (shard if zero >= 3), gradients = P * b_g / (shard if zero >= 2),
    optimizer = P * b_o / (shard if zero >= 1), with shard = (dp_shard or dp) * cp: context-parallel ranks
    hold the same parameters. The `n_expert_parameters` among them have 1 / ep as many copies to be divided
    over (arXiv 2201.05596, section 4.1.3). Beside them `n_frozen` parameters that are not trained, of which
    `n_frozen_experts` experts', are stored like the others and have nothing else; `n_bucketed` of them have
    room in the reducer's buckets, where gradients live.
    """
    shard = (dp_shard or dp) * cp
    stored = n_parameters + n_frozen, n_expert_parameters + n_frozen_experts
    trained = n_parameters, n_expert_parameters
    sizes = []
    for needed, (count, experts), size in (
        (3, stored, framework.parameter_bytes),
        (2, trained, framework.gradient_bytes),
        (1, trained, optimizer_bytes),
    ):
        among = shard if zero_stage >= needed else 1
        held = math.ceil((count - experts) / among) + math.ceil(experts / max(1, among // ep))
        sizes.append(held * size)
    if dp > 1 and framework.gradient_as_bucket_view:
        sizes[1] += n_bucketed * framework.gradient_bytes
    return ModelState(parameters=round(sizes[0]), gradients=round(sizes[1]), optimizer=round(sizes[2]))


def communication_bytes(
    n_parameters: int,
    *,
    largest_unit_parameters: int,
    largest_unit_gradients: int,
    framework: FrameworkProfile,
    zero_stage: int,
    dp: int,
) -> int:
    """Buffers of data parallelism on a rank whose reducer was told of `n_parameters`, before sharding.

    Plain data parallelism copies gradients into buckets of their size, unless they live there. Under ZeRO-3
    two gathered units (the one in use and the prefetched one) and one unsharded gradient are there, each of
    as many elements as the unit that has most of them; under ZeRO-1 and 2 two buckets, unless gradients live
    in them.
    """
    if dp == 1:
        return 0
    if zero_stage == 3:
        gathered = 2 * largest_unit_parameters * framework.parameter_comm_bytes
        return round(gathered + largest_unit_gradients * framework.gradient_comm_bytes)
    if framework.gradient_as_bucket_view:
        return 0
    copied = n_parameters * framework.gradient_comm_bytes
    return round(copied if zero_stage == 0 else min(copied, 2 * framework.bucket_bytes))
