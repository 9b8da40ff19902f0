"""Matrix products, convolutions and attention: row, column, inner, batch, head and sequence strategies."""

from __future__ import annotations

from collections.abc import Iterator

from costmodel.sharding.placements import BROADCAST, PARTIAL, REPLICATED, Layout, sharded
from costmodel.sharding.strategies.call import SHARDING_RULES, Call, Strategy

__all__ = ["attention", "batched_product", "convolution", "grouped_product", "linear", "product"]


def _operand(shape: tuple[int, ...], dims: tuple[int, int], which: int, chunks: int) -> Layout:
    """Layout of an added operand (bias) that broadcasts to a 2-D result split along `dims[which]`."""
    back = dims[which] + len(shape) - 2 if len(shape) < 2 else dims[which]
    if back < 0 or shape[back] == 1:
        return BROADCAST
    return sharded(back, chunks)


@SHARDING_RULES.register("aten.mm", "aten.addmm", "aten._addmm_activation")
def product(call: Call) -> Iterator[Strategy]:
    """C[m,n] = A[m,k] B[k,n] (+ bias): m, n sharded alike; k sharded leaves C partial."""
    first = len(call.inputs) - 2
    a, b = call.inputs[first], call.inputs[first + 1]
    if not len(a) == len(b) == len(call.outputs[0]) == 2:
        return
    bias = call.inputs[:first]
    for c in call.both_options(first, 0, 0, 0):
        extra = tuple(_operand(s, (0, 1), 0, c) for s in bias)
        yield Strategy(
            name="m", inputs=(*extra, sharded(0, c), BROADCAST), outputs=(sharded(0, c),), splits=("m",)
        )
    for c in call.both_options(first + 1, 1, 0, 1):
        extra = tuple(_operand(s, (0, 1), 1, c) for s in bias)
        yield Strategy(
            name="n", inputs=(*extra, BROADCAST, sharded(1, c)), outputs=(sharded(1, c),), splits=("n",)
        )
    for c in sorted({*call.options(i=first, dim=1), *call.options(i=first + 1, dim=0)}):
        extra = (REPLICATED,) * len(bias)
        yield Strategy(
            name="k", inputs=(*extra, sharded(1, c), sharded(0, c)), outputs=(PARTIAL,), splits=("k",)
        )


@SHARDING_RULES.register("aten.linear")
def linear(call: Call) -> Iterator[Strategy]:
    """y[..., n] = x[..., k] W[n, k]^T + b[n]."""
    x, out = call.inputs[0], call.outputs[0]
    n_bias = len(call.inputs) - 2
    last = len(x) - 1
    for dim in range(last):
        for c in call.both_options(0, dim, 0, dim):
            yield Strategy(
                name="m",
                inputs=(sharded(dim, c), BROADCAST, *(BROADCAST,) * n_bias),
                outputs=(sharded(dim, c),),
                splits=("m",),
            )
    for c in call.both_options(1, 0, 0, len(out) - 1):
        yield Strategy(
            name="n",
            inputs=(BROADCAST, sharded(0, c), *(sharded(0, c),) * n_bias),
            outputs=(sharded(len(out) - 1, c),),
            splits=("n",),
        )
    for c in sorted({*call.options(i=0, dim=last), *call.options(i=1, dim=1)}):
        yield Strategy(
            name="k",
            inputs=(sharded(last, c), sharded(1, c), *(REPLICATED,) * n_bias),
            outputs=(PARTIAL,),
            splits=("k",),
        )


@SHARDING_RULES.register("aten.bmm", "aten.baddbmm")
def batched_product(call: Call) -> Iterator[Strategy]:
    """C[b,m,n] = A[b,m,k] B[b,k,n] (+ an addend of C's shape or broadcast to it)."""
    first = len(call.inputs) - 2
    extra = call.inputs[:first]

    def added(dim: int, c: int) -> tuple[Layout, ...]:
        return tuple(
            sharded(dim, c) if len(s) == 3 and s[dim] == call.outputs[0][dim] else BROADCAST for s in extra
        )

    for c in sorted({*call.both_options(first, 0, 0, 0), *call.options(i=first + 1, dim=0)}):
        yield Strategy(
            name="batch",
            inputs=(*added(0, c), sharded(0, c), sharded(0, c)),
            outputs=(sharded(0, c),),
            splits=("batch",),
        )
    for c in call.both_options(first, 1, 0, 1):
        yield Strategy(
            name="m", inputs=(*added(1, c), sharded(1, c), BROADCAST), outputs=(sharded(1, c),), splits=("m",)
        )
    for c in call.both_options(first + 1, 2, 0, 2):
        yield Strategy(
            name="n", inputs=(*added(2, c), BROADCAST, sharded(2, c)), outputs=(sharded(2, c),), splits=("n",)
        )
    if not extra:
        for c in sorted({*call.options(i=first, dim=2), *call.options(i=first + 1, dim=1)}):
            yield Strategy(name="k", inputs=(sharded(2, c), sharded(1, c)), outputs=(PARTIAL,), splits=("k",))


