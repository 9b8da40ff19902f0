"""NCCL's double binary tree between nodes, and what its busiest node sends.

Two binary trees carry half of the buffer each; a node that is inner in one is a leaf in the other, so that
no interface idles. Construction after P. Sanders, J. Speck, J. L. Traff, "Two-tree algorithms for full
bandwidth broadcast, reduction and scan" (Parallel Computing 35, 2009), sec. 2, in NCCL's bit form.

>>> [double_tree_load(n) for n in (1, 2, 3, 4, 8)]
[0.0, 1.0, 1.5, 2.0, 2.0]
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["binary_tree_parents", "double_tree_load", "double_tree_parents"]


def binary_tree_parents(n: int) -> tuple[int | None, ...]:
    """Parent of each node in one binary tree over 0..n-1: node 0 is the root, odd nodes are leaves."""
    parents: list[int | None] = [None]
    for node in range(1, n):
        bit = node & -node
        up = (node ^ bit) | (bit << 1)
        parents.append(up if up < n else node ^ bit)
    return tuple(parents)


def double_tree_parents(n: int) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    """Parents in both trees: the second is the first mirrored (even n) or shifted by one node (odd n)."""
    first = binary_tree_parents(n)
    if n % 2 == 0:
        mirrored = [first[n - 1 - node] for node in range(n)]
        return first, tuple(None if up is None else n - 1 - up for up in mirrored)
    shifted = [first[(node - 1) % n] for node in range(n)]
    return first, tuple(None if up is None else (up + 1) % n for up in shifted)


@lru_cache(maxsize=4096)
def double_tree_load(n: int) -> float:
    """Bytes that the busiest node sends (and receives) in a double-tree all-reduce, per byte of buffer.

    Each edge of a tree carries half of the buffer up and half down. Two nodes: 1, where a ring over many
    ranks sends nearly 2; from four nodes on an inner node serves two children: 2.
    """
    sent = [0.0] * n
    for parents in double_tree_parents(n):
        for node, up in enumerate(parents):
            if up is not None:
                sent[node] += 0.5
                sent[up] += 0.5
    return max(sent, default=0.0)
