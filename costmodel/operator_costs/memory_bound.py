"""Operators whose time is memory traffic: element-wise, normalisation, softmax, reductions, gathers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

from costmodel.operator_costs.registry import Call, Piece, TensorMeta, register_cost

__all__ = [
    "batch_norm",
    "elementwise",
    "gather",
    "group_norm",
    "layer_norm",
    "rows_written",
    "sampled",
    "scatter",
]


def _rows_cols(t: TensorMeta) -> tuple[int, int]:
    cols = t.shape[-1] if t.shape else 1
    return (t.numel // cols if cols else 0), cols


def _piece(call: Call, kind: str, variant: str, rows: int, cols: int) -> Piece:
    return Piece(
        kind=kind,
        variant=variant,
        dims={"rows": rows, "cols": cols, "bytes": call.read_bytes + call.written_bytes},
        flop=call.flop,
        read_bytes=call.read_bytes,
        written_bytes=call.written_bytes,
    )


def elementwise(variant: str) -> Callable[[Call], list[Piece]]:
    """Rule of an element-wise operator: its size is that of its largest result."""

    def rule(call: Call) -> list[Piece]:
        out = max(call.outputs or call.tensors, key=lambda t: t.numel)
        return [_piece(call, "elementwise", variant, *_rows_cols(out))]

    return rule


_ELEMENTWISE = {
    "add": ("add", "add_", "sub", "sub_", "rsub"),
    "mul": ("mul", "mul_", "tanh_backward", "sigmoid_backward"),
    "div": ("div", "div_", "floor_divide"),
    "pow": ("pow", "pow_", "sqrt", "rsqrt", "exp", "log", "reciprocal"),
    "relu": (
        "relu",
        "relu_",
        "threshold_backward",
        "clamp",
        "clamp_min",
        "maximum",
        "minimum",
        "leaky_relu",
        "leaky_relu_",
        "leaky_relu_backward",
    ),
    "gelu": ("gelu", "gelu_backward"),
    "tanh": ("tanh", "tanh_", "sigmoid", "erf", "cos", "sin"),
    "silu_and_mul": ("silu", "silu_", "silu_backward", "glu", "glu_backward", "mish", "mish_backward"),
    "copy": (
        "clone",
        "copy_",
        "copy",
        "_to_copy",
        "cat",
        "stack",
        "fill",
        "fill_",
        "zero_",
        "constant_pad_nd",
        "repeat",
        "roll",
        "flip",
        "new_zeros",
        "new_full",
        "zeros_like",
        "ones_like",
        "full_like",
        "zeros",
        "ones",
        "full",
        "arange",
        "tril",
        "triu",
        "slice_backward",
        "select_backward",
        "slice_scatter",
        "select_scatter",
        *(
            f"upsample_{how}{back}"
            for how in (
                *("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d"),
                "trilinear3d",
            )
            for back in ("", "_backward")
        ),
        *(f"_upsample_nearest_exact{d}d{back}" for d in (1, 2, 3) for back in ("", "_backward")),
        *(
            f"{how}_pad{d}d{back}"
            for how in ("reflection", "replication")
            for d in (1, 2, 3)
            for back in ("", "_backward")
        ),
        "im2col",
        "col2im",
        "unfold_backward",
        "max_unpool2d",
        "max_unpool3d",
        "eye",
        "linspace",
        "scalar_tensor",
        "complex",
    ),
    "other": (
        "where",
        "masked_fill",
        "masked_fill_",
        "masked_fill_backward",
        "native_dropout",
        "native_dropout_backward",
        "bernoulli",
        "bernoulli_",
        "addcmul",
        "addcdiv",
        "lerp",
        "softplus_backward",
        "elu_backward",
        "hardtanh_backward",
        "hardswish_backward",
        "hardsigmoid_backward",
        "log_sigmoid_forward",
        "log_sigmoid_backward",
        "logit_backward",
        "prelu",
        "_prelu_kernel",
        "_prelu_kernel_backward",
        "rand_like",
        "randn_like",
        "randn",
        "rand",
        "randint",
        "normal_",
        "uniform_",
        "random_",
        "exponential_",
        "_thnn_fused_lstm_cell",
        "_thnn_fused_lstm_cell_backward_impl",
        "_thnn_fused_gru_cell",
        "_thnn_fused_gru_cell_backward",
    ),
}
for _variant, _names in _ELEMENTWISE.items():
    register_cost(*(f"aten.{name}" for name in _names))(elementwise(_variant))


def layer_norm(variant: str, weight_at: int = 0) -> Callable[[Call], list[Piece]]:
    """Rule of a normalisation over the last dimensions; `variant` bwd for its gradient."""

    def rule(call: Call) -> list[Piece]:
        x = call.tensors[weight_at]
        shapes = [
            a for a in call.args if isinstance(a, (list, tuple)) and a and all(isinstance(v, int) for v in a)
        ]
        cols = prod(shapes[0]) if shapes else (x.shape[-1] if x.shape else 1)
        return [_piece(call, "norm", variant, x.numel // max(1, cols), cols)]

    return rule


register_cost("aten.native_layer_norm")(layer_norm("layernorm"))
register_cost("aten._fused_rms_norm", "aten.rms_norm")(layer_norm("rmsnorm"))
register_cost("aten.native_layer_norm_backward", "aten._fused_rms_norm_backward")(layer_norm("bwd"))


@register_cost("aten.native_group_norm", "aten.native_group_norm_backward")
def group_norm(call: Call) -> list[Piece]:
    """Normalisation over each group of channels of a sample."""
    x = call.tensors[0]
    groups = int(call.args[-2])
    rows = max(1, x.shape[0] * groups)
    variant = "bwd" if call.target.endswith("backward") else "groupnorm"
    piece = _piece(call, "norm", variant, rows, x.numel // rows)
    return [replace(piece, arguments={"channels_last": int(x.has_channels_last)})]


@register_cost(
    "aten.native_batch_norm",
    "aten._native_batch_norm_legit",
    "aten._native_batch_norm_legit_functional",
    "aten._native_batch_norm_legit_no_training",
    "aten._batch_norm_with_update",
    "aten._batch_norm_no_update",
    "aten.cudnn_batch_norm",
    "aten.native_batch_norm_backward",
    "aten.batch_norm_backward",
    "aten.cudnn_batch_norm_backward",
)
def batch_norm(call: Call) -> list[Piece]:
    """Normalisation of each channel over batch and positions; by kept statistics, and with the channels last,
    it is element-wise."""
    x = call.tensors[0]
    channels = x.shape[1] if len(x.shape) > 1 else 1
    kept = not call.target.endswith("backward") and all(t.numel in (0, x.numel) for t in call.outputs)
    if kept and x.has_channels_last:
        return [_piece(call, "elementwise", "mul", *_rows_cols(x))]
    variant = "bwd" if call.target.endswith("backward") else "batchnorm"
    piece = _piece(call, "norm", variant, channels, x.numel // max(1, channels))
    return [replace(piece, arguments={"once": int(kept)})]


def _softmax(variant: str) -> Callable[[Call], list[Piece]]:
    def rule(call: Call) -> list[Piece]:
        out = call.outputs[0]
        dim = next((a for a in reversed(call.args) if isinstance(a, int) and not isinstance(a, bool)), -1)
        cols = out.shape[dim] if out.shape and -len(out.shape) <= dim < len(out.shape) else 1
        return [_piece(call, "softmax", variant, out.numel // max(1, cols), cols)]

    return rule


register_cost("aten._softmax", "aten._safe_softmax", "aten._log_softmax")(_softmax("fwd"))
register_cost("aten._softmax_backward_data", "aten._log_softmax_backward_data")(_softmax("bwd"))


def _reduction(variant: str) -> Callable[[Call], list[Piece]]:
    def rule(call: Call) -> list[Piece]:
        whole = max((*call.tensors, *call.outputs), key=lambda t: t.numel)
        small = min((*call.outputs, whole), key=lambda t: t.numel)
        rows = max(1, small.numel)
        return [_piece(call, "reduction", variant, rows, max(1, whole.numel // rows))]

    return rule


_REDUCTIONS = {
    "sum": (
        *("sum", "mean", "cumsum", "cumprod", "prod", "linalg_vector_norm", "norm", "_euclidean_dist"),
        *("_cdist_forward", "_cdist_backward", "_weight_norm_interface", "_weight_norm_interface_backward"),
    ),
    "pool": (
        "max_pool2d_with_indices",
        "max_pool2d_with_indices_backward",
        "avg_pool2d",
        "avg_pool2d_backward",
        "avg_pool1d",
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool2d_backward",
        "mean_backward",
        "max_pool3d_with_indices",
        "max_pool3d_with_indices_backward",
    ),
    "loss": (
        "nll_loss_forward",
        "nll_loss_backward",
        "nll_loss2d_forward",
        "nll_loss2d_backward",
        "mse_loss",
        "mse_loss_backward",
        "smooth_l1_loss",
        "smooth_l1_loss_backward",
        "binary_cross_entropy",
        "binary_cross_entropy_backward",
        "binary_cross_entropy_with_logits",
        "_ctc_loss",
        "_ctc_loss_backward",
    ),
    "other": (
        "max",
        "min",
        "amax",
        "amin",
        "argmax",
        "argmin",
        "any",
        "all",
        "var",
        "std",
        "var_mean",
        "logsumexp",
        "topk",
        "sort",
        "argsort",
        "cummax",
        "bincount",
        "histc",
        "unique_consecutive",
        "_unique2",
        "nonzero",
        "value_selecting_reduction_backward",
        "_fft_r2c",
        "_fft_c2r",
        "_fft_c2c",
        "bucketize",
        "searchsorted",
        "std_mean",
    ),
}
for _variant, _names in _REDUCTIONS.items():
    register_cost(*(f"aten.{name}" for name in _names))(_reduction(_variant))


@register_cost(
    "aten.embedding",
    "aten.index_select",
    "aten.gather",
    "aten.index",
    "aten.take_along_dim",
    "aten._embedding_bag",
    "aten._embedding_bag_forward_only",
)
def gather(call: Call) -> list[Piece]:
    """Rows of a table: the rows read, not the table, are the traffic."""
    out = call.outputs[0]
    rows, cols = _rows_cols(out)
    moved = 2 * out.traffic_bytes + sum(t.traffic_bytes for t in call.tensors if not t.is_floating)
    return [
        Piece(
            kind="embedding",
            variant="fwd",
            dims={"rows": rows, "cols": cols, "bytes": moved},
            read_bytes=moved - out.traffic_bytes,
            written_bytes=out.traffic_bytes,
        )
    ]


@register_cost(
    "aten.embedding_dense_backward",
    "aten._embedding_bag_dense_backward",
    "aten._embedding_bag_backward",
    "aten.index_put",
    "aten.index_put_",
    "aten._index_put_impl_",
    "aten._unsafe_index_put",
    "aten.index_add",
    "aten.index_add_",
    "aten.scatter",
    "aten.scatter_",
    "aten.scatter_add",
    "aten.scatter_add_",
    "aten.scatter_reduce",
    "aten.index_copy",
    "aten.index_reduce",
    "aten.index_reduce_",
    "aten.masked_scatter",
    "aten.masked_scatter_",
    "aten.grid_sampler_2d_backward",
    "aten.grid_sampler_3d_backward",
    "aten.index_fill",
    "aten.index_fill_",
    "aten.embedding_backward",
)
def scatter(call: Call) -> list[Piece]:
    """Adds rows into a table that is written whole (zeroed first): gradient + table of traffic."""
    table = call.outputs[0]
    updates = max((t for t in call.tensors if t.is_floating), key=lambda t: t.numel, default=table)
    rows, cols = _rows_cols(updates)
    return [_piece(call, "embedding", "bwd", rows, cols)]


@register_cost("aten.index_copy_")
def rows_written(call: Call) -> list[Piece]:
    """Rows copied into a table that stays where it is (a cache of keys): the rows are the traffic."""
    source = call.tensors[-1]
    read = sum(t.traffic_bytes for t in call.tensors[1:])
    rows, cols = _rows_cols(source)
    return [
        Piece(
            kind="embedding",
            variant="bwd",
            dims={"rows": rows, "cols": cols, "bytes": read + source.traffic_bytes},
            read_bytes=read,
            written_bytes=source.traffic_bytes,
        )
    ]


@register_cost("aten.grid_sampler_2d", "aten.grid_sampler_3d")
def sampled(call: Call) -> list[Piece]:
    """Values of a picture at given places: its pixels, the places and the values are the traffic."""
    return [_piece(call, "embedding", "fwd", *_rows_cols(call.outputs[0]))]
