"""Branches of a SplitNet on a rank each: no communication between the first block and the last.

Where the blocks are block-diagonal in as many groups as there are ranks, a rank keeps one branch: 1/g of
every layer and feature of the blocks. What lies before and after them runs whole on every rank; features are
gathered once behind the last block, and their gradient once before the first.
"""

from __future__ import annotations

from dataclasses import replace

from costmodel.errors import PlanError
from costmodel.graph.model_graph import ModelGraph, Phase, Segment
from costmodel.sharding.sharded import CollectiveCall, ShardedGraph, ShardedSegment, unsharded_segment
from costmodel.sharding.shares import share_operator, share_parameters, share_segment

__all__ = ["branch_split"]


def branch_split(graph: ModelGraph, groups: int) -> ShardedGraph:
    """One rank's branch of a model whose blocks have `groups` of them. PlanError where it has no blocks."""
    blocks = [i for i, segment in enumerate(graph.segments) if segment.is_block]
    if not blocks:
        raise PlanError(f"splitnet{groups}: the model has no blocks to keep apart")
    parts = []
    for i, segment in enumerate(graph.segments):
        if i in blocks:
            operators = tuple(share_operator(op, 1, groups) for op in segment.operators)
            local = share_segment(segment, operators, groups)
            parameters = share_parameters(segment, groups)
            parts.append(ShardedSegment(local=local, collectives=(), parameters=parameters))
            continue
        calls = []
        if i == blocks[-1] + 1:
            calls.append(_gather(graph.segments[blocks[-1]], groups, Phase.FORWARD))
        if i == blocks[0] - 1:
            calls.append(_gather(segment, groups, Phase.BACKWARD))
        parts.append(replace(unsharded_segment(segment), collectives=tuple(calls)))
    return ShardedGraph(graph=graph, segments=tuple(parts), tp=groups)


def _gather(segment: Segment, groups: int, phase: Phase) -> CollectiveCall:
    """Features that leave a segment, or their gradient, whole on every rank."""
    return CollectiveCall(
        op="all_gather",
        size_bytes=segment.output_bytes,
        n_ranks=groups,
        axis="tp",
        phase=phase,
        after_operator=-1,
        module=segment.modules[0] if segment.modules else segment.name,
        what="boundary",
    )
