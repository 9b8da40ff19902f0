"""2-D, 2.5-D and 3-D volumes: limits, order and crossover against 1-D."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.errors import PlanError
from costmodel.sharding.tensor_parallel_nd import (
    LinearShape,
    crossover_tokens,
    layer_volume_bytes,
    mesh_side,
)

SIZES = st.integers(1, 5000)


@given(SIZES, SIZES, SIZES, st.integers(2, 6))
def test_one_layer_of_25d_is_2d(tokens: int, k: int, n: int, q: int) -> None:
    shape = LinearShape(tokens=tokens, inputs=k, outputs=n)
    assert layer_volume_bytes("2.5d", shape, q * q, depth=1) == layer_volume_bytes("2d", shape, q * q)


@given(SIZES, SIZES, SIZES)
def test_volumes_shrink_with_the_mesh_where_1d_does_not(tokens: int, k: int, n: int) -> None:
    shape = LinearShape(tokens=tokens, inputs=k, outputs=n)
    for scheme, small, large in (("2d", 16, 64), ("3d", 8, 64)):
        assert sum(layer_volume_bytes(scheme, shape, large)) < sum(layer_volume_bytes(scheme, shape, small))
    assert sum(layer_volume_bytes("1d", shape, 64)) > sum(layer_volume_bytes("1d", shape, 8))


def test_1d_is_one_all_reduce_each_way_over_a_pair() -> None:
    first, second = LinearShape(tokens=8, inputs=16, outputs=64), LinearShape(tokens=8, inputs=64, outputs=16)
    forward = sum(layer_volume_bytes("1d", s, 4)[0] for s in (first, second))
    backward = sum(layer_volume_bytes("1d", s, 4)[1] for s in (first, second))
    mean_bytes = 8 * (16 + 64) / 2 * 2
    assert forward == backward == 2 * 3 / 4 * mean_bytes


@given(
    st.integers(64, 4096),
    st.integers(64, 4096),
    st.sampled_from([("2d", 64, 1), ("3d", 64, 1), ("2.5d", 128, 2)]),
)
def test_crossover_is_where_volumes_meet(k: int, n: int, case: tuple[str, int, int]) -> None:
    scheme, p, depth = case
    tokens = crossover_tokens(scheme, k, n, p, depth=depth)
    if tokens == float("inf"):
        big = LinearShape(tokens=10**9, inputs=k, outputs=n)
        assert sum(layer_volume_bytes(scheme, big, p, depth=depth)) >= sum(layer_volume_bytes("1d", big, p))
        return
    for factor, less in ((0.5, False), (2.0, True)):
        shape = LinearShape(tokens=max(1, round(tokens * factor)), inputs=k, outputs=n)
        mine, flat = (
            sum(layer_volume_bytes(scheme, shape, p, depth=depth)),
            sum(layer_volume_bytes("1d", shape, p)),
        )
        assert (mine < flat) is less or abs(tokens * factor - shape.tokens) > 0.4


def test_more_dimensions_send_less_for_long_batches() -> None:
    shape = LinearShape(tokens=10**6, inputs=4096, outputs=4096)
    flat = sum(layer_volume_bytes("1d", shape, 64))
    two = sum(layer_volume_bytes("2d", shape, 64))
    half = sum(layer_volume_bytes("2.5d", shape, 64, depth=4))
    three = sum(layer_volume_bytes("3d", shape, 64))
    assert max(half, three) < two < flat


def test_meshes() -> None:
    assert [mesh_side("1d", 6), mesh_side("2d", 16), mesh_side("2.5d", 32, depth=2), mesh_side("3d", 27)] == [
        6,
        4,
        4,
        3,
    ]
    for scheme, p in (("2d", 8), ("2.5d", 6), ("3d", 16), ("4d", 4)):
        with pytest.raises(PlanError):
            mesh_side(scheme, p, depth=1)
    with pytest.raises(PlanError, match="at least 1"):
        LinearShape(tokens=0, inputs=1, outputs=1)
