"""Tensor parallelism on a mesh: 2-D (Optimus), 2.5-D (Tesseract) and 3-D, of a whole step.

Every tensor is cut over the mesh: activations by rows and features, weights by both of their dimensions.
A product with a weight runs as the papers have it, with the collectives that `tensor_parallel_nd` counts:

    2d, 2.5d   q steps; each broadcasts a block of X along the row of the mesh and one of W along its column,
               and multiplies them. Backward: dX broadcasts W and reduces dX, dW broadcasts X and reduces dW.
               2.5d cuts the rows over `depth` layers too, which repeat the weights and all-reduce their
               gradients.
    3d         X and W are gathered along two axes of the cube, Y is reduced and scattered along the third.

What normalises over features adds up two numbers a row along the mesh's row.
"""

from __future__ import annotations

from dataclasses import replace

from costmodel.errors import PlanError
from costmodel.graph.model_graph import ModelGraph, Operator, Phase, Segment, TensorRole
from costmodel.hardware.device import element_bytes
from costmodel.sharding.sharded import CollectiveCall, ShardedGraph, ShardedSegment
from costmodel.sharding.shares import share_operator, share_parameters, share_segment
from costmodel.sharding.tensor_parallel_nd import mesh_side

__all__ = ["COLUMN", "DEPTH", "LAYER", "ROW", "mesh_split"]

ROW, COLUMN, DEPTH, LAYER = "mesh_row", "mesh_column", "mesh_depth", "mesh_layer"
"""Axes of the mesh: neighbours, ranks a row apart, a face apart, and 2.5-D's layers (a face apart too)."""

_STATISTICS_BYTES = 8
"""Sum and sum of squares of a row, fp32."""


def mesh_split(graph: ModelGraph, scheme: str, p: int, *, depth: int = 1) -> ShardedGraph:
    """One rank's part under `scheme` (2d, 2.5d, 3d) over p ranks. PlanError where p is no such mesh."""
    q = mesh_side(scheme, p, depth=depth)
    if q == 1:
        raise PlanError(f"tp({p}) over depth({depth}): a mesh of side 1 divides nothing; take tp alone")
    segments = tuple(_segment(segment, scheme, q, p, depth) for segment in graph.segments)
    return ShardedGraph(graph=graph, segments=segments, tp=p)


def _segment(segment: Segment, scheme: str, q: int, p: int, depth: int) -> ShardedSegment:
    layers = depth if scheme == "2.5d" else 1
    rows = q * layers if scheme != "3d" else q * q
    weights = {t.index for t in segment.tensors if t.role is TensorRole.PARAMETER}
    weights |= {t.index for t in segment.tensors if t.view_of in weights}
    weighted = {op.index for op in segment.operators if op.kind == "gemm" and set(op.inputs) & weights}
    by_index = {op.index: op for op in segment.operators}
    operators: list[Operator] = []
    calls: list[CollectiveCall] = []
    for op in segment.operators:
        is_weight_gradient = op.index not in weighted and op.forward_index in weighted
        if op.kind != "gemm" or not (is_weight_gradient or op.index in weighted):
            operators.append(share_operator(op, rows, q))
            if op.kind == "norm":
                size = max(1, op.dims["rows"] // rows) * _STATISTICS_BYTES
                calls.append(_call("all_reduce", size, q, op, ROW))
            continue
        if scheme == "3d":
            made, sent = _cube(op, q)
        else:
            forward = op if op.phase is Phase.FORWARD else by_index[op.forward_index or 0]
            made, sent = _summa(op, forward, q, layers, is_weight_gradient)
        operators += made
        calls += sent
    state = p // layers
    local = share_segment(segment, tuple(operators), p, state_parts=state)
    return ShardedSegment(local=local, collectives=tuple(calls), parameters=share_parameters(segment, state))


def _call(kind: str, size_bytes: int, n: int, op: Operator, axis: str) -> CollectiveCall:
    return CollectiveCall(
        op=kind,
        size_bytes=max(1, size_bytes),
        n_ranks=n,
        axis=axis,
        phase=op.phase,
        after_operator=op.index,
        module=op.module,
        what="gradient" if axis == LAYER else "inner",
    )


def _sizes(op: Operator) -> tuple[int, int, int]:
    """Bytes of A, B and C of C[m, n] = A[m, k] B[k, n]."""
    element = int(element_bytes(op.dtype))
    m, n, k = op.dims["m"], op.dims["n"], op.dims["k"]
    return m * k * element, k * n * element, m * n * element


def _summa(
    op: Operator, forward: Operator, q: int, layers: int, is_weight_gradient: bool
) -> tuple[list[Operator], list[CollectiveCall]]:
    """q steps of block products. Forward broadcasts blocks of both operands; a gradient broadcasts one and
    reduces the result."""
    x, w, _ = _sizes(forward)
    blocks = q * q
    if op.phase is Phase.FORWARD:
        m, n, k = op.dims["m"] // (q * layers), op.dims["n"] // q, op.dims["k"] // q
        sent = [("broadcast", x // (blocks * layers), ROW), ("broadcast", w // blocks, COLUMN)]
    elif is_weight_gradient:  # dW[K, N] = X^T dY: blocks of X are broadcast, those of dW reduced
        m, n, k = op.dims["m"] // q, op.dims["n"] // q, op.dims["k"] // (q * layers)
        sent = [("broadcast", x // (blocks * layers), ROW), ("reduce", w // blocks, COLUMN)]
    else:  # dX[T, K] = dY W^T: blocks of W are broadcast, those of dX reduced
        m, n, k = op.dims["m"] // (q * layers), op.dims["n"] // q, op.dims["k"] // q
        sent = [("broadcast", w // blocks, COLUMN), ("reduce", x // (blocks * layers), ROW)]
    step = _product(op, m, n, k)
    calls = [_call(kind, size, q, op, axis) for _ in range(q) for kind, size, axis in sent]
    if is_weight_gradient and layers > 1:
        calls.append(_call("all_reduce", w // blocks, layers, op, LAYER))
    return [step] * q, calls


def _cube(op: Operator, q: int) -> tuple[list[Operator], list[CollectiveCall]]:
    """One product on a cube: both operands gathered, the result reduced and scattered, each along an axis."""
    a, b, c = _sizes(op)
    face = q * q
    product = _product(op, op.dims["m"] // q, op.dims["n"] // q, op.dims["k"] // q)
    calls = [
        _call("all_gather", a // face, q, op, ROW),
        _call("all_gather", b // face, q, op, COLUMN),
        _call("reduce_scatter", c // face, q, op, DEPTH),
    ]
    return [product], calls


def _product(op: Operator, m: int, n: int, k: int) -> Operator:
    m, n, k = max(1, m), max(1, n), max(1, k)
    element = int(element_bytes(op.dtype))
    return replace(
        op,
        dims={**op.dims, "m": m, "n": n, "k": k},
        flop=2 * m * n * k,
        bytes_read=element * (m * k + k * n),
        bytes_written=element * m * n,
    )