@SHARDING_RULES.register("aten._grouped_mm")
def grouped_product(call: Call) -> Iterator[Strategy]:
    """One product per expert: x[T, k], W[E, k, n]: columns or inner dimension of every expert."""
    if len(call.inputs) < 2 or len(call.inputs[0]) != 2 or len(call.inputs[1]) != 3:
        return
    rest = (REPLICATED,) * (len(call.inputs) - 2)
    for c in call.both_options(1, 2, 0, len(call.outputs[0]) - 1):
        yield Strategy(
            name="n", inputs=(BROADCAST, sharded(2, c), *rest), outputs=(sharded(1, c),), splits=("n",)
        )
    for c in sorted({*call.options(i=0, dim=1), *call.options(i=1, dim=1)}):
        yield Strategy(
            name="k", inputs=(sharded(1, c), sharded(1, c), *rest), outputs=(PARTIAL,), splits=("k",)
        )


@SHARDING_RULES.register(
    "aten.convolution",
    "aten.conv1d",
    "aten.conv2d",
    "aten.conv3d",
    "aten._convolution",
    "aten.mkldnn_convolution",
)
def convolution(call: Call) -> Iterator[Strategy]:
    """Batch, output-channel, input-channel (partial result) and, for grouped ones, group strategies."""
    groups = call.op.dims.get("groups", 1)
    transposed = bool(call.op.dims.get("transposed", 0))
    n_bias = len(call.inputs) - 2
    w_out, w_in = (1, 0) if transposed else (0, 1)
    for c in call.both_options(0, 0, 0, 0):
        yield Strategy(
            name="batch",
            inputs=(sharded(0, c), BROADCAST, *(BROADCAST,) * n_bias),
            outputs=(sharded(0, c),),
            splits=("batch",),
        )
    if groups == 1:
        for c in call.both_options(1, w_out, 0, 1):
            yield Strategy(
                name="c_out",
                inputs=(BROADCAST, sharded(w_out, c), *(sharded(0, c),) * n_bias),
                outputs=(sharded(1, c),),
                splits=("c_out",),
            )
        for c in sorted({*call.options(i=0, dim=1), *call.options(i=1, dim=w_in)}):
            yield Strategy(
                name="c_in",
                inputs=(sharded(1, c), sharded(w_in, c), *(REPLICATED,) * n_bias),
                outputs=(PARTIAL,),
                splits=("c_in",),
            )
    elif groups % call.n == 0:
        yield Strategy(
            name="groups",
            inputs=(sharded(1), sharded(0), *(sharded(0),) * n_bias),
            outputs=(sharded(1),),
            splits=("c_in", "c_out", "groups"),
        )


@SHARDING_RULES.register(
    "aten.scaled_dot_product_attention",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_fused_attention_overrideable",
    "aten._scaled_dot_product_attention_math",
)
def attention(call: Call) -> Iterator[Strategy]:
    """q[b,h,s,d], k[b,g,t,d], v[b,g,t,e] (, mask): heads, batch, or query rows with whole keys and values."""
    if len(call.inputs) < 3 or any(len(s) != 4 for s in call.inputs[:3]):
        return
    q, k = call.inputs[:2]

    def masks(dim: int) -> tuple[Layout, ...]:
        return tuple(
            sharded(dim) if len(s) == 4 and s[dim] == q[dim] and s[dim] > 1 else REPLICATED
            for s in call.inputs[3:]
        )

    def results(dim: int, c: int) -> tuple[Layout, ...]:
        return tuple(
            sharded(dim, c) if len(s) > dim and s[dim] == q[dim] and s[0] == q[0] else REPLICATED
            for s in call.outputs
        )

    for c in call.both_options(0, 0, 0, 0):
        yield Strategy(
            name="batch",
            inputs=(*(sharded(0, c),) * 3, *masks(0)),
            outputs=results(0, c),
            splits=("batch",),
        )
    for c in call.both_options(0, 1, 0, 1):
        for c_kv in call.options(i=1, dim=1):
            yield Strategy(
                name="heads",
                inputs=(sharded(1, c), sharded(1, c_kv), sharded(1, c_kv), *masks(1)),
                outputs=results(1, c),
                splits=("heads", "kv_heads"),
            )
        if k[1] < q[1] and call.n % k[1] == 0 and k[1] < call.n:
            yield Strategy(
                name="query_heads",
                inputs=(sharded(1, c), BROADCAST, BROADCAST, *masks(1)),
                outputs=results(1, c),
                splits=("heads",),
            )
    for c in call.both_options(0, 2, 0, 2):
        yield Strategy(
            name="query_rows",
            inputs=(sharded(2, c), BROADCAST, BROADCAST, *masks(2)),
            outputs=results(2, c),
            splits=("q_len",),
        )
