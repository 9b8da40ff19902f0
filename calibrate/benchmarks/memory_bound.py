"""Operators limited by memory: element-wise, normalisation, softmax, reduction, embedding.

Rows and columns as in `costmodel.hardware.kinds`; `bytes` is the least traffic: every operand read once,
every result written once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from calibrate.benchmarks.base import Bench, Call, Case, Rotation, register_benchmark
from calibrate.benchmarks.points import log_points

__all__ = ["elementwise_cases", "embedding_cases", "norm_cases", "reduction_cases", "softmax_cases"]

_ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_SIZES = {"rows": (1, 16384), "cols": (16, 8192)}
_EPS = 1e-5

Maker = Callable[[Bench, str, int, int], Call]
"""(bench, dtype, rows, cols) -> the call that is timed."""


def _sizes(
    bench: Bench, wanted: int, tensors: int, ranges: Mapping[str, tuple[int, int]]
) -> list[dict[str, int]]:
    found = []
    for size in log_points(10 * wanted, ranges):
        one = 4.0 * size["rows"] * size["cols"]
        if one <= bench.largest_tensor_bytes // 4 and bench.fits(moved_bytes=4.0 * tensors * one):
            found.append(size)
        if len(found) == wanted:
            break
    return found


def _case(
    kind: str, variant: str, dtype: str, size: Mapping[str, int], make: Maker, *, moved: int, saved: bool
) -> Case:
    rows, cols = size["rows"], size["cols"]
    item = _ITEM_BYTES[dtype]
    return Case(
        kind=kind,
        variant=variant,
        dtype=dtype,
        dims={"rows": rows, "cols": cols, "bytes": moved * item},
        prepare=lambda bench: make(bench, dtype, rows, cols),
        output_bytes=rows * cols * item,
        saved_output=saved,
    )


def _spread(
    bench: Bench,
    kind: str,
    makers: Sequence[tuple[str, int, Maker, bool]],
    wanted: int,
    ranges: Mapping[str, tuple[int, int]] = _SIZES,
) -> list[Case]:
    """`wanted` sizes for each (variant, tensors moved, maker, saved); makers start at different sizes."""
    cases = []
    for dtype in bench.dtypes:
        for number, (variant, tensors, make, saved) in enumerate(makers):
            sizes = _sizes(bench, wanted * len(makers), tensors, ranges)[number :: len(makers)]
            for size in sizes:
                moved = tensors * size["rows"] * size["cols"]
                cases.append(_case(kind, variant, dtype, size, make, moved=moved, saved=saved))
    return cases


@register_benchmark("elementwise")
def elementwise_cases(bench: Bench) -> list[Case]:
    """Forward functions on a warm input, their derivatives on a cold saved one and a warm gradient."""
    import torch

    aten = torch.ops.aten

    def unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Maker:
        def make(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
            x = bench.rotate((rows, cols), dtype, cold=False)
            return lambda: function(x())

        return make

    def binary(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Maker:
        def make(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
            x = bench.rotate((rows, cols), dtype, cold=False)
            y = bench.rotate((rows, cols), dtype)
            return lambda: function(x(), y())

        return make

    return _spread(
        bench,
        "elementwise",
        (
            ("add", 3, binary(torch.add), True),
            ("mul", 3, binary(torch.mul), True),
            ("mul", 2, unary(lambda x: x * 0.5), True),
            ("add", 2, unary(lambda x: x + 1.0), True),
            ("div", 2, unary(lambda x: x / 3.0), True),
            ("pow", 2, unary(lambda x: torch.pow(x, 3.0)), True),
            ("relu", 2, unary(torch.relu), True),
            ("relu", 3, binary(lambda g, x: aten.threshold_backward(g, x, 0)), False),
            ("gelu", 2, unary(torch.nn.functional.gelu), True),
            ("gelu", 3, binary(aten.gelu_backward), False),
            ("tanh", 2, unary(torch.tanh), True),
            ("other", 3, binary(aten.tanh_backward), False),
            ("other", 2, unary(torch.nn.functional.silu), True),
            ("other", 3, binary(aten.silu_backward), False),
            ("copy", 2, unary(lambda x: x.t().contiguous()), True),
            ("copy", 2, unary(torch.clone), True),
        ),
        bench.points(5),
    )


@register_benchmark("norm")
def norm_cases(bench: Bench) -> list[Case]:
    """LayerNorm, RMSNorm, batch normalisation in training, group normalisation; forward and backward."""
    import torch

    aten = torch.ops.aten

    def layer(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        x, w = bench.rotate((rows, cols), dtype, cold=False), bench.take((cols,), dtype)
        return lambda: aten.native_layer_norm(x(), [cols], w, w, _EPS)

    def layer_backward(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        g, x = bench.rotate((rows, cols), dtype, cold=False), bench.rotate((rows, cols), dtype)
        w = bench.take((cols,), dtype)
        _, mean, rstd = aten.native_layer_norm(x(), [cols], w, w, _EPS)
        return lambda: aten.native_layer_norm_backward(g(), x(), [cols], mean, rstd, w, w, [True, True, True])

    def rms(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        x, w = bench.rotate((rows, cols), dtype, cold=False), bench.take((cols,), dtype)
        return lambda: torch.rms_norm(x(), [cols], w, _EPS)

    def image(bench: Bench, dtype: str, rows: int, cols: int) -> tuple[Rotation, Rotation, int]:
        channels, batch = rows, 8
        shape = (batch, channels, max(1, cols // batch), 1)
        return bench.rotate(shape, dtype, cold=False), bench.rotate(shape, dtype), channels

    def batch_norm(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        x, _, channels = image(bench, dtype, rows, cols)
        w, mean, variance = (torch.ones(channels, device=bench.device) for _ in range(3))
        return lambda: aten.native_batch_norm(x(), w, w, mean, variance, True, 0.1, _EPS)

    def batch_norm_backward(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        g, x, channels = image(bench, dtype, rows, cols)
        w = torch.ones(channels, device=bench.device)
        return lambda: aten.native_batch_norm_backward(
            g(), x(), w, w, w, w, w, True, _EPS, [True, True, True]
        )

    def group_norm(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        # rows = batch x 32 groups, cols = what one group spans
        batch, channels = max(1, rows // 32), 64
        x = bench.rotate((batch, channels, max(1, rows * cols // (batch * channels)), 1), dtype, cold=False)
        w = bench.take((channels,), dtype)
        return lambda: torch.group_norm(x(), 32, w, w, _EPS)

    makers = (
        ("layernorm", 2, layer, True),
        ("bwd", 3, layer_backward, False),
        ("rmsnorm", 2, rms, True),
    )
    channels = {"rows": (16, 1024), "cols": (128, 65536)}
    groups = {"rows": (32, 1024), "cols": (64, 65536)}
    return [
        *_spread(bench, "norm", makers, bench.points(8)),
        *_spread(
            bench,
            "norm",
            (("batchnorm", 2, batch_norm, True), ("bwd", 3, batch_norm_backward, False)),
            bench.points(8),
            channels,
        ),
        *_spread(bench, "norm", (("groupnorm", 2, group_norm, True),), bench.points(5), groups),
    ]


@register_benchmark("softmax")
def softmax_cases(bench: Bench) -> list[Case]:
    """Softmax over the last dimension, and its derivative from the saved result."""
    import torch

    aten = torch.ops.aten

    def forward(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        x = bench.rotate((rows, cols), dtype, cold=False)
        return lambda: torch.softmax(x(), -1)

    def backward(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        g, y = bench.rotate((rows, cols), dtype, cold=False), bench.rotate((rows, cols), dtype)
        return lambda: aten._softmax_backward_data(g(), y(), -1, y.buffers[0].dtype)

    return _spread(
        bench, "softmax", (("fwd", 2, forward, True), ("bwd", 3, backward, False)), bench.points(8)
    )


@register_benchmark("reduction")
def reduction_cases(bench: Bench) -> list[Case]:
    """Bias gradients (sums over rows), means, pooling and cross-entropy with its parts, both directions.

    rows = results, cols = inputs per result; a loss has one result per row of classes.
    """
    import torch

    aten = torch.ops.aten

    def bias_gradient(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        g = bench.rotate((cols, rows), dtype, cold=False)
        return lambda: g().sum(0, keepdim=True)

    def mean(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        x = bench.rotate((rows, cols), dtype, cold=False)
        return lambda: x().mean(-1)

    def log_softmax(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        x = bench.rotate((rows, cols), dtype, cold=False)
        return lambda: aten._log_softmax(x(), -1, False)

    def log_softmax_backward(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        g, y = bench.rotate((rows, cols), dtype, cold=False), bench.rotate((rows, cols), dtype)
        return lambda: aten._log_softmax_backward_data(g(), y(), -1, y.buffers[0].dtype)

    def pool(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        x = bench.rotate(_pool_shape(rows), dtype, cold=False)
        return lambda: torch.max_pool2d(x(), 3, 2, 1)

    def pool_backward(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        x = bench.rotate(_pool_shape(rows), dtype)
        out, index = aten.max_pool2d_with_indices(x(), [3, 3], [2, 2], [1, 1])
        g = bench.take(tuple(out.shape), dtype)
        return lambda: aten.max_pool2d_with_indices_backward(
            g, x(), [3, 3], [2, 2], [1, 1], [1, 1], False, index
        )

    cases = _spread(bench, "reduction", (("sum", 1, bias_gradient, False),), bench.points(7), _BIAS)
    cases += _spread(bench, "reduction", (("other", 1, mean, True),), bench.points(5))
    cases += _spread(
        bench,
        "reduction",
        (("loss", 2, log_softmax, True), ("loss", 3, log_softmax_backward, False)),
        bench.points(4),
        _CLASSES,
    )
    for dtype in bench.dtypes:
        for number, size in enumerate(log_points(bench.points(6), {"rows": (1024, 1 << 20)})):
            batch, channels, side, _ = _pool_shape(size["rows"])
            inputs, outputs = batch * channels * side * side, batch * channels * (side // 2) ** 2
            make, saved = (pool, True) if number % 2 == 0 else (pool_backward, False)
            # indices are int64; backward also writes a gradient of the input's size
            words = outputs * (3 if dtype == "fp32" else 5)
            cases.append(
                _case(
                    "reduction",
                    "pool",
                    dtype,
                    {"rows": outputs, "cols": 9},
                    _quadrupled(make),
                    moved=words + (inputs if saved else 2 * inputs),
                    saved=saved,
                )
            )
    return cases


_BIAS = {"rows": (16, 8192), "cols": (1, 16384)}
_CLASSES = {"rows": (1, 4096), "cols": (8, 65536)}


def _quadrupled(make: Maker) -> Maker:
    """Pooling by two in both directions: four inputs for each output."""
    return lambda bench, dtype, rows, cols: make(bench, dtype, 4 * rows, cols)


def _pool_shape(inputs: int) -> tuple[int, int, int, int]:
    """An image batch of about `inputs` elements: side 2..64, 64 channels at most."""
    side = max(2, min(64, 2 * round((inputs / 512) ** 0.5 / 2)))
    channels = max(1, min(64, inputs // (side * side)))
    return max(1, inputs // (channels * side * side)), channels, side, side


@register_benchmark("embedding")
def embedding_cases(bench: Bench) -> list[Case]:
    """Gather of rows out of a table and the dense gradient of that table."""
    import torch

    aten = torch.ops.aten
    ranges = {"rows": (8, 8192), "cols": (32, 4096), "table": (128, 65536)}
    cases = []
    for dtype in bench.dtypes:
        item = _ITEM_BYTES[dtype]
        found = 0
        for size in log_points(100, ranges):
            rows, cols, table = size["rows"], size["cols"], size["table"]
            if table * cols * item > bench.largest_tensor_bytes or not bench.fits(
                moved_bytes=float(item * cols * (2 * rows + table))
            ):
                continue
            if found == bench.points(8):
                break
            found += 1

            def forward(bench: Bench, dtype: str, rows: int, cols: int, table: int = table) -> Call:
                weight, index = bench.take((table, cols), dtype), bench.integers((rows,), table)
                return lambda: aten.embedding(weight, index)

            def backward(bench: Bench, dtype: str, rows: int, cols: int, table: int = table) -> Call:
                g, index = bench.rotate((rows, cols), dtype, cold=False), bench.integers((rows,), table)
                return lambda: aten.embedding_dense_backward(g(), index, table, -1, False)

            gathered = 2 * rows * cols
            cases.append(_case("embedding", "fwd", dtype, size, forward, moved=gathered, saved=True))
            cases.append(
                _case("embedding", "bwd", dtype, size, backward, moved=gathered + table * cols, saved=False)
            )
    return cases
