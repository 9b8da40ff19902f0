"""Placements: redistribution and the map of shards through views, held against real tensors."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from costmodel.sharding.placements import (
    Partial,
    Replicate,
    Shard,
    local_fraction,
    local_shape,
    redistribute,
    view_shard,
)


def owned(shape: tuple[int, ...], shard: Shard, n: int, rank: int) -> np.ndarray:
    """Flat indices of the elements a rank holds."""
    whole = np.arange(prod(shape)).reshape(shape)
    pieces = np.split(whole, shard.chunks, axis=shard.dim)
    return np.concatenate([np.split(p, n, axis=shard.dim)[rank] for p in pieces], axis=shard.dim)


@given(st.data())
def test_a_view_of_a_shard_holds_the_same_elements(data: st.DataObject) -> None:
    n = 2
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    dim = data.draw(st.integers(0, len(sizes) - 1))
    chunks = data.draw(st.sampled_from([1, 2, 3]))
    sizes[dim] = chunks * n * data.draw(st.sampled_from([1, 2, 3]))
    before = tuple(sizes)
    total = prod(before)
    after: list[int] = []
    while prod(after) < total:
        rest = total // prod(after)
        after.append(
            data.draw(
                st.sampled_from([d for d in range(1, rest + 1) if rest % d == 0 and (d > 1 or rest == 1)])
            )
        )
    image = view_shard(before, tuple(after), Shard(dim, chunks), n)
    if image is not None:
        for rank in range(n):
            here = owned(before, Shard(dim, chunks), n, rank)
            there = owned(tuple(after), image, n, rank)
            assert there.shape == local_shape(tuple(after), image, n)
            assert np.array_equal(here.ravel(), there.ravel())
            assert local_fraction(tuple(after), image, n) == 1 / n


def test_views_that_attention_needs() -> None:
    assert view_shard((2, 8, 12), (2, 8, 4, 3), Shard(2), 2) == Shard(2)  # features -> heads
    assert view_shard((2, 8, 12), (2, 8, 3, 4), Shard(2), 2) is None  # 3 heads over 2 ranks
    assert view_shard((2, 8, 12), (16, 12), Shard(1), 2) == Shard(0, 2)  # sequence of a flattened batch
    assert view_shard((16, 12), (2, 8, 12), Shard(0, 2), 2) == Shard(1)
    assert view_shard((2, 7), (14,), Shard(0), 2) == Shard(0)


def test_redistribution_follows_nccl_tests_sizes() -> None:
    def kinds(a: object, b: object) -> list[tuple[str, int]]:
        return [(t.op, t.size_bytes) for t in redistribute(a, b, 800, 4)]  # type: ignore[arg-type]

    assert kinds(Shard(0), Replicate()) == [("all_gather", 800)]
    assert kinds(Partial(), Replicate()) == [("all_reduce", 800)]
    assert kinds(Partial(), Shard(1)) == [("reduce_scatter", 800)]
    assert kinds(Shard(0), Shard(1)) == [("all_to_all", 200)]
    assert kinds(Replicate(), Shard(1)) == []
    assert kinds(Shard(1), Shard(1)) == []
    assert redistribute(Partial(), Replicate(), 800, 1) == ()
