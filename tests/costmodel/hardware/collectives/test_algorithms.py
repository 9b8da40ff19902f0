"""Steps and volumes against closed forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.errors import UsageError
from costmodel.hardware.collectives.algorithms import (
    ALGORITHMS,
    allowed_algorithms,
    bus_factor,
    path_shape,
)
from costmodel.hardware.kinds import COLLECTIVE_KINDS


@given(st.integers(2, 512))
def test_ring_all_reduce_is_reduce_scatter_then_all_gather(n: int) -> None:
    both = path_shape("ring", "all_reduce", n, 1)
    parts = [path_shape("ring", op, n, 1) for op in ("reduce_scatter", "all_gather")]
    assert both.steps == sum(p.steps for p in parts) == 2 * (n - 1)
    assert both.intra_volume == pytest.approx(sum(p.intra_volume for p in parts))
    assert both.intra_volume == pytest.approx(2 * (n - 1) / n)


@given(st.integers(1, 64), st.integers(1, 8))
def test_ring_steps_split_between_inside_and_between(nodes: int, local: int) -> None:
    n = nodes * local
    if n < 2:
        return
    shape = path_shape("ring", "all_reduce", n, nodes)
    assert shape.steps >= 0
    assert shape.steps + shape.node_steps >= 2 * (n - 1)
    assert (shape.node_steps == 0) == (nodes == 1)


def test_two_node_tree_halves_what_the_ring_sends_between() -> None:
    tree = path_shape("tree", "all_reduce", 16, 2).inter_volume
    ring = path_shape("ring", "all_reduce", 16, 2).inter_volume
    assert tree == 1.0
    assert ring == 1.875
    assert path_shape("tree", "all_reduce", 64, 8).inter_volume == 2.0


def test_tree_depth_grows_with_the_logarithm() -> None:
    assert path_shape("tree", "all_reduce", 8 * 64, 64).node_steps == 2 * 6


@given(st.integers(2, 64))
def test_nvls_beats_the_ring_volume_from_three_ranks_on(n: int) -> None:
    nvls = path_shape("nvls", "all_reduce", n, 1).intra_volume
    ring = path_shape("ring", "all_reduce", n, 1).intra_volume
    assert (nvls < ring) == (n > 3)


@given(st.integers(1, 16), st.integers(1, 8))
def test_all_to_all_sends_everything_somewhere(nodes: int, local: int) -> None:
    n = nodes * local
    if n < 2:
        return
    shape = path_shape("direct", "all_to_all", n, nodes)
    # bytes of one rank inside + its share of the node's bytes between = (n - 1) / n of its buffer
    assert shape.intra_volume + shape.inter_volume / local == pytest.approx((n - 1) / n)


def test_hierarchical_moves_less_between_nodes_than_a_flat_ring() -> None:
    flat = path_shape("ring", "all_reduce", 32, 4)
    layered = path_shape("hierarchical", "all_reduce", 32, 4)
    assert layered.inter_volume == pytest.approx(1.5)
    assert layered.inter_volume < flat.inter_volume
    assert layered.node_steps < flat.node_steps + flat.steps


@pytest.mark.parametrize("op", COLLECTIVE_KINDS)
@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("multicast", [False, True])
def test_allowed_algorithms_can_do_the_op(op: str, nodes: int, multicast: bool) -> None:
    for algorithm in allowed_algorithms(op, n_nodes=nodes, multicast=multicast):
        shape = path_shape(algorithm, op, 8 * nodes, nodes)
        assert shape.intra_volume + shape.inter_volume > 0


def test_refusals_name_algorithm_and_op() -> None:
    with pytest.raises(UsageError, match=r"'nvls'.*'all_gather'"):
        path_shape("nvls", "all_gather", 8, 1)
    with pytest.raises(UsageError, match="unknown collective algorithm"):
        path_shape("telepathy", "all_reduce", 8, 1)


def test_bus_factors_of_nccl_tests() -> None:
    assert [bus_factor(op, 8) for op in COLLECTIVE_KINDS] == [1.75, 0.875, 0.875, 0.875, 1, 1, 1, 1]
    assert len(ALGORITHMS) >= 8
