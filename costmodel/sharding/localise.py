"""From an assignment to one rank's segment: local operators, tensors, parameters and collectives."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, prod

from costmodel.graph.model_graph import Operator, Phase, Segment, TensorInfo
from costmodel.sharding.block import Block, tensor_bytes
from costmodel.sharding.candidates import Axis
from costmodel.sharding.local import local_backward, local_forward, local_generic, local_table_gradient
from costmodel.sharding.placements import Partial, Placement, Replicate, Shard, local_fraction, local_shape
from costmodel.sharding.sharded import CollectiveCall, LocalParameter, ShardedSegment
from costmodel.sharding.solver import Assignment, Conversion

__all__ = ["localise"]


def localise(block: Block, assignment: Assignment) -> ShardedSegment:
    """One rank's part of a block under an assignment on a single axis."""
    (axis,) = assignment.axes
    segment = block.segment
    placed = _placements(block, assignment)
    forward = {op.index: position for position, op in enumerate(block.forward)}
    whole = {t.index: t for t in segment.tensors}
    operators: list[Operator] = []
    shares: dict[int, float] = {}
    """Backward tensor -> local over whole."""
    parameters = tuple(
        _parameter(t, assignment.parameters.get(t.index, (Replicate(),))[0], axis) for t in segment.parameters
    )
    stored = sum(p.size_bytes for p in parameters)
    share = sum(p.local_bytes for p in parameters) / stored if stored else 1.0
    for op in segment.operators:
        if op.phase is Phase.FORWARD:
            position = forward[op.index]
            ins = tuple(block.values[v].info for v in block.inputs[position])
            outs = tuple(block.values[v].info for v in block.outputs[position])
            operators.append(local_forward(op, assignment.strategies[position][0], ins, outs, axis.n))
        elif op.phase is Phase.BACKWARD:
            operators.append(_backward(op, block, assignment, forward, whole, placed, shares, axis))
        else:
            operators.append(_optimizer(op, share))
    tensors = tuple(_tensor(t, placed, shares, axis) for t in segment.tensors)
    out = segment.output_bytes
    if block.exit is not None:
        before = block.values[block.exit].info
        shard = _exit_placement(block, assignment, placed)
        out -= tensor_bytes(before) - ceil(tensor_bytes(before) * local_fraction(before.shape, shard, axis.n))
    local = replace(segment, operators=tuple(operators), tensors=tensors, output_bytes=max(out, 0))
    return ShardedSegment(
        local=local,
        collectives=tuple(_collectives(block, assignment, segment)),
        parameters=parameters,
        assignment=assignment,
    )


def _placements(block: Block, assignment: Assignment) -> dict[int, Placement]:
    """What a rank holds of each forward tensor: as its producer gives it; a summand as its user takes it."""
    placed: dict[int, Placement] = {}
    for value in block.values:
        index = value.info.index
        used = assignment.used.get(index)
        if value.producer is not None:
            given = assignment.strategies[value.producer][0].outputs[value.slot].forward
            if isinstance(given, Partial):
                given = used[0].forward if used and not isinstance(used[0].forward, Partial) else Replicate()
            placed[index] = given
        elif index in assignment.parameters:
            placed[index] = assignment.parameters[index][0]
        elif block.entry is not None and value is block.values[block.entry] and assignment.entry:
            placed[index] = assignment.entry[0].forward
        else:
            taken = used[0].forward if used else Replicate()
            placed[index] = Replicate() if isinstance(taken, Partial) else taken
    return placed


def _exit_placement(block: Block, assignment: Assignment, placed: dict[int, Placement]) -> Placement:
    assert block.exit is not None
    return assignment.leaves[0].forward if assignment.leaves else placed[block.values[block.exit].info.index]


def _parameter(info: TensorInfo, placement: Placement, axis: Axis) -> LocalParameter:
    shape = local_shape(info.shape, placement, axis.n)
    total = prod(info.shape)
    return LocalParameter(
        name=info.name,
        tensor=info.index,
        shape=info.shape,
        local_shape=shape,
        placement=placement,
        size_bytes=info.size_bytes,
        local_bytes=info.size_bytes * prod(shape) // total if total else info.size_bytes,
        axis=axis.name,
        tied=info.tied,
        frozen=info.frozen,
        unused=info.unused,
    )


def _backward(
    op: Operator,
    block: Block,
    assignment: Assignment,
    forward: dict[int, int],
    tensors: dict[int, TensorInfo],
    placed: dict[int, Placement],
    shares: dict[int, float],
    axis: Axis,
) -> Operator:
    position = forward.get(op.forward_index) if op.forward_index is not None else None
    if position is None:
        known = [shares[i] for i in op.inputs if i in shares]
        known += [local_fraction(tensors[i].shape, placed[i], axis.n) for i in op.inputs if i in placed]
        whole = [i for i in op.inputs if prod(tensors[i].shape) > 1]
        sharded = bool(known) and min(known) < 1.0 and len(known) >= 1 and bool(whole)
        local = local_generic(op, axis.n) if sharded else op
        for i in op.outputs:
            shares[i] = min(known, default=1.0)
        return local
    first = block.forward[position]
    strategy = assignment.strategies[position][0]
    local = local_backward(op, first, strategy, axis.n)
    for i in op.outputs:
        shares[i] = _gradient_share(tensors[i].shape, block, position, assignment, axis)
    if first.kind == "embedding" and not strategy.parallel and max(shares[i] for i in op.outputs) < 1.0:
        return local_table_gradient(op, axis.n)
    return local


