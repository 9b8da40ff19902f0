"""Bucket formation against torch's own function."""

from __future__ import annotations

import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.predict.buckets import gradient_buckets


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=25),
    st.integers(1, 100),
    st.integers(1, 100),
)
def test_equals_the_reducer(numels: list[int], cap: int, first: int) -> None:
    first = min(first, cap)
    tensors = [torch.empty(n) for n in reversed(numels)]
    ours = gradient_buckets(
        [(i, 4 * n) for i, n in enumerate(numels)], bucket_bytes=4 * cap, first_bucket_bytes=4 * first
    )
    indices, _ = dist._compute_bucket_assignment_by_size(tensors, [4 * first, 4 * cap])
    theirs = [sum(4 * tensors[i].numel() for i in bucket) for bucket in indices]
    assert [b.size_bytes for b in ours] == theirs


def test_bucket_waits_for_the_earliest_of_its_units() -> None:
    buckets = gradient_buckets([(0, 10), (1, 10), (2, 10)], bucket_bytes=20, first_bucket_bytes=10)
    assert [(b.size_bytes, b.ready_unit) for b in buckets] == [(10, 2), (20, 0)]
