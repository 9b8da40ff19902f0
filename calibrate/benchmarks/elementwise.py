"""Element-wise functions: forward on a warm input, derivatives on a cold saved one and a warm gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from calibrate.benchmarks.base import Bench, Call, Case, register_benchmark
from calibrate.benchmarks.memory_bound import ANY_SIZES, Function, Maker, cases_of

if TYPE_CHECKING:
    import torch

__all__ = ["elementwise_cases", "elementwise_functions"]

_HEAD = 64


def elementwise_functions() -> tuple[Function, ...]:
    """One function or two for each variant, with one operand and with two."""
    import torch

    aten = torch.ops.aten
    return (
        Function(variant="add", tensors=3, make=_binary(torch.add)),
        Function(variant="add", tensors=2, make=_unary(lambda x: x + 1.0)),
        Function(variant="mul", tensors=3, make=_binary(torch.mul)),
        Function(variant="mul", tensors=2, make=_unary(lambda x: x * 0.5)),
        Function(variant="div", tensors=2, make=_unary(lambda x: x / 3.0)),
        Function(variant="pow", tensors=2, make=_unary(lambda x: torch.pow(x, 3.0))),
        Function(variant="relu", tensors=2, make=_unary(torch.relu)),
        Function(
            variant="relu",
            tensors=3,
            make=_binary(lambda g, x: aten.threshold_backward(g, x, 0)),
            saved=False,
        ),
        Function(variant="gelu", tensors=2, make=_unary(torch.nn.functional.gelu)),
        Function(variant="gelu", tensors=3, make=_binary(aten.gelu_backward), saved=False),
        Function(variant="tanh", tensors=2, make=_unary(torch.tanh)),
        Function(variant="tanh", tensors=3, make=_binary(aten.tanh_backward), saved=False),
        Function(variant="silu_and_mul", tensors=2, make=_unary(torch.nn.functional.silu)),
        Function(variant="silu_and_mul", tensors=3, make=_binary(aten.silu_backward), saved=False),
        Function(variant="copy", tensors=2, make=_unary(torch.clone)),
        Function(variant="copy", tensors=2, make=_heads_together),
        Function(variant="other", tensors=3, extra_bytes=1, make=_masked),
        Function(
            variant="other",
            tensors=2,
            extra_bytes=1,
            make=_unary(lambda x: aten.native_dropout(x, 0.1, True)),
        ),
    )


@register_benchmark("elementwise")
def elementwise_cases(bench: Bench) -> list[Case]:
    """Sizes of tokens, images and kernels for every function."""
    return cases_of(bench, "elementwise", elementwise_functions(), bench.points(13), ANY_SIZES)


def _unary(function: Callable[[torch.Tensor], object]) -> Maker:
    def make(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        x = bench.rotate((rows, cols), dtype, cold=False)
        return lambda: function(x())

    return make


def _binary(function: Callable[[torch.Tensor, torch.Tensor], object]) -> Maker:
    def make(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
        x, y = bench.rotate((rows, cols), dtype, cold=False), bench.rotate((rows, cols), dtype)
        return lambda: function(x(), y())

    return make


def _heads_together(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    """[heads, rows, width] to contiguous [rows, heads, width], as after attention."""
    heads = cols // _HEAD
    if heads < 2:
        return _unary(lambda x: x.clone())(bench, dtype, rows, cols)
    x = bench.rotate((heads, rows, cols // heads), dtype, cold=False)
    return lambda: x().transpose(0, 1).contiguous()


def _masked(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    """where(mask, x, y)."""
    import torch

    x, y = bench.rotate((rows, cols), dtype, cold=False), bench.rotate((rows, cols), dtype)
    mask = y.buffers[0] > 0
    return lambda: torch.where(mask, x(), y())
