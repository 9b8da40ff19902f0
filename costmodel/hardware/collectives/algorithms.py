"""What each algorithm of a collective sends: latency steps and bytes over the busiest port and node.

Sizes follow nccl-tests: `size` is each rank's buffer (all_reduce, broadcast, reduce), the gathered buffer
(all_gather, reduce_scatter), all that one rank sends (all_to_all), one message (p2p). Volumes are fractions
of it. Closed forms with n ranks, N nodes, r = n / N ranks per node:

    ring           all_reduce 2(n-1) steps, 2(n-1)/n bytes over every port and every node boundary;
                   all_gather and reduce_scatter half of both; broadcast and reduce n-1 steps, 1
    tree           chain inside the node, double binary tree between nodes (NCCL): 2(r-1) steps, 2 bytes per
                   port (up and down), 2 log2(N) node steps, the busiest node of the two trees between nodes
    nvls           the switch reduces and multicasts: 1 + 1/n per port (own buffer read, own share stored)
    nvls_tree      nvls inside, double binary tree between
    hierarchical   reduce-scatter inside, ring all-reduce between nodes, all-gather inside
    direct         every pair exchanges its part at once
    halving        recursive halving and doubling: log2(n) steps each way, ring volume
    binomial       broadcast and reduce by a binomial tree: ceil(log2(n)) steps

>>> path_shape("ring", "all_reduce", 8, 1)
PathShape(steps=14.0, node_steps=0.0, intra_volume=1.75, inter_volume=0.0, own_volume=0.25)
>>> path_shape("tree", "all_reduce", 16, 2).inter_volume, path_shape("tree", "all_reduce", 64, 8).inter_volume
(1.0, 2.0)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from costmodel.errors import UsageError
from costmodel.hardware.collectives.trees import double_tree_load
from costmodel.registry import Registry

__all__ = ["ALGORITHMS", "PathShape", "ShapeOf", "allowed_algorithms", "bus_factor", "path_shape"]


class PathShape(NamedTuple):
    """Latency steps inside and between nodes; bytes over the busiest port and node, as fractions of size.

    `own_volume`: what a rank passes to itself, a copy that crosses no link but takes its time.
    """

    steps: float
    node_steps: float
    intra_volume: float
    inter_volume: float
    own_volume: float = 0.0


ShapeOf = Callable[[str, int, int], PathShape]
ALGORITHMS: Registry[ShapeOf] = Registry("collective algorithm")

_TWO_WAY = ("all_reduce",)
_ONE_WAY = ("all_gather", "reduce_scatter")
_ROOTED = ("broadcast", "reduce")
_MESSAGE = ("p2p", "p2p_bidirectional")


def bus_factor(op: str, n_ranks: int) -> float:
    """Bus bandwidth = factor x size / time, as nccl-tests prints it; 1 for rooted ones and messages."""
    if op in _TWO_WAY:
        return 2.0 * (n_ranks - 1) / n_ranks
    if op in _ONE_WAY or op == "all_to_all":
        return (n_ranks - 1) / n_ranks
    return 1.0


def path_shape(algorithm: str, op: str, n_ranks: int, n_nodes: int) -> PathShape:
    """Shape of one algorithm for `n_ranks` ranks on `n_nodes` nodes. UsageError where it cannot do `op`."""
    return ALGORITHMS[algorithm](op, n_ranks, n_nodes)


def allowed_algorithms(op: str, *, n_nodes: int, multicast: bool) -> tuple[str, ...]:
    """What NCCL may choose from: rings always, trees for all-reduce, NVLS where the switch multicasts.

    Source: NCCL src/graph/tuning.cc (v2.19 and later), algorithm switches.
    """
    if op == "all_to_all" or op in _MESSAGE:
        return ("direct",)
    if op != "all_reduce":
        return ("ring",)
    if n_nodes == 1:
        return ("ring", "tree", "nvls") if multicast else ("ring", "tree")
    return ("ring", "tree", "nvls_tree") if multicast else ("ring", "tree")


def _refuse(algorithm: str, op: str) -> UsageError:
    return UsageError(f"algorithm {algorithm!r} does not do {op!r}; choose another algorithm for it")


@ALGORITHMS.register("ring")
def _ring(op: str, n_ranks: int, n_nodes: int) -> PathShape:
    if op in _MESSAGE or op == "all_to_all":
        return _direct(op, n_ranks, n_nodes)
    passes = 2 if op in _TWO_WAY else 1
    between = n_nodes * passes if n_nodes > 1 else 0
    if op in _ONE_WAY or op in _ROOTED:
        between = max(0, n_nodes - 1)
    volume = bus_factor(op, n_ranks)
    return PathShape(
        float(max(0, passes * (n_ranks - 1) - between)),
        float(between),
        volume if n_ranks > n_nodes else 0.0,
        volume if n_nodes > 1 else 0.0,
        0.0 if op in _ROOTED else passes / n_ranks,
    )


@ALGORITHMS.register("tree")
def _tree(op: str, n_ranks: int, n_nodes: int) -> PathShape:
    passes = 2 if op in _TWO_WAY else 1
    if op not in _TWO_WAY and op not in _ROOTED:
        raise _refuse("tree", op)
    local = n_ranks // n_nodes
    return PathShape(
        float(passes * (local - 1)),
        float(passes * math.ceil(math.log2(n_nodes))),
        float(passes) if local > 1 else 0.0,
        double_tree_load(n_nodes) * passes / 2.0,
    )


@ALGORITHMS.register("nvls")
def _nvls(op: str, n_ranks: int, n_nodes: int) -> PathShape:
    if op not in _TWO_WAY or n_nodes > 1:
        raise _refuse("nvls", op)
    return PathShape(0.0, 0.0, 1.0 + 1.0 / n_ranks, 0.0)


@ALGORITHMS.register("nvls_tree")
def _nvls_tree(op: str, n_ranks: int, n_nodes: int) -> PathShape:
    if op not in _TWO_WAY:
        raise _refuse("nvls_tree", op)
    local = n_ranks // n_nodes
    return PathShape(0.0, 2.0 * math.ceil(math.log2(n_nodes)), 1.0 + 1.0 / local, double_tree_load(n_nodes))


@ALGORITHMS.register("hierarchical")
def _hierarchical(op: str, n_ranks: int, n_nodes: int) -> PathShape:
    if op not in _TWO_WAY and op not in _ONE_WAY:
        raise _refuse("hierarchical", op)
    passes = 2 if op in _TWO_WAY else 1
    local = n_ranks // n_nodes
    # Inside: all-reduce scatters and gathers the whole buffer, all-gather hands every node's part round.
    inside = (local - 1) / local
    between = (n_nodes - 1) / n_nodes
    return PathShape(
        float(passes * (local - 1)), float(passes * (n_nodes - 1)), passes * inside, passes * between
    )


@ALGORITHMS.register("direct")
def _direct(op: str, n_ranks: int, n_nodes: int) -> PathShape:
    local = n_ranks // n_nodes
    if op in _MESSAGE:
        far = n_nodes > 1
        return PathShape(0.0 if far else 1.0, 1.0 if far else 0.0, 0.0 if far else 1.0, 1.0 if far else 0.0)
    if op == "all_to_all":
        return PathShape(
            float(local - 1),
            float(n_nodes - 1),
            (local - 1) / n_ranks,
            local * (n_ranks - local) / n_ranks,
            1.0 / n_ranks,
        )
    # One-shot exchange: every rank reads all others' buffers (or, two-shot, all others' shares).
    inside = bus_factor(op, n_ranks)
    return PathShape(
        float(local - 1), float(n_nodes - 1), inside if local > 1 else 0.0, inside if n_nodes > 1 else 0.0
    )


@ALGORITHMS.register("one_shot")
def _one_shot(op: str, n_ranks: int, n_nodes: int) -> PathShape:
    if op not in _TWO_WAY:
        raise _refuse("one_shot", op)
    local = n_ranks // n_nodes
    return PathShape(float(local - 1), float(n_nodes - 1), float(local - 1), float(local * (n_ranks - local)))


@ALGORITHMS.register("halving")
def _halving(op: str, n_ranks: int, n_nodes: int) -> PathShape:
    if op not in _TWO_WAY and op not in _ONE_WAY:
        raise _refuse("halving", op)
    passes = 2 if op in _TWO_WAY else 1
    local = n_ranks // n_nodes
    volume = bus_factor(op, n_ranks)
    between = passes * (n_nodes - 1) / n_nodes
    return PathShape(
        float(passes * math.ceil(math.log2(local))),
        float(passes * math.ceil(math.log2(n_nodes))),
        volume if local > 1 else 0.0,
        between * local if n_nodes > 1 else 0.0,
    )


@ALGORITHMS.register("binomial")
def _binomial(op: str, n_ranks: int, n_nodes: int) -> PathShape:
    if op not in _ROOTED:
        raise _refuse("binomial", op)
    local = n_ranks // n_nodes
    inside, between = math.ceil(math.log2(local)), math.ceil(math.log2(n_nodes))
    # The root sends its whole buffer once per level of the tree.
    return PathShape(float(inside), float(between), float(inside), float(between))
