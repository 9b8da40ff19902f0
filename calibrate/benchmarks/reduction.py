"""Bias gradients (sums over rows), means, maxima, pooling and the loss behind log-softmax.

rows = results, cols = inputs per result. A backward writes one result per input: cols = 1.
"""

from __future__ import annotations

from collections.abc import Callable

from calibrate.benchmarks.base import ITEM_BYTES, Bench, Call, Case, register_benchmark
from calibrate.benchmarks.memory_bound import Function, cases_of
from calibrate.benchmarks.points import log_points

__all__ = ["BIAS_GRADIENT", "LARGEST", "reduction_cases"]

_BIAS = {"rows": (16, 8192), "cols": (1, 16384)}
_CLASSES = {"rows": (8, 4096), "cols": (10, 65536)}
_IMAGES = {"batch": (1, 32), "channels": (16, 256), "side": (4, 112)}
_INDEX_BYTES = 8


@register_benchmark("reduction")
def reduction_cases(bench: Bench) -> list[Case]:
    """Each function over sizes of its own."""
    return [
        *cases_of(
            bench,
            "reduction",
            (BIAS_GRADIENT,),
            bench.points(12),
            _BIAS,
        ),
        *cases_of(
            bench,
            "reduction",
            (
                Function(variant="sum", tensors=1, make=_mean),
                LARGEST,
            ),
            bench.points(10),
        ),
        *cases_of(
            bench,
            "reduction",
            (Function(variant="loss", tensors=1, make=_loss),),
            bench.points(10),
            _CLASSES,
            dims=lambda rows, cols: (1, rows * cols),
        ),
        *cases_of(
            bench,
            "reduction",
            (Function(variant="loss", tensors=2, make=_loss_backward, saved=False),),
            bench.points(10),
            _CLASSES,
            dims=lambda rows, cols: (rows * cols, 1),
        ),
        *_pooling(bench),
    ]


def _bias_gradient(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    g = bench.rotate((cols, rows), dtype, cold=False)
    return lambda: g().sum(0, keepdim=True)


def _mean(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    x = bench.rotate((rows, cols), dtype, cold=False)
    return lambda: x().mean(-1)


def _largest(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    x = bench.rotate((rows, cols), dtype, cold=False)
    return lambda: x().amax(-1)


def _loss(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    import torch

    x, target = bench.rotate((rows, cols), dtype), bench.integers((rows,), cols)
    return lambda: torch.ops.aten.nll_loss_forward(x(), target, None, 1, -100)


def _loss_backward(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    import torch

    x, target = bench.rotate((rows, cols), dtype), bench.integers((rows,), cols)
    loss, weight = torch.ops.aten.nll_loss_forward(x(), target, None, 1, -100)
    one = torch.ones_like(loss)
    backward = torch.ops.aten.nll_loss_backward
    return lambda: backward(one, x(), target, None, 1, -100, weight)


def _pooling(bench: Bench) -> list[Case]:
    """Max-pooling 3 x 3, stride 2, both directions; the mean over all positions."""
    cases = []
    wanted = bench.points(24)
    for dtype in bench.dtypes:
        item, found = ITEM_BYTES[dtype], 0
        for size in log_points(20 * wanted, _IMAGES, picks={"which": 3}):
            shape = (size["batch"], size["channels"], 2 * -(-size["side"] // 2), 2 * -(-size["side"] // 2))
            inputs = shape[0] * shape[1] * shape[2] * shape[3]
            outputs = inputs // 4
            if item * inputs > bench.largest_tensor_bytes // 4 or not bench.fits(
                moved_bytes=20.0 * item * inputs
            ):
                continue
            pooled = outputs * (item + _INDEX_BYTES)
            rows, cols, moved = (
                (outputs, 4, item * inputs + pooled),
                (inputs, 1, 2 * item * inputs + pooled),
                (shape[0] * shape[1], shape[2] * shape[3], item * (inputs + shape[0] * shape[1])),
            )[size["which"]]
            cases.append(
                Case(
                    kind="reduction",
                    variant="sum" if size["which"] == 2 else "pool",
                    dtype=dtype,
                    dims={"rows": rows, "cols": cols, "bytes": moved},
                    prepare=_pool_preparation(size["which"], shape, dtype),
                    output_bytes=item * (inputs if size["which"] == 1 else outputs),
                    saved_output=size["which"] == 0,
                )
            )
            found += 1
            if found == wanted:
                break
    return cases


def _pool_preparation(which: int, shape: tuple[int, int, int, int], dtype: str) -> Callable[[Bench], Call]:
    def prepare(bench: Bench) -> Call:
        import torch

        aten = torch.ops.aten
        window = [3, 3], [2, 2], [1, 1]
        x = bench.rotate(shape, dtype, cold=which == 1)
        if which == 0:
            return lambda: aten.max_pool2d_with_indices(x(), *window)
        if which == 2:
            return lambda: x().mean((2, 3))
        out, index = aten.max_pool2d_with_indices(x(), *window)
        g = bench.take(tuple(out.shape), dtype)
        backward = aten.max_pool2d_with_indices_backward
        return lambda: backward(g, x(), *window, [1, 1], False, index)

    return prepare


BIAS_GRADIENT = Function(variant="sum", tensors=1, make=_bias_gradient, saved=False)
LARGEST = Function(variant="other", tensors=1, make=_largest)
