"""Gradient buckets as DistributedDataParallel forms them.

Source: torch/csrc/distributed/c10d/reducer.cpp, compute_bucket_assignment_by_size: parameters in
reverse order, a bucket is closed by the parameter that makes it reach its cap; the first bucket has the
smaller cap `first_bucket_bytes`, so that its all-reduce starts early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bucket", "gradient_buckets"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One bucket: its gradient bytes and the unit whose backward completes it."""

    size_bytes: int
    ready_unit: int


def gradient_buckets(
    parameters: Sequence[tuple[int, int]], *, bucket_bytes: int, first_bucket_bytes: int
) -> tuple[Bucket, ...]:
    """Group gradients into buckets in the order their all-reduce starts.

    `parameters` are (unit, gradient bytes) in forward (registration) order; backward reaches them in
    reverse. A bucket is ready when the earliest unit among its parameters has run backward.
    """
    if bucket_bytes <= 0 or first_bucket_bytes <= 0:
        raise ValueError(f"bucket caps must be positive: {bucket_bytes}, {first_bucket_bytes}")
    buckets: list[Bucket] = []
    size = 0
    ready = 0
    for unit, gradient_bytes in reversed(parameters):
        ready = unit if not size else min(ready, unit)
        size += gradient_bytes
        if size >= (bucket_bytes if buckets else first_bucket_bytes):
            buckets.append(Bucket(size_bytes=size, ready_unit=ready))
            size = 0
    if size:
        buckets.append(Bucket(size_bytes=size, ready_unit=ready))
    return tuple(buckets)
