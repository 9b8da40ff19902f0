"""What one of many ranks has of an operator when every tensor is cut alike, by rows and by features.

Rows are batch and positions, features the last dimension (channels of an image). Used where a whole block is
divided by one rule (a mesh, independent branches) instead of operator by operator.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, prod

from costmodel.graph.model_graph import Operator, Segment, TensorInfo, TensorRole
from costmodel.sharding.placements import Shard
from costmodel.sharding.sharded import LocalParameter

__all__ = ["share_operator", "share_parameters", "share_segment"]


def _part(size: int, of: int) -> int:
    return max(1, ceil(size / of))


def share_operator(op: Operator, rows: int, features: int) -> Operator:
    """One rank's part of an operator whose rows are cut in `rows` and whose features in `features` parts.

    Products: m by rows, n by features, k whole (each rank sums over all of it); batched ones and attention by
    batch x heads, convolutions by batch and output channels, what streams by both.
    """
    dims = dict(op.dims)
    parts = rows * features
    if op.kind in ("gemm", "grouped_gemm"):
        dims["m"], dims["n"] = _part(dims["m"], rows), _part(dims["n"], features)
    elif op.kind == "bmm":
        dims["batch"] = _part(dims["batch"], parts)
    elif op.kind == "attention":
        dims["batch"] = _part(dims["batch"], rows)
        dims["heads"], dims["kv_heads"] = _part(dims["heads"], features), _part(dims["kv_heads"], features)
    elif op.kind == "conv":
        groups = max(1, dims["groups"])
        dims["batch"] = _part(dims["batch"], rows)
        dims["c_out"] = _part(dims["c_out"], features)
        if groups % features == 0:  # branches: each reads its own channels
            dims["c_in"], dims["groups"] = _part(dims["c_in"], features), groups // features
    elif "bytes" in dims:
        if "rows" in dims:
            dims["rows"], dims["cols"] = _part(dims["rows"], rows), _part(dims["cols"], features)
        dims["bytes"] = _part(dims["bytes"], parts)
    return replace(
        op,
        dims=dims,
        flop=op.flop // parts,
        bytes_read=op.bytes_read // parts,
        bytes_written=op.bytes_written // parts,
    )


def _share_tensor(tensor: TensorInfo, parts: int) -> TensorInfo:
    return replace(tensor, size_bytes=_part(tensor.size_bytes, parts))


def share_segment(
    segment: Segment, operators: tuple[Operator, ...], parts: int, *, state_parts: int = 0
) -> Segment:
    """The segment of one of `parts` ranks, with its operators. `state_parts`: in how many parts parameters
    and their gradients are cut, where not in as many."""
    state = state_parts or parts
    roles = (TensorRole.PARAMETER, TensorRole.GRADIENT)
    return replace(
        segment,
        operators=operators,
        tensors=tuple(_share_tensor(t, state if t.role in roles else parts) for t in segment.tensors),
        output_bytes=_part(segment.output_bytes, parts),
        passing_bytes=_part(segment.passing_bytes, parts),
    )


def share_parameters(segment: Segment, parts: int) -> tuple[LocalParameter, ...]:
    """1 / parts of every parameter of a segment."""
    return tuple(
        LocalParameter(
            name=t.name,
            tensor=t.index,
            shape=t.shape,
            local_shape=(_part(prod(t.shape), parts),),
            placement=Shard(0),
            size_bytes=t.size_bytes,
            local_bytes=_part(t.size_bytes, parts),
            tied=t.tied,
            frozen=t.frozen,
            unused=t.unused,
        )
        for t in segment.tensors
        if t.role is TensorRole.PARAMETER
    )
