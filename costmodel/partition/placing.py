"""Which devices a stage takes: DAPPLE's three ways (arXiv 2007.01045, section 4.2).

    fresh-first    from nodes that nothing uses so far: replicas of a stage stay on one node's fast links
    append-first   from nodes that are used already: fewer left-over devices
    scatter-first  evenly from all used nodes (from all where none is used): reductions of small stages

>>> placements((0, 2), (4, 4), 2)
[('fresh-first', (2, 0)), ('append-first', (0, 2))]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["POLICIES", "Placement", "placements"]

Placement = tuple[int, ...]
"""Devices of a stage on each node."""


def _fill(order: Sequence[int], free: Sequence[int], count: int) -> Placement:
    """Take devices node by node."""
    taken = [0] * len(free)
    for node in order:
        taken[node] = min(free[node], count)
        count -= taken[node]
    return tuple(taken)


def _fresh(used: Sequence[int], free: Sequence[int], count: int) -> Placement:
    """Unused nodes first, among them those that hold all replicas."""
    return _fill(sorted(range(len(used)), key=lambda n: (used[n] > 0, free[n] < count, used[n])), free, count)


def _append(used: Sequence[int], free: Sequence[int], count: int) -> Placement:
    """Used nodes first, among them those that hold all replicas, then the fullest."""
    order = sorted(range(len(used)), key=lambda n: (used[n] == 0, free[n] < count, -used[n]))
    return _fill(order, free, count)


def _scatter(used: Sequence[int], free: Sequence[int], count: int) -> Placement:
    taken = [0] * len(used)
    somewhere = any(u and f for u, f in zip(used, free, strict=True))
    while count:
        open_nodes = [n for n in range(len(used)) if free[n] > taken[n]]
        preferred = [n for n in open_nodes if used[n]] if somewhere else open_nodes
        for node in preferred or open_nodes:
            if count:
                taken[node] += 1
                count -= 1
    return tuple(taken)


POLICIES: dict[str, Callable[[Sequence[int], Sequence[int], int], Placement]] = {
    "fresh-first": _fresh,
    "append-first": _append,
    "scatter-first": _scatter,
}


def placements(
    used: Sequence[int],
    sizes: Sequence[int],
    count: int,
    *,
    nodes: Sequence[int] | None = None,
    policies: Sequence[str] = tuple(POLICIES),
) -> list[tuple[str, Placement]]:
    """The different ways to take `count` devices, each with the first policy that takes them so.

    `used` and `sizes`: devices per node; `nodes`: those that may be taken (all). Empty: too few are free.
    """
    allowed = range(len(sizes)) if nodes is None else nodes
    free = [sizes[n] - used[n] if n in allowed else 0 for n in range(len(sizes))]
    if count < 1 or sum(free) < count:
        return []
    found: dict[Placement, str] = {}
    for name in policies:
        found.setdefault(POLICIES[name](used, free, count), name)
    return [(name, placement) for placement, name in found.items()]
