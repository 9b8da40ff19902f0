"""Placements of a tensor on one mesh axis, in DTensor's vocabulary, and what changing them costs.

`Replicate`, `Shard(dim)` and `Partial` mean what they do in torch.distributed.tensor. `Shard(dim, chunks=c)`
is the packed form: the dimension is c equal pieces in a row and every rank holds its part of each of them.
A fused QKV weight is sharded with chunks=3, so that splitting it in three gives plain shards; a [b, s] pair
flattened with s sharded is a shard with chunks=b.

A `Layout` pairs the placement of a tensor with that of its gradient. Fixing the layouts of the forward graph
fixes the backward collectives too (Megatron-LM's conjugate operators f and g, arXiv 1909.08053 section 3):

    layout      tensor     gradient
    REPLICATED  Replicate  Replicate
    BROADCAST   Replicate  Partial     input of a column-parallel product; replicated weight of sharded tokens
    PARTIAL     Partial    Replicate   output of a row-parallel product
    sharded(d)  Shard(d)   Shard(d)
"""

from __future__ import annotations

from functools import cache
from math import ceil, prod
from typing import NamedTuple

__all__ = [
    "BROADCAST",
    "PARTIAL",
    "REPLICATED",
    "Layout",
    "Partial",
    "Placement",
    "Replicate",
    "Shard",
    "Transfer",
    "is_even",
    "local_fraction",
    "local_shape",
    "redistribute",
    "sharded",
    "view_shard",
]


class Replicate(NamedTuple):
    """Every rank holds the whole tensor. Placements are tuples, as a search compares millions of them."""

    kind: str = "R"

    def __str__(self) -> str:
        return "R"


class Shard(NamedTuple):
    """Every rank holds 1/n of dimension `dim`, taken from each of its `chunks` equal pieces."""

    dim: int
    chunks: int = 1

    def __str__(self) -> str:
        return f"S({self.dim})" if self.chunks == 1 else f"S({self.dim}/{self.chunks})"


class Partial(NamedTuple):
    """Every rank holds a summand of the tensor."""

    kind: str = "P"

    def __str__(self) -> str:
        return "P"


Placement = Replicate | Shard | Partial


class Layout(NamedTuple):
    """Placement of a tensor and of its gradient on one mesh axis."""

    forward: Placement
    gradient: Placement

    def __str__(self) -> str:
        return f"{self.forward}|{self.gradient}"


REPLICATED = Layout(Replicate(), Replicate())
BROADCAST = Layout(Replicate(), Partial())
PARTIAL = Layout(Partial(), Replicate())


@cache
def sharded(dim: int, chunks: int = 1) -> Layout:
    """Tensor and gradient sharded alike."""
    return Layout(Shard(dim, chunks), Shard(dim, chunks))


class Transfer(NamedTuple):
    """One collective on the axis. `size_bytes` follows nccl-tests (all-to-all: what one rank holds)."""

    op: str
    size_bytes: int


def redistribute(source: Placement, target: Placement, size_bytes: int, n: int) -> tuple[Transfer, ...]:
    """Collectives that turn `source` into `target` for a tensor of `size_bytes` (whole) on n ranks.

    Shard -> Replicate: all_gather; Partial -> Replicate: all_reduce; Partial -> Shard: reduce_scatter;
    Shard(i) -> Shard(j): all_to_all; from Replicate, and Shard -> Partial (padding with zeros): local.
    """
    if source == target or n == 1 or size_bytes == 0:
        return ()
    if isinstance(source, Partial):
        op = "all_reduce" if isinstance(target, Replicate) else "reduce_scatter"
        return (Transfer(op=op, size_bytes=size_bytes),)
    if isinstance(source, Shard):
        if isinstance(target, Replicate):
            return (Transfer(op="all_gather", size_bytes=size_bytes),)
        if isinstance(target, Shard):
            return (Transfer(op="all_to_all", size_bytes=ceil(size_bytes / n)),)
    return ()


def is_even(size: int, chunks: int, n: int) -> bool:
    """Whether a dimension of `size` in `chunks` pieces splits evenly over n ranks."""
    return size % (chunks * n) == 0 and size > 0


def local_shape(shape: tuple[int, ...], placement: Placement, n: int) -> tuple[int, ...]:
    """Shape of the largest local part (uneven dimensions round up, as DTensor's chunks do)."""
    if not isinstance(placement, Shard):
        return shape
    local = list(shape)
    local[placement.dim] = placement.chunks * ceil(shape[placement.dim] / (placement.chunks * n))
    return tuple(local)


def local_fraction(shape: tuple[int, ...], placement: Placement, n: int) -> float:
    """Elements of the largest local part over elements of the whole tensor."""
    if not isinstance(placement, Shard) or not prod(shape):
        return 1.0
    return local_shape(shape, placement, n)[placement.dim] / shape[placement.dim]


def view_shard(before: tuple[int, ...], after: tuple[int, ...], shard: Shard, n: int) -> Shard | None:
    """The shard of a tensor viewed as `after` that holds the same elements, or None where there is none.

    Sharding dim i with c chunks cuts the flattened tensor in C = prod(before[:i]) * c pieces of which each
    rank has its part. Dimension j of the new shape can say so where P = prod(after[:j]) divides C and
    C * n divides P * after[j]; its chunks are C / P.
    """
    prefix = prod(before[: shard.dim])
    pieces = prefix * shard.chunks
    ahead = 1
    for j, size in enumerate(after):
        if ahead == prefix and size == before[shard.dim] and size > 1:
            return Shard(j, shard.chunks)
        ahead *= size
    ahead = 1
    for j, size in enumerate(after):
        if ahead and pieces % ahead == 0 and size > 1 and (ahead * size) % (pieces * n) == 0:
            return Shard(j, pieces // ahead)
        ahead *= size
    return None
