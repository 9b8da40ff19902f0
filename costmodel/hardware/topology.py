"""The machine as a graph: devices, links, switches, network interfaces; and the rings that fit into it.

Nodes are tuples ("gpu", node, local rank), ("switch", node), ("nic", node, i), ("fabric",); every edge has
`bytes_per_s` (one direction) and `latency_s`. On a switch each rank's port is the limit. On a mesh (V100's
hybrid cube mesh) it is the number of rings that fit into the links: `ring_capacity`.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise, permutations
from typing import TYPE_CHECKING

from costmodel.errors import UsageError
from costmodel.hardware.network_schema import Link, MeshEdge, NetworkModel

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["build_topology", "chain_capacity", "link_capacity", "path_limits", "ring_capacity"]


def build_topology(network: NetworkModel, n_nodes: int = 1, variant: str | None = None) -> nx.DiGraph:
    """Directed graph of `n_nodes` nodes of the machine.

    UsageError where several nodes are asked for and the network has no inter-node link.
    """
    import networkx as nx

    intra, inter = network.links(variant)
    if n_nodes > 1 and inter is None:
        raise UsageError(
            f"{n_nodes} nodes asked for, but network {network.name!r} has no link between nodes; "
            "choose a profile with one or add an inter-node link"
        )
    graph = nx.DiGraph(name=network.name)

    def join(a: tuple[object, ...], b: tuple[object, ...], bytes_per_s: float, latency_s: float) -> None:
        graph.add_edge(a, b, bytes_per_s=bytes_per_s, latency_s=latency_s)
        graph.add_edge(b, a, bytes_per_s=bytes_per_s, latency_s=latency_s)

    for node in range(n_nodes):
        ranks = [("gpu", node, local) for local in range(network.ranks_per_node)]
        graph.add_nodes_from(ranks)
        if intra.mesh:
            for edge in intra.mesh:
                join(ranks[edge.a], ranks[edge.b], intra.bytes_per_s * edge.n_links, intra.latency_s)
        elif intra.group_ranks is not None and intra.group_ranks < len(ranks):
            for start in range(0, len(ranks), intra.group_ranks):
                for offset in range(1, min(intra.group_ranks, len(ranks) - start)):
                    join(ranks[start], ranks[start + offset], intra.bytes_per_s, intra.latency_s)
        else:
            for rank in ranks:
                join(rank, ("switch", node), intra.bytes_per_s, intra.latency_s / 2)
        if inter is not None and n_nodes > 1:
            for i in range(inter.nics_per_node):
                nic = ("nic", node, i)
                join(nic, ("fabric",), inter.bytes_per_s, inter.latency_s / 2)
                for local in range(i, len(ranks), inter.nics_per_node):
                    join(ranks[local], nic, inter.bytes_per_s, 0.0)
            for local in range(len(ranks)):
                if not any(kind[0] == "nic" for kind in graph.successors(ranks[local])):
                    join(ranks[local], ("nic", node, local % inter.nics_per_node), inter.bytes_per_s, 0.0)
    return graph


def path_limits(graph: nx.DiGraph, a: tuple[object, ...], b: tuple[object, ...]) -> tuple[float, float]:
    """(bytes/s, latency in seconds) of the widest path between two devices, the shortest of the widest."""
    import networkx as nx

    widths = sorted({data["bytes_per_s"] for _, _, data in graph.edges(data=True)}, reverse=True)
    for width in widths:
        usable = nx.subgraph_view(
            graph, filter_edge=lambda u, v, width=width: graph[u][v]["bytes_per_s"] >= width
        )
        if nx.has_path(usable, a, b):
            return width, float(nx.shortest_path_length(usable, a, b, weight="latency_s"))
    raise UsageError(f"no path joins {a} and {b} in topology {graph.name!r}")


def _adjacency(mesh: tuple[MeshEdge, ...], n: int) -> dict[tuple[int, int], int]:
    capacity: dict[tuple[int, int], int] = {}
    for edge in mesh:
        if edge.a < n and edge.b < n:
            capacity[edge.a, edge.b] = capacity[edge.b, edge.a] = edge.n_links
    return capacity


@lru_cache(maxsize=256)
def ring_capacity(mesh: tuple[MeshEdge, ...], n: int) -> float:
    """Rings through ranks 0..n-1 that the mesh carries at once, each taking one link in one direction.

    The largest packing of directed Hamiltonian cycles into the links' capacities (a linear program over all
    of them; at most 8 ranks). 0 where no ring exists.

    >>> pair = (MeshEdge(a=0, b=1, n_links=2),)
    >>> ring_capacity(pair, 2)
    2.0
    """
    capacity = _adjacency(mesh, n)
    if n > 8:
        raise UsageError(f"ring search over {n} directly joined ranks; a mesh has at most 8")
    edges = list(capacity)
    rings = []
    for order in permutations(range(1, n)):
        stops = (0, *order, 0)
        ring = list(pairwise(stops))
        if all(hop in capacity for hop in ring):
            rings.append(ring)
    if not rings:
        return 0.0
    import numpy as np
    from scipy.optimize import linprog

    position = {edge: i for i, edge in enumerate(edges)}
    uses = np.zeros((len(edges), len(rings)))
    for column, ring in enumerate(rings):
        for hop in ring:
            uses[position[hop], column] += 1.0
    solution = linprog(-np.ones(len(rings)), A_ub=uses, b_ub=[capacity[e] for e in edges], method="highs")
    return float(round(-solution.fun, 9))


@lru_cache(maxsize=256)
def chain_capacity(mesh: tuple[MeshEdge, ...], n: int) -> float:
    """Links along the best chain through ranks 0..n-1 at its narrowest hop; 0 where no chain exists."""
    capacity = _adjacency(mesh, n)
    widest = 0

    def extend(last: int, left: frozenset[int], width: int) -> None:
        nonlocal widest
        if width <= widest:
            return
        if not left:
            widest = width
            return
        for following in left:
            if hop := capacity.get((last, following)):
                extend(following, left - {following}, min(width, hop))

    bound = max(capacity.values(), default=0)
    for start in range(n):
        extend(start, frozenset(range(n)) - {start}, bound)
    return float(widest) if n > 1 else 0.0


def link_capacity(link: Link, algorithm: str, n: int) -> float:
    """How many times `bytes_per_s` of a link a group of `n` local ranks has for an algorithm; 1 off a mesh.

    Where no ring fits into a mesh, its ranks pass on each other's data along the best chain, at half rate.
    """
    if not link.mesh or n < 2:
        return 1.0
    chain = chain_capacity(link.mesh, n)
    if algorithm in ("tree", "binomial"):
        return chain
    return ring_capacity(link.mesh, n) or 0.5 * chain
