"""`shard`: a traced model and degrees of parallelism -> what one rank runs, holds and communicates."""

from __future__ import annotations

from collections.abc import Mapping

from costmodel.errors import PlanError
from costmodel.graph.model_graph import ModelGraph
from costmodel.sharding.context import split_context
from costmodel.sharding.cost import ShardingCost, reference_cost
from costmodel.sharding.expert import Routing, expert_tensors, split_experts
from costmodel.sharding.placements import Placement
from costmodel.sharding.sharded import ShardedGraph, ShardedSegment, unsharded_segment
from costmodel.sharding.tensor_parallel import TensorSplit

__all__ = ["shard"]


def shard(
    graph: ModelGraph,
    *,
    tp: int,
    sequence_parallel: bool = False,
    cp: int = 1,
    ep: int = 1,
    experts_over: int | None = None,
    cost: ShardingCost | None = None,
    parameters: Mapping[str, Placement] | None = None,
    styles: Mapping[str, str] | None = None,
    cp_exchange: str = "ring",
    routing: Routing | None = None,
    use_tp_plan: bool = True,
) -> ShardedGraph:
    """One rank's part of the model under tensor (tp), context (cp) and expert (ep) parallelism.

    Every weighted product that can be split is split (that is what the degree asks for); among those ways the
    one of least time under `cost` is taken. The model's own `tp_plan` is followed where it fits. `parameters`
    (name -> placement) fixes the choice; `styles` (module path -> style, see `module_plan`) prices exactly
    what torch's parallelize_module runs with them. `experts_over`: parts that `ep` adds to what tensor
    parallelism makes of experts; default: ep (see `Plan.experts_over`). Degrees of 1 return the graph as is.

    Raises PlanError with the formula where a degree leaves nothing to split.
    """
    for name, degree in (("tp", tp), ("cp", cp), ("ep", ep)):
        if degree < 1:
            raise PlanError(f"{name}({degree}): must be at least 1")
    if tp == cp == ep == 1:
        return ShardedGraph(graph=graph, segments=tuple(unsharded_segment(s) for s in graph.segments))
    prices = cost or reference_cost()
    notes: tuple[str, ...] = ()
    whole = list(graph.segments)
    parts: list[ShardedSegment] = []
    for number, segment in enumerate(whole):
        if cp > 1:
            parts.append(
                split_context(graph, segment, cp=cp, exchange=cp_exchange, cost=prices, is_first=number == 0)
            )
        else:
            parts.append(unsharded_segment(segment))
    if tp > 1:
        split = TensorSplit(
            graph=graph,
            tp=tp,
            sequence_parallel=sequence_parallel,
            cp=cp,
            cost=prices,
            parameters=parameters,
            styles=styles,
            use_tp_plan=use_tp_plan,
        )
        parts, notes = split.of(parts)
    if ep > 1:
        if not any(expert_tensors(s) for s in whole):
            raise PlanError(f"ep({ep}): the model has no expert weights to divide; use ep 1")
        slices = tp if sequence_parallel else 1
        over = ep if experts_over is None else experts_over
        parts = [
            split_experts(p, ep=ep, over=over, routing=routing or Routing(), tp=tp, slices=slices)
            for p in parts
        ]
    return ShardedGraph(
        graph=graph,
        segments=tuple(parts),
        tp=tp,
        cp=cp,
        ep=ep,
        sequence_parallel=sequence_parallel,
        notes=notes,
    )
