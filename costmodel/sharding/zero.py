"""ZeRO and FSDP in the language of placements: what of the model state is Shard(0) on the data-parallel axis.

Rajbhandari et al. (SC20, arXiv 1910.02054, section 3.1 and figure 1): mixed-precision Adam keeps 2 bytes of
parameter, 2 of gradient and K = 12 of optimizer state (master copy, two moments) per parameter,

    stage 0   2 + 2 + K                     = 16
    stage 1   2 + 2 + K / n
    stage 2   2 + (2 + K) / n
    stage 3   (2 + 2 + K) / n

Communication per step over the axis follows from the placements: a gradient is Partial; whole parameters
ask for an all-reduce (2 M); sharded optimizer state for a reduce-scatter of gradients and an all-gather of
updated parameters (2 M); sharded parameters for an all-gather before forward, again before backward, and a
reduce-scatter (3 M), section 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from costmodel.errors import PlanError
from costmodel.sharding.placements import Partial, Placement, Replicate, Shard, Transfer, redistribute

__all__ = ["ZeroLayout", "zero_layout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroLayout:
    """Placements and bytes per rank of the model state on a data-parallel axis of n ranks."""

    stage: int
    n: int
    parameters: Placement
    gradients: Placement
    optimizer: Placement
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    forward: tuple[Transfer, ...]
    backward: tuple[Transfer, ...]
    step: tuple[Transfer, ...]
    """Collectives of parameters before forward, of both in backward, of parameters after the update."""

    @property
    def state_bytes(self) -> int:
        """All model state on the rank."""
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes


def zero_layout(
    *,
    n_parameters: int,
    stage: int,
    n: int,
    parameter_bytes: int = 2,
    gradient_bytes: int = 2,
    optimizer_bytes: int = 12,
    reshard_after_forward: bool = True,
) -> ZeroLayout:
    """The layout of a ZeRO stage; sizes are bytes per parameter (defaults: the paper's mixed-precision Adam).

    `reshard_after_forward=False` keeps gathered parameters from forward to backward (FSDP's SHARD_GRAD_OP).
    """
    if stage not in (0, 1, 2, 3):
        raise PlanError(f"zero_stage={stage}: must be 0, 1, 2 or 3")
    if n < 1 or n_parameters < 0:
        raise PlanError(f"n({n}) must be at least 1 and n_parameters({n_parameters}) not negative")
    whole, split = Replicate(), Shard(0)
    parameters: Placement = split if stage >= 3 else whole
    gradients: Placement = split if stage >= 2 else whole
    optimizer: Placement = split if stage >= 1 else whole
    part = ceil(n_parameters / n)

    def held(placement: Placement, size: int) -> int:
        return size * (part if isinstance(placement, Shard) else n_parameters)

    stored, reduced = n_parameters * parameter_bytes, n_parameters * gradient_bytes
    gather = redistribute(parameters, whole, stored, n)
    reduce = redistribute(Partial(), optimizer, reduced, n)
    return ZeroLayout(
        stage=stage,
        n=n,
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        parameter_bytes=held(parameters, parameter_bytes),
        gradient_bytes=held(gradients, gradient_bytes),
        optimizer_bytes=held(optimizer, optimizer_bytes),
        forward=gather,
        backward=(*(gather if reshard_after_forward else ()), *reduce),
        step=redistribute(optimizer, parameters, stored, n),
    )
