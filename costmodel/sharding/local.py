"""The local form of an operator on one rank of a mesh axis: dims, FLOP and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from costmodel.graph.model_graph import Operator, TensorInfo
from costmodel.sharding.block import tensor_bytes
from costmodel.sharding.placements import Layout, Shard, local_fraction
from costmodel.sharding.strategies import Strategy

__all__ = [
    "PRODUCT_KINDS",
    "backward_split",
    "local_backward",
    "local_forward",
    "local_generic",
    "local_table_gradient",
    "with_heads",
]

PRODUCT_KINDS = ("gemm", "bmm", "grouped_gemm")


def local_forward(
    op: Operator,
    strategy: Strategy,
    inputs: tuple[TensorInfo, ...],
    outputs: tuple[TensorInfo, ...],
    n: int,
) -> Operator:
    """The operator under a strategy on an axis of n ranks."""
    if not strategy.parallel and not strategy.splits:
        return _with_bytes(
            op, op.dims, op.flop, _moved(inputs, strategy.inputs, n), _moved(outputs, strategy.outputs, n)
        )
    if op.kind in PRODUCT_KINDS:
        return _local_product(op, strategy.splits, n)
    dims = _split_dims(op, strategy.splits, n)
    if not strategy.splits:
        dims = _memory_dims(dims, outputs, strategy.outputs, inputs, strategy.inputs, n)
    read, written = _moved(inputs, strategy.inputs, n), _moved(outputs, strategy.outputs, n)
    return _with_bytes(op, dims, ceil(op.flop / n), read, written)


def local_backward(op: Operator, forward: Operator | None, strategy: Strategy | None, n: int) -> Operator:
    """A backward operator under the strategy of the forward operator whose gradient it computes."""
    if strategy is None or forward is None or not strategy.parallel:
        return op
    if op.kind in PRODUCT_KINDS:
        if forward.kind in PRODUCT_KINDS:
            return _local_product(op, tuple(backward_split(op, forward, key) for key in strategy.splits), n)
        return local_generic(op, n)
    if strategy.splits and op.kind in ("conv", "attention"):
        return _with_bytes(op, _split_dims(op, strategy.splits, n), ceil(op.flop / n), 1 / n, 1 / n)
    return local_generic(op, n, by_cols=_by_cols(strategy, forward))


def _split_dims(op: Operator, splits: tuple[str, ...], n: int) -> dict[str, int]:
    """Local dims of n parts. Where query heads alone are split, a rank reads the key heads of its own."""
    dims = {name: ceil(size / n) if name in splits else size for name, size in op.dims.items()}
    if "heads" in splits and "kv_heads" not in splits and "kv_heads" in dims:
        dims["kv_heads"] = ceil(dims["heads"] * dims["kv_heads"] / op.dims["heads"])
    return dims


def local_generic(op: Operator, n: int, *, by_cols: bool = False) -> Operator:
    """An operator all of whose work is 1/n: rows (or columns) shrink."""
    dims = dict(op.dims)
    if op.kind in PRODUCT_KINDS:
        return _local_product(op, ("m",), n)
    key = "cols" if by_cols and dims.get("cols", 0) >= n else "rows"
    if dims.get(key, 0) < n:
        key = "cols" if key == "rows" else "rows"
    if key in dims:
        dims[key] = max(1, ceil(dims[key] / n))
    return _with_bytes(op, dims, ceil(op.flop / n), 1 / n, 1 / n)


def with_heads(op: Operator, n: int) -> Operator:
    """A forward operator on 1/n of the heads of its result: a product's columns, rows of all else."""
    return _local_product(op, ("n",), n) if op.kind in PRODUCT_KINDS else local_generic(op, n)


def local_table_gradient(op: Operator, n: int) -> Operator:
    """An operator on the gradient of a table whose rows are divided: a scatter still reads every looked-up
    row, but writes (and zeroes) its part of the table only; a sum of two such gradients is 1/n."""
    if op.kind != "embedding":
        return local_generic(op, n)
    return _with_bytes(op, op.dims, op.flop, 1.0, 1 / n)


