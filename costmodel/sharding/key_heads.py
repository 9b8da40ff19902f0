"""Key heads that several ranks share: each rank makes and keeps those of its own queries.

With more tensor-parallel ranks than key heads a split projection leaves every rank part of a head, and
training gathers the rest (DTensor; Megatron-Core's `get_query_key_value_tensors`). Servers load the weights
of a head on all ranks that share it instead, and send nothing: vLLM's QKVParallelLinear
(`num_kv_head_replicas`), SGLang's, TensorRT-LLM's `dup_kv_weight`.

    columns of a rank's projection = head width x max(1, key heads / ranks)
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from costmodel.graph.model_graph import Operator, Phase, Segment
from costmodel.sharding.local import with_heads
from costmodel.sharding.placements import Replicate, Shard
from costmodel.sharding.sharded import LocalParameter, ShardedGraph, ShardedSegment

__all__ = ["repeat_key_heads"]

_AROUND = ("elementwise", "norm", "reduction", "host")
"""Kinds of operators between a projection and its attention: a head's normalisation, its rotation, views."""


def repeat_key_heads(graph: ShardedGraph) -> ShardedGraph:
    """The graph where ranks that share a key head each have its projections; forward alone."""
    pairs = zip(graph.graph.segments, graph.segments, strict=True)
    return replace(graph, segments=tuple(_repeated(whole, part, graph.tp) for whole, part in pairs))


def _repeated(whole: Segment, part: ShardedSegment, tp: int) -> ShardedSegment:
    own = {op.index: op for op in part.local.operators}
    for before in whole.phase(Phase.FORWARD):
        if before.kind != "attention":
            continue
        after, heads = own[before.index], before.dims["kv_heads"]
        shared = heads < tp and tp % heads == 0 and after.dims["heads"] * tp == before.dims["heads"]
        paths = [_projection(whole, before, slot, heads) for slot in (1, 2)] if shared else []
        for path in paths if all(paths) else ():
            part = _with_own_heads(whole, part, path, heads // after.dims["kv_heads"])
    return part


def _projection(whole: Segment, attention: Operator, slot: int, heads: int) -> tuple[Operator, ...]:
    """The product that makes the keys (slot 1) or values (2) of a call and what lies between them; nothing
    where that is not one product of its own."""
    made = {tensor: op for op in whole.phase(Phase.FORWARD) for tensor in op.outputs}
    width = heads * attention.dims["qk_dim" if slot == 1 else "v_dim"]
    before: dict[int, Operator] = {}
    products: dict[int, Operator] = {}
    ahead = [attention.inputs[slot]]
    while ahead:
        op = made.get(ahead.pop())
        if op is None or op.index in before or op.index in products:
            continue
        if op.kind == "gemm":
            products[op.index] = op
        elif op.kind in _AROUND:
            before[op.index] = op
            ahead += op.inputs
        else:
            return ()
    if len(products) != 1:
        return ()
    (product,) = products.values()
    if product.dims["n"] != width:
        return ()
    reached, path = set(product.outputs), [product]
    for index in sorted(before):
        if reached.intersection(before[index].inputs):
            reached.update(before[index].outputs)
            path.append(before[index])
    return tuple(path)


def _with_own_heads(
    whole: Segment, part: ShardedSegment, path: tuple[Operator, ...], share: int
) -> ShardedSegment:
    """The segment with 1 / `share` of the heads along `path` on every rank, and no gather there."""
    own = {op.index: with_heads(op, share) for op in path}
    made = {tensor for op in path for tensor in op.outputs}
    sizes = {t.index: ceil(t.size_bytes / share) for t in whole.tensors if t.index in made}
    base = {t.index: t.index if t.view_of is None else t.view_of for t in whole.tensors}
    weights = {base.get(i, i) for i in path[0].inputs}
    columns = path[0].dims["n"]
    return replace(
        part,
        local=replace(
            part.local,
            operators=tuple(own.get(op.index, op) for op in part.local.operators),
            tensors=tuple(
                replace(t, size_bytes=sizes[t.index]) if t.index in sizes else t for t in part.local.tensors
            ),
        ),
        parameters=tuple(_columns(p, columns, share) if p.tensor in weights else p for p in part.parameters),
        collectives=tuple(
            c for c in part.collectives if c.phase is not Phase.FORWARD or c.tensor not in made
        ),
    )


def _columns(parameter: LocalParameter, columns: int, share: int) -> LocalParameter:
    """A projection's weight or bias with the columns of a rank's own heads."""
    if columns not in parameter.shape:
        return parameter
    dim = parameter.shape.index(columns)
    shape = tuple(n // share if at == dim else n for at, n in enumerate(parameter.shape))
    placement = Shard(dim) if isinstance(parameter.placement, Replicate) else parameter.placement
    size = parameter.size_bytes // share
    return replace(parameter, local_shape=shape, local_bytes=size, placement=placement)
