"""Rings on V100's cube mesh against published bandwidths."""

from __future__ import annotations

import itertools

import pytest

from costmodel.errors import UsageError
from costmodel.hardware.network_schema import MeshEdge
from costmodel.hardware.node_links import intra_link
from costmodel.hardware.topology import chain_capacity, link_capacity, ring_capacity

MESH = intra_link("nvlink2-cube-mesh").mesh


def test_cube_mesh_has_six_links_per_device() -> None:
    degree = dict.fromkeys(range(8), 0)
    for edge in MESH:
        degree[edge.a] += edge.n_links
        degree[edge.b] += edge.n_links
    assert set(degree.values()) == {6}


# Measured bus bandwidth, GB/s, of NCCL all-reduce on the first n of 8 V100s of a cube-mesh node
@pytest.mark.parametrize(
    ("n", "busbw"), [(2, 22.5), (3, 45.1), (4, 85.4), (5, 37.1), (6, 45.7), (7, 87.0), (8, 134.0)]
)
def test_bandwidth_follows_the_links_not_the_count(n: int, busbw: float) -> None:
    one_link = 22.5
    ring = ring_capacity(MESH, n) * one_link
    chain = chain_capacity(MESH, n) * one_link / 2 * 2 * (n - 1) / n
    assert max(ring, chain) == pytest.approx(busbw, rel=0.06)


def test_ring_packing_equals_complete_graph_theorem() -> None:
    # A complete directed graph on n != 4, 6 nodes splits into n - 1 Hamiltonian cycles (Tillson 1980).
    for n in (3, 5):
        full = tuple(MeshEdge(a=a, b=b) for a, b in itertools.combinations(range(n), 2))
        assert ring_capacity(full, n) == pytest.approx(n - 1)


def test_ring_packing_never_exceeds_the_smallest_degree() -> None:
    for n in range(2, 9):
        out = dict.fromkeys(range(n), 0)
        for edge in MESH:
            if edge.a < n and edge.b < n:
                out[edge.a] += edge.n_links
                out[edge.b] += edge.n_links
        assert ring_capacity(MESH, n) <= min(out.values()) + 1e-9


def test_group_without_a_ring_still_has_a_capacity() -> None:
    assert ring_capacity(MESH, 5) == 0.0
    link = intra_link("nvlink2-cube-mesh")
    assert link_capacity(link, "ring", 5) > 0
    assert link_capacity(intra_link("nvlink3"), "ring", 5) == 1.0


def test_too_large_a_mesh_is_refused() -> None:
    with pytest.raises(UsageError, match="at most 8"):
        ring_capacity(MESH, 9)
