"""Softmax and log-softmax over the last dimension, and their derivatives from the saved result."""

from __future__ import annotations

from calibrate.benchmarks.base import Bench, Call, Case, register_benchmark
from calibrate.benchmarks.memory_bound import Function, cases_of

__all__ = ["CLASSES", "ROWS", "softmax_cases"]

_CLASSES = {"rows": (8, 4096), "cols": (10, 65536)}


@register_benchmark("softmax")
def softmax_cases(bench: Bench) -> list[Case]:
    """Softmax over attention rows, log-softmax over classes."""
    return [
        *cases_of(bench, "softmax", ROWS, bench.points(12)),
        *cases_of(bench, "softmax", CLASSES, bench.points(12), _CLASSES),
    ]


def _softmax(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    import torch

    x = bench.rotate((rows, cols), dtype, cold=False)
    return lambda: torch.softmax(x(), -1)


def _softmax_backward(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    import torch

    g, y = bench.rotate((rows, cols), dtype, cold=False), bench.rotate((rows, cols), dtype)
    backward = torch.ops.aten._softmax_backward_data
    return lambda: backward(g(), y(), -1, y.buffers[0].dtype)


def _log_softmax(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    import torch

    x = bench.rotate((rows, cols), dtype, cold=False)
    return lambda: torch.log_softmax(x(), -1)


def _log_softmax_backward(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    import torch

    g, y = bench.rotate((rows, cols), dtype, cold=False), bench.rotate((rows, cols), dtype)
    backward = torch.ops.aten._log_softmax_backward_data
    return lambda: backward(g(), y(), -1, y.buffers[0].dtype)


ROWS = (
    Function(variant="fwd", tensors=2, make=_softmax),
    Function(variant="bwd", tensors=3, make=_softmax_backward, saved=False),
)
CLASSES = (
    Function(variant="fwd", tensors=2, make=_log_softmax),
    Function(variant="bwd", tensors=3, make=_log_softmax_backward, saved=False),
)
