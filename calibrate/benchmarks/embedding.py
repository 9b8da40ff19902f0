"""Gather of rows out of a table, and the dense gradient of that table."""

from __future__ import annotations

from collections.abc import Callable

from calibrate.benchmarks.base import ITEM_BYTES, Bench, Call, Case, register_benchmark
from calibrate.benchmarks.points import log_points

__all__ = ["INDEX_BYTES", "embedding_case", "embedding_cases"]

_SIZES = {"rows": (8, 8192), "cols": (32, 4096), "table": (128, 65536)}
INDEX_BYTES = 8


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
                "fwd": 2 * gathered + INDEX_BYTES * rows,
                "bwd": gathered + INDEX_BYTES * rows + table * cols * item,
            }
            cases += [
                embedding_case(variant, dtype, rows, cols, table, moved_bytes=moved[variant])
                for variant in ("fwd", "bwd")
            ]
            found += 1
            if found == bench.points(12):
                break
    return cases


def embedding_case(variant: str, dtype: str, rows: int, cols: int, table: int, *, moved_bytes: int) -> Case:
    """Gather (fwd) or the table's dense gradient (bwd) of `rows` rows out of a table of `table`."""
    make = {"fwd": _forward, "bwd": _backward}[variant]
    return Case(
        kind="embedding",
        variant=variant,
        dtype=dtype,
        dims={"rows": rows, "cols": cols, "bytes": moved_bytes},
        prepare=make(rows, cols, table, dtype),
        output_bytes=ITEM_BYTES[dtype] * cols * (rows if variant == "fwd" else table),
        saved_output=variant == "fwd",
    )


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
