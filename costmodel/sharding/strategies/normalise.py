"""Normalisation, softmax, reductions and pooling."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from costmodel.sharding.placements import BROADCAST, PARTIAL, REPLICATED, Layout, sharded
from costmodel.sharding.strategies.call import SHARDING_RULES, Call, InnerCollective, Strategy

__all__ = ["batch_norm", "layer_norm", "pooling", "reduction", "softmax"]


@SHARDING_RULES.register("aten.native_layer_norm", "aten.layer_norm", "aten.rms_norm", "aten._fused_rms_norm")
def layer_norm(call: Call) -> Iterator[Strategy]:
    """Statistics over the trailing dimensions; the leading ones are independent."""
    x, weights = call.inputs[0], call.inputs[1:]
    normed = len(weights[0]) if weights else 0
    if not normed:
        cols = call.op.dims.get("cols", x[-1])
        while normed < len(x) and prod(x[len(x) - normed :]) < cols:
            normed += 1
        normed = max(normed, 1)
    for dim in range(len(x) - normed):
        for c in call.both_options(0, dim, 0, dim):
            results = tuple(
                sharded(dim, c) if len(s) > dim and s[dim] == x[dim] else REPLICATED for s in call.outputs
            )
            yield Strategy(
                name=f"dim{dim}", inputs=(sharded(dim, c), *(BROADCAST,) * len(weights)), outputs=results
            )


@SHARDING_RULES.register(
    "aten.native_batch_norm", "aten._native_batch_norm_legit", "aten._native_batch_norm_legit_no_training",
    "aten._native_batch_norm_legit_functional", "aten.cudnn_batch_norm", "aten.batch_norm",
    "aten._batch_norm_with_update", "aten.native_group_norm", "aten.group_norm", "aten.instance_norm",
)  # fmt: skip
def batch_norm(call: Call) -> Iterator[Strategy]:
    """Channels, or samples (each rank then takes the statistics of its own samples, as DDP does)."""
    x, weights = call.inputs[0], call.inputs[1:]
    grouped = "group_norm" in call.op.target
    groups = call.argument("group") or call.argument("num_groups")
    if len(x) < 2:
        return

    def results(dim: int, c: int) -> tuple[Layout, ...]:
        return tuple(
            sharded(dim, c) if s == x or (grouped and len(s) > dim and s[dim] == x[dim])
            else sharded(0, c) if dim == 1 and s == (x[1],)
            else sharded(1, c) if dim == 1 and grouped and len(s) == 2 and s[1] == groups
            else REPLICATED
            for s in call.outputs
        )  # fmt: skip

    for c in call.both_options(0, 0, 0, 0):
        yield Strategy(
            name="batch", inputs=(sharded(0, c), *(BROADCAST,) * len(weights)), outputs=results(0, c)
        )
    if grouped and not (isinstance(groups, int) and groups % call.n == 0):
        return
    for c in call.both_options(0, 1, 0, 1) if not grouped else [1]:
        if call.cuts(x, 1, c):
            yield Strategy(
                name="channels",
                inputs=(sharded(1, c), *(sharded(0, c) if s == (x[1],) else REPLICATED for s in weights)),
                outputs=results(1, c),
            )


@SHARDING_RULES.register(
    "aten._softmax", "aten.softmax", "aten._safe_softmax", "aten._log_softmax", "aten.log_softmax"
)
def softmax(call: Call) -> Iterator[Strategy]:
    """Independent over all dimensions but the normalised one, which needs its maximum and sum reduced.

    Vocabulary-parallel form: two all-reduces of one number per row forward, one backward.
    """
    x, out = call.inputs[0], call.outputs[0]
    over = call.dim_argument("dim", len(x))
    over = len(x) - 1 if over is None else over
    for dim in range(len(x)):
        for c in call.both_options(0, dim, 0, dim):
            if dim != over:
                yield Strategy(name=f"dim{dim}", inputs=(sharded(dim, c),), outputs=(sharded(dim, c),))
                continue
            rows = prod(out) // out[dim] * _STATISTIC_BYTES
            yield Strategy(
                name="vocabulary",
                inputs=(sharded(dim, c),),
                outputs=(sharded(dim, c),),
                collectives=(
                    InnerCollective(op="all_reduce", size_bytes=rows),
                    InnerCollective(op="all_reduce", size_bytes=rows),
                    InnerCollective(op="all_reduce", size_bytes=rows, backward=True),
                ),
            )


_STATISTIC_BYTES = 4


@SHARDING_RULES.register(
    "aten.sum", "aten.mean", "aten.amax", "aten.amin", "aten.max", "aten.min", "aten.var_mean", "aten.var",
    "aten.std", "aten.argmax", "aten.logsumexp", "aten.linalg_vector_norm", "aten.any", "aten.all",
    "aten.prod",
)  # fmt: skip
def reduction(call: Call) -> Iterator[Strategy]:
    """Dimensions that remain pass; a sharded one that is summed away leaves a partial result."""
    if len(call.inputs) != 1 or not call.outputs:
        return
    x, out = call.inputs[0], call.outputs[0]
    gone = _reduced(call, x, out)
    if gone is None:
        return
    kept = len(out) == len(x)
    name = call.op.target.removeprefix("aten.").split(".")[0]
    if name in ("sum", "mean"):
        yield Strategy(name="sum", inputs=(PARTIAL,), outputs=(PARTIAL,), parallel=False)
        yield Strategy(name="gradient_sum", inputs=(BROADCAST,), outputs=(BROADCAST,), parallel=False)
    for dim in range(len(x)):
        if dim in gone:
            if name in ("sum", "mean"):
                for c in call.options(i=0, dim=dim):
                    yield Strategy(name=f"partial{dim}", inputs=(sharded(dim, c),), outputs=(PARTIAL,))
            continue
        image = dim if kept else dim - sum(g < dim for g in gone)
        for c in call.both_options(0, dim, 0, image):
            yield Strategy(
                name=f"dim{dim}", inputs=(sharded(dim, c),), outputs=(sharded(image, c),) * len(call.outputs)
            )


def _reduced(call: Call, x: tuple[int, ...], out: tuple[int, ...]) -> frozenset[int] | None:
    """Dimensions that a reduction removes (or leaves with size 1), or None where it cannot be told."""
    if not out:
        return frozenset(range(len(x)))
    dims = call.argument("dim")
    if isinstance(dims, int):
        dims = (dims,)
    if dims:
        return frozenset(d % len(x) for d in dims)
    if len(out) == len(x):
        return frozenset(d for d in range(len(x)) if out[d] != x[d])
    gone: list[int] = []
    j = 0
    for d, size in enumerate(x):
        if j < len(out) and out[j] == size and len(x) - d >= len(out) - j:
            j += 1
        else:
            gone.append(d)
    return frozenset(gone) if j == len(out) else None


@SHARDING_RULES.register(
    "aten.max_pool2d_with_indices", "aten.max_pool2d", "aten.avg_pool2d", "aten._adaptive_avg_pool2d",
    "aten.adaptive_avg_pool2d", "aten.max_pool1d", "aten.avg_pool1d", "aten._adaptive_avg_pool3d",
    "aten.adaptive_max_pool2d", "aten.upsample_nearest2d", "aten.upsample_bilinear2d",
    "aten._upsample_bicubic2d_aa", "aten.upsample_bicubic2d", "aten.reflection_pad2d", "aten.pixel_shuffle",
)  # fmt: skip
def pooling(call: Call) -> Iterator[Strategy]:
    """Spatial windows: samples and channels are independent."""
    x, out = call.inputs[0], call.outputs[0]
    for dim in range(min(2, len(x) - 1)):
        if len(out) == len(x) and out[dim] == x[dim]:
            for c in call.both_options(0, dim, 0, dim):
                yield Strategy(
                    name=f"dim{dim}",
                    inputs=(sharded(dim, c),),
                    outputs=(sharded(dim, c),) * len(call.outputs),
                )