def _gradient_share(
    shape: tuple[int, ...], block: Block, position: int, assignment: Assignment, axis: Axis
) -> float:
    """Local part of a gradient: as the placement says of the forward input (or output) of its shape."""
    strategy = assignment.strategies[position][0]
    for values, layouts in (
        (block.inputs[position], strategy.inputs),
        (block.outputs[position], strategy.outputs),
    ):
        for v, layout in zip(values, layouts, strict=True):
            own = block.values[v].info.shape
            if prod(own) == prod(shape) and isinstance(layout.gradient, Shard):
                return local_fraction(own, layout.gradient, axis.n)
            if own == shape:
                return 1.0
    return 1.0 / axis.n if strategy.parallel and len(shape) > 1 else 1.0


def _optimizer(op: Operator, share: float) -> Operator:
    dims = dict(op.dims)
    for key in ("cols", "bytes"):
        if key in dims:
            dims[key] = ceil(dims[key] * share)
    return op.resized(
        dims=dims,
        flop=ceil(op.flop * share),
        bytes_read=ceil(op.bytes_read * share),
        bytes_written=ceil(op.bytes_written * share),
    )


def _tensor(
    info: TensorInfo,
    placed: dict[int, Placement],
    shares: dict[int, float],
    axis: Axis,
) -> TensorInfo:
    if info.index in placed:
        if not isinstance(placed[info.index], Shard):
            return info
        shape = local_shape(info.shape, placed[info.index], axis.n)
        share = local_fraction(info.shape, placed[info.index], axis.n)
        return replace(info, shape=shape, size_bytes=ceil(info.size_bytes * share))
    if info.index in shares and shares[info.index] < 1.0:
        return replace(info, size_bytes=ceil(info.size_bytes * shares[info.index]))
    return info


def _collectives(block: Block, assignment: Assignment, segment: Segment) -> list[CollectiveCall]:
    last_forward = len(block.forward)
    order: list[tuple[float, CollectiveCall]] = []
    backward_order = {op.index: at for at, op in enumerate(segment.phase(Phase.BACKWARD))}

    def backward_of(position: int) -> int:
        ops = block.backward.get(position, ())
        return ops[-1].index if ops else -1

    for change in assignment.conversions:
        if not change.backward:
            at = -1 if change.after is None else block.forward[change.after].index
            if change.after is None and change.what == "parameter" and change.before is not None:
                at = block.forward[change.before].index - 1
            key = float(change.after if change.after is not None else -1)
            order.append((key, _call(change, at, Phase.FORWARD, block)))
            continue
        position = change.before if change.before is not None else _first_user(block, change)
        at = -1 if position is None else backward_of(position)
        key = last_forward + (float(backward_order.get(at, -1)) if position is not None else -1.0)
        order.append((key, _call(change, at, Phase.BACKWARD, block)))
    for position, choice in enumerate(assignment.strategies):
        for axis, strategy in zip(assignment.axes, choice, strict=True):
            for inner in strategy.collectives:
                at = backward_of(position) if inner.backward else block.forward[position].index
                key = last_forward + backward_order.get(at, 0) if inner.backward else float(position)
                call = CollectiveCall(
                    op=inner.op,
                    size_bytes=inner.size_bytes,
                    n_ranks=axis.n,
                    axis=axis.name,
                    phase=Phase.BACKWARD if inner.backward else Phase.FORWARD,
                    after_operator=at,
                    module=block.forward[position].module,
                    what="inner",
                )
                order.append((key, call))
    order.sort(key=lambda entry: entry[0])
    return [call for _, call in order]


def _first_user(block: Block, change: Conversion) -> int | None:
    """The user of a shared value whose backward comes last: the first in forward order."""
    for value in block.values:
        if value.info.index == change.tensor and value.producer == change.after and value.users:
            return min(position for position, _ in value.users)
    return None


def _call(change: Conversion, at: int, phase: Phase, block: Block) -> CollectiveCall:
    position = change.after if change.after is not None else change.before
    if position is None:
        position = _first_user(block, change)
    what = "gradient" if change.what == "parameter" and change.backward else change.what
    return CollectiveCall(
        op=change.transfer.op,
        size_bytes=change.transfer.size_bytes,
        n_ranks=change.axis.n,
        axis=change.axis.name,
        phase=phase,
        after_operator=at,
        module=block.forward[position].module if position is not None else "",
        what=what,
        tensor=change.tensor,
    )