def backward_split(op: Operator, forward: Operator, key: str) -> str:
    """Which of a backward product's dims is the forward product's `key`.

    Forward C[m,n] = A[m,k] B[k,n]; gradients dA[m,k] (sum over n), dB[k,n] or its transpose (sum over m).
    """
    if key not in ("m", "n", "k"):
        return key
    m, n, k = (forward.dims.get(d, 0) for d in "mnk")
    forms = {
        "nn": {"m": "m", "k": "n", "n": "k"},
        "tn": {"n": "m", "k": "n", "m": "k"},
        "tn_transposed": {"k": "m", "n": "n", "m": "k"},
    }
    sizes = {"m": m, "n": n, "k": k}
    order = sorted(forms, key=lambda form: not form.startswith(op.variant))
    for form in order:
        if all(op.dims.get(theirs) == sizes[ours] for ours, theirs in forms[form].items()):
            return forms[form][key]
    same = [d for d in "mnk" if op.dims.get(d) == sizes[key]]
    return same[0] if same else "m"


def _local_product(op: Operator, splits: tuple[str, ...], n: int) -> Operator:
    dims = dict(op.dims)
    for key in splits:
        if key in dims:
            dims[key] = max(1, ceil(dims[key] / n))
    if dims == dict(op.dims):
        return op

    def sizes(d: dict[str, int]) -> tuple[int, int]:
        m, w, k, b, g = d["m"], d["n"], d["k"], d.get("batch", 1), d.get("groups", 1)
        return b * (m * k + g * k * w), b * m * w

    read, written = sizes(dims)
    read_whole, written_whole = sizes(dict(op.dims))
    return _with_bytes(
        op, dims, ceil(op.flop / n), read / max(read_whole, 1), written / max(written_whole, 1)
    )


def _memory_dims(
    dims: dict[str, int],
    outputs: tuple[TensorInfo, ...],
    out_layouts: tuple[Layout, ...],
    inputs: tuple[TensorInfo, ...],
    in_layouts: tuple[Layout, ...],
    n: int,
) -> dict[str, int]:
    """Rows and columns of a memory-bound call: the last dimension is columns, the others are rows."""
    for infos, layouts in ((outputs, out_layouts), (inputs, in_layouts)):
        for info, layout in zip(infos, layouts, strict=True):
            if isinstance(layout.forward, Shard) and info.shape:
                last = layout.forward.dim == len(info.shape) - 1
                key = "cols" if last and dims.get("cols", 0) >= n else "rows"
                if key in dims:
                    dims[key] = max(1, ceil(dims[key] / n))
                return dims
    return dims


def _by_cols(strategy: Strategy, forward: Operator) -> bool:
    shard = next((x.forward for x in strategy.outputs if isinstance(x.forward, Shard)), None)
    if shard is None or "cols" not in forward.dims:
        return False
    return strategy.name == "vocabulary" or (strategy.name.startswith("dim") and _is_last(strategy, forward))


def _is_last(strategy: Strategy, forward: Operator) -> bool:
    dims = [x.forward.dim for x in strategy.inputs if isinstance(x.forward, Shard)]
    return bool(dims) and forward.dims.get("rows", 0) < forward.dims.get("cols", 0) and max(dims) >= 2


def _moved(infos: tuple[TensorInfo, ...], layouts: tuple[Layout, ...], n: int) -> float:
    """Local bytes over whole bytes of a list of tensors."""
    total = local = 0.0
    for info, layout in zip(infos, layouts, strict=True):
        size = tensor_bytes(info)
        total += size
        local += size * local_fraction(info.shape, layout.forward, n)
    return local / total if total else 1.0


def _with_bytes(op: Operator, dims: Mapping[str, int], flop: int, read: float, written: float) -> Operator:
    if dims is op.dims and flop == op.flop and read == written == 1.0:
        return op
    sizes = dict(dims)
    bytes_read, bytes_written = round(op.bytes_read * read), round(op.bytes_written * written)
    if "bytes" in sizes:
        whole = op.bytes_read + op.bytes_written
        sizes["bytes"] = (
            round(sizes["bytes"] * (bytes_read + bytes_written) / whole) if whole else sizes["bytes"]
        )
    return op.resized(dims=sizes, flop=flop, bytes_read=bytes_read, bytes_written=bytes_written)
