"""Element-wise operators (with broadcasting), dropout and casts."""

from __future__ import annotations

from collections.abc import Iterator

from costmodel.sharding.placements import BROADCAST, PARTIAL, Layout, sharded
from costmodel.sharding.strategies.call import SHARDING_RULES, Call, Strategy

__all__ = ["LINEAR", "POINTWISE", "pointwise"]

LINEAR = (
    "add", "add_", "sub", "sub_", "rsub", "neg", "clone", "_to_copy", "to", "alias", "detach", "contiguous",
    "copy", "copy_", "lift_fresh", "lift_fresh_copy", "_conj", "type_as", "view_as", "zeros_like_add",
)  # fmt: skip
"""Linear in every input: a sum of summands is the summand of the sum."""

SCALING = ("mul", "mul_", "div", "div_")
"""Linear in one input while the others are whole."""

POINTWISE = (
    "abs", "acos", "addcdiv", "addcmul", "asin", "atan", "atan2", "bernoulli", "bernoulli_", "bitwise_and",
    "bitwise_not", "bitwise_or", "ceil", "celu", "clamp", "clamp_", "clamp_max", "clamp_min", "clip", "cos",
    "cosh", "dropout", "dropout_", "elu", "elu_", "empty_like", "eq", "erf", "erfc", "exp", "exp_", "expm1",
    "feature_dropout", "fill", "fill_", "floor", "floor_divide", "fmod", "full_like", "ge", "gelu", "gt",
    "hardshrink", "hardsigmoid", "hardsigmoid_", "hardswish", "hardswish_", "hardtanh", "hardtanh_",
    "isfinite",
    "isinf", "isnan", "le", "leaky_relu", "leaky_relu_", "lerp", "log", "log10", "log1p", "log2",
    "log_sigmoid",
    "log_sigmoid_forward", "logical_and", "logical_not", "logical_or", "logit", "lt", "masked_fill",
    "masked_fill_", "maximum", "minimum", "mish", "nan_to_num", "native_dropout", "ne", "ones_like", "polar",
    "pow", "rand_like", "randn_like", "reciprocal", "relu", "relu6", "relu_", "remainder", "round", "rsqrt",
    "selu", "sigmoid", "sigmoid_", "sign", "silu", "silu_", "sin", "sinh", "softplus", "softshrink", "sqrt",
    "square", "tan", "tanh", "tanh_", "threshold", "threshold_", "trunc", "where", "xlogy", "zeros_like",
)  # fmt: skip


def _aligned(shape: tuple[int, ...], out: tuple[int, ...], dim: int, chunks: int) -> Layout:
    """Layout of an operand that broadcasts to `out`, which is sharded along `dim`."""
    own = dim - (len(out) - len(shape))
    if own < 0 or shape[own] != out[dim]:
        return BROADCAST
    return sharded(own, chunks)


@SHARDING_RULES.register(*(f"aten.{name}" for name in (*LINEAR, *SCALING, *POINTWISE)))
def pointwise(call: Call) -> Iterator[Strategy]:
    """Any dimension of the result; operands that broadcast along it stay whole (gradient partial)."""
    if not call.outputs:
        return
    out = call.outputs[0]
    if any(shape != out for shape in call.outputs):
        return
    for dim in range(len(out)):
        if out[dim] == 1:
            continue
        chunks = set(call.options(o=0, dim=dim))
        for i, shape in enumerate(call.inputs):
            own = dim - (len(out) - len(shape))
            if own >= 0 and shape[own] == out[dim]:
                chunks.update(call.options(i=i, dim=own))
        for c in sorted(chunks):
            yield Strategy(
                name=f"dim{dim}",
                inputs=tuple(_aligned(shape, out, dim, c) for shape in call.inputs),
                outputs=(sharded(dim, c),) * len(call.outputs),
            )
    name = call.op.target.removeprefix("aten.").split(".")[0]
    same = all(shape == out for shape in call.inputs)
    if call.inputs and ((name in LINEAR and same) or (name in SCALING and len(call.inputs) == 1)):
        k, m = len(call.inputs), len(call.outputs)
        yield Strategy(name="sum", inputs=(PARTIAL,) * k, outputs=(PARTIAL,) * m, parallel=False)
        yield Strategy(name="gradient_sum", inputs=(BROADCAST,) * k, outputs=(BROADCAST,) * m, parallel=False)
    if name in SCALING and len(call.inputs) == 2 and len(call.outputs) == 1 and call.inputs[0] == out:
        # a summand times a whole factor is a summand; the factor's gradient is a sum over the ranks
        yield Strategy(name="sum", inputs=(PARTIAL, BROADCAST), outputs=(PARTIAL,), parallel=False)
