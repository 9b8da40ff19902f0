"""The registry of operator costs: one function of shapes per aten operator.

A rule gets the call as it was traced (`Call`) and returns the pieces of work it is made of: usually one,
two for a convolution's backward (data and weight gradient). Register one with

    @register_cost("aten.mm", "aten.addmm")
    def gemm(call: Call) -> list[Piece]: ...

An operator without a rule is unmodelled: counted, priced by its bytes, and reported with its share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from costmodel.registry import Registry

__all__ = ["OPERATOR_COSTS", "Call", "CostRule", "Piece", "TensorMeta", "register_cost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMeta:
    """Shape, strides and type of one argument or result."""

    index: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    element_bytes: int
    is_floating: bool

    @property
    def numel(self) -> int:
        """Elements of the shape (an expanded tensor counts them all)."""
        return prod(self.shape)

    @property
    def traffic_bytes(self) -> int:
        """Bytes that reading it once moves: an expanded (stride 0) dimension moves nothing."""
        distinct = prod(n for n, s in zip(self.shape, self.stride, strict=True) if s != 0)
        return distinct * self.element_bytes if self.numel else 0

    @property
    def is_transposed(self) -> bool:
        """Whether the last two dimensions lie in memory in swapped order."""
        return len(self.shape) >= 2 and self.stride[-2] == 1 and self.stride[-1] != 1

    @property
    def has_channels_last(self) -> bool:
        """Whether the channels of images (dimension 1) lie next to each other in memory."""
        return len(self.shape) >= 4 and self.stride[1] == 1 and self.shape[1] > 1 and prod(self.shape[2:]) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One traced call."""

    target: str
    """Packet name, such as aten.mm."""
    args: tuple[Any, ...]
    """Positional arguments; tensors are TensorMeta."""
    kwargs: Mapping[str, Any]
    tensors: tuple[TensorMeta, ...]
    """Every tensor argument, in order."""
    outputs: tuple[TensorMeta, ...]
    flop: int
    """FLOP by torch's own formula (torch.utils.flop_counter), 0 where it has none."""

    @property
    def dtype(self) -> str:
        """Type the work is done in: of the first floating-point result, else argument, else fp32."""
        for t in (*self.outputs, *self.tensors):
            if t.is_floating:
                return t.dtype
        return "fp32"

    @property
    def read_bytes(self) -> int:
        """Least bytes read."""
        return sum(t.traffic_bytes for t in self.tensors)

    @property
    def written_bytes(self) -> int:
        """Least bytes written."""
        return sum(t.traffic_bytes for t in self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One priced piece of a call. `outputs`: positions of the results it makes; None = all of them.
    `arguments`: what neither its sizes nor the call's own integers tell."""

    kind: str
    variant: str = ""
    dims: Mapping[str, int] = field(default_factory=dict)
    flop: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    outputs: tuple[int, ...] | None = None
    arguments: Mapping[str, int] = field(default_factory=dict)


CostRule = Callable[[Call], Sequence[Piece]]

OPERATOR_COSTS: Registry[CostRule] = Registry("operator cost")


def register_cost(*targets: str) -> Callable[[CostRule], CostRule]:
    """File a rule under the packet names of aten operators. A name already taken is a ValueError."""
    return OPERATOR_COSTS.register(*targets)
