"""What the benchmarks of operators limited by memory share: sizes by rows and columns, and their cases.

`bytes` is the least traffic: every operand read once, every result written once, as the graph counts it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from calibrate.benchmarks.base import ITEM_BYTES, Bench, Call, Case
from calibrate.benchmarks.points import log_points

__all__ = ["ANY_SIZES", "Function", "Maker", "case_of", "cases_of"]

_SIZES = {"rows": (1, 16384), "cols": (16, 8192)}
"""Tokens by features."""
ANY_SIZES = {"rows": (1, 1 << 18), "cols": (2, 8192)}
"""Also images and kernels, whose last dimension is short."""
_APART = 1009
"""Functions of one benchmark begin this far apart in the sequence of sizes."""

Maker = Callable[[Bench, str, int, int], Call]
"""(bench, dtype, rows, cols) -> the call that is timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One operator. `tensors`: how many of rows x cols elements it reads and writes; `extra_bytes` per
    element beside them (masks); `saved`: its result is kept for backward."""

    variant: str
    make: Maker
    tensors: int
    saved: bool = True
    extra_bytes: int = 0


def cases_of(
    bench: Bench,
    kind: str,
    functions: Sequence[Function],
    wanted: int,
    ranges: Mapping[str, tuple[int, int]] = _SIZES,
    *,
    dims: Callable[[int, int], tuple[int, int]] = lambda rows, cols: (rows, cols),
) -> list[Case]:
    """`wanted` sizes for each function and dtype. `dims`: the rows and columns a sample is filed under."""
    cases = []
    for dtype in bench.dtypes:
        item = ITEM_BYTES[dtype]
        for number, function in enumerate(functions):
            found = 0
            for size in log_points(40 * wanted, ranges, start=number * _APART):
                rows, cols = size["rows"], size["cols"]
                one = item * rows * cols
                moved = function.tensors * one + function.extra_bytes * rows * cols
                if one > bench.largest_tensor_bytes // 4 or not bench.fits(moved_bytes=4.0 * moved):
                    continue
                cases.append(case_of(kind, function, dtype, rows, cols, filed=dims(rows, cols)))
                found += 1
                if found == wanted:
                    break
    return cases


def case_of(
    kind: str,
    function: Function,
    dtype: str,
    rows: int,
    cols: int,
    *,
    filed: tuple[int, int] | None = None,
    moved: int | None = None,
) -> Case:
    """One function at one size. `filed`: the rows and columns, `moved`: the bytes its sample is filed under,
    where they are not those of the call."""
    one = ITEM_BYTES[dtype] * rows * cols
    least = function.tensors * one + function.extra_bytes * rows * cols
    names = filed or (rows, cols)
    return Case(
        kind=kind,
        variant=function.variant,
        dtype=dtype,
        dims={"rows": names[0], "cols": names[1], "bytes": least if moved is None else moved},
        prepare=_preparation(function.make, dtype, rows, cols),
        output_bytes=one,
        saved_output=function.saved,
    )


def _preparation(make: Maker, dtype: str, rows: int, cols: int) -> Callable[[Bench], Call]:
    return lambda bench: make(bench, dtype, rows, cols)
