"""How much of a node's links a group of ranks gets.

On a switch each rank's port is the limit. On a mesh (V100's hybrid cube mesh) it is the number of rings that
fit into the links: `ring_capacity`.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise, permutations

from costmodel.errors import UsageError
from costmodel.hardware.network_schema import Link, MeshEdge

__all__ = ["chain_capacity", "link_capacity", "ring_capacity"]


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
