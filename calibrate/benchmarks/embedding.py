"""Gather of rows out of a table, and the dense gradient of that table."""

from __future__ import annotations

from collections.abc import Callable

from calibrate.benchmarks.base import Bench, Call, Case, register_benchmark
from calibrate.benchmarks.memory_bound import ITEM_BYTES
from calibrate.benchmarks.points import log_points

__all__ = ["embedding_cases"]

_SIZES = {"rows": (8, 8192), "cols": (32, 4096), "table": (128, 65536)}
_INDEX_BYTES = 8


@register_benchmark("embedding")
def embedding_cases(bench: Bench) -> list[Case]:
    """Both directions at every size; the gradient writes the whole table, zeroed first."""
    cases = []
    for dtype in bench.dtypes:
        item, found = ITEM_BYTES[dtype], 0
        for size in log_points(400, _SIZES):
            rows, cols, table = size["rows"], size["cols"], size["table"]
            fits = bench.fits(moved_bytes=float(item * cols * (2 * rows + 2 * table)))
            if table * cols * item > bench.largest_tensor_bytes // 2 or not fits:
                continue
            gathered = rows * cols * item
            moved = {
                "fwd": 2 * gathered + _INDEX_BYTES * rows,
                "bwd": gathered + _INDEX_BYTES * rows + table * cols * item,
            }
            for variant, make in (("fwd", _forward), ("bwd", _backward)):
                cases.append(
                    Case(
                        kind="embedding",
                        variant=variant,
                        dtype=dtype,
                        dims={"rows": rows, "cols": cols, "bytes": moved[variant]},
                        prepare=make(rows, cols, table, dtype),
                        output_bytes=gathered if variant == "fwd" else table * cols * item,
                        saved_output=variant == "fwd",
                    )
                )
            found += 1
            if found == bench.points(12):
                break
    return cases


def _forward(rows: int, cols: int, table: int, dtype: str) -> Callable[[Bench], Call]:
    def prepare(bench: Bench) -> Call:
        import torch

        weight, index = bench.take((table, cols), dtype), bench.integers((rows,), table)
        return lambda: torch.ops.aten.embedding(weight, index)

    return prepare


def _backward(rows: int, cols: int, table: int, dtype: str) -> Callable[[Bench], Call]:
    def prepare(bench: Bench) -> Call:
        import torch

        g, index = bench.rotate((rows, cols), dtype, cold=False), bench.integers((rows,), table)
        return lambda: torch.ops.aten.embedding_dense_backward(g(), index, table, -1, False)

    return prepare
