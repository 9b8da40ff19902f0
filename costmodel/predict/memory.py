"""Bytes of model state and of data parallelism's buffers.

Model state follows the ZeRO paper (arXiv 1910.02054, section 3.1 and figure 1): with psi parameters and
mixed precision Adam 2 psi + 2 psi + 12 psi bytes; stage 1 divides the optimizer's part by the
data-parallel degree, stage 2 the gradients too, stage 3 the parameters too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile

__all__ = [
    "ModelState",
    "UnitBuffers",
    "communication_bytes",
    "keeps_own_shares",
    "model_state",
    "sharded_by_unit",
]

_FP32_BYTES = 4


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


def sharded_by_unit(framework: FrameworkProfile, zero_stage: int, dp: int) -> bool:
    """Whether parameters and gradients are whole for single units only, as under FSDP; frameworks with flat
    buffers are counted as `communication_bytes` says."""
    return zero_stage >= 2 and dp > 1 and not framework.updates_unused


def keeps_own_shares(framework: FrameworkProfile) -> bool:
    """Whether under ZeRO-2 a rank's share of the parameters is there beside the whole ones: not where the
    optimizer's copies in fp32 are that share."""
    return framework.parameter_bytes >= _FP32_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitBuffers:
    """What a rank holds of single units while they are whole, bytes; floats or arrays of them.

    FSDP (torch/distributed/fsdp/_fully_shard): what no block holds is gathered until the step ends, the last
    block ahead of the backward. In the backward a block is whole and the next one, and so are a block's
    gradients beside those of the one before, which are being sent. Under ZeRO-2 all parameters are whole in
    any case.
    """

    at_peak: Any
    """While activations are most, at the loss."""
    in_backward: Any
    """While a block runs backward."""

    @classmethod
    def of(
        cls,
        *,
        loose_elements: Any,
        block_elements: Any,
        pair_elements: Any,
        pair_trained: Any,
        framework: FrameworkProfile,
        gathers: Any,
    ) -> UnitBuffers:
        """`loose_elements`: parameters outside blocks; the others: of the largest block, the largest two in a
        row, and the most trained ones of two in a row. `gathers`: whether parameters are divided (ZeRO-3)."""
        whole = gathers * framework.parameter_comm_bytes
        sent = pair_trained * framework.gradient_comm_bytes
        return cls(
            at_peak=(loose_elements + block_elements) * whole,
            in_backward=(loose_elements + pair_elements) * whole + sent,
        )


def communication_bytes(
    n_parameters: int,
    *,
    largest_unit_parameters: int,
    largest_unit_gradients: int,
    framework: FrameworkProfile,
    zero_stage: int,
    dp: int,
    by_unit: bool = False,
) -> int:
    """Buffers of data parallelism on a rank whose reducer was told of `n_parameters`, before sharding.

    Gradients are copied into buckets of their size, unless they live there; under ZeRO-2 into two buckets.
    Under ZeRO-3 two gathered units (the one in use and the prefetched one) and one unsharded gradient are
    there, each of as many elements as the unit that has most of them. `by_unit`: these are counted where they
    run (`UnitBuffers`).
    """
    if dp == 1 or by_unit:
        return 0
    if zero_stage == 3:
        gathered = 2 * largest_unit_parameters * framework.parameter_comm_bytes
        return round(gathered + largest_unit_gradients * framework.gradient_comm_bytes)
    if framework.gradient_as_bucket_view:
        return 0
    copied = n_parameters * framework.gradient_comm_bytes
    return round(copied if zero_stage < 2 else min(copied, 2 * framework.bucket_bytes))
