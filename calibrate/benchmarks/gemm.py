"""GEMM in the layouts of a linear layer's forward (nt) and both gradients (nn, tn), and batched GEMM."""

from __future__ import annotations

from collections.abc import Mapping

from calibrate.benchmarks.base import ITEM_BYTES, Bench, Call, Case, register_benchmark
from calibrate.benchmarks.points import log_points

__all__ = ["bmm_case", "bmm_cases", "gemm_case", "gemm_cases"]

_WHOLE = {"m": (1, 8192), "n": (16, 8192), "k": (16, 8192)}
_LAYERS = {"m": (64, 4096), "n": (64, 8192), "k": (64, 4096)}
_BATCHED = {"batch": (2, 256), "m": (16, 1024), "n": (16, 1024), "k": (16, 512)}
_APART = 1009
"""Layouts begin this far apart in the sequence of sizes."""


@register_benchmark("gemm")
def gemm_cases(bench: Bench) -> list[Case]:
    """C[m,n] = A[m,k] B[k,n]: half the sizes out of the whole range, half out of the one layers have.

    nt and nn meet cold weights and warm activations, tn a cold saved activation and a warm gradient.
    """
    wanted = bench.points(27)
    few = [
        gemm_case("nt", dtype, m=size["m"], n=size["n"], k=size["k"])
        for dtype in bench.minor_dtypes
        for size in _sizes(bench, dtype, bench.points(12), _LAYERS, start=0)
    ]
    return few + [
        gemm_case(layout, dtype, m=size["m"], n=size["n"], k=size["k"])
        for dtype in bench.dtypes
        for number, layout in enumerate(("nt", "nn", "tn"))
        for ranges in (_LAYERS, _WHOLE)
        for size in _sizes(bench, dtype, wanted, ranges, start=number * _APART)
    ]


@register_benchmark("bmm")
def bmm_cases(bench: Bench) -> list[Case]:
    """C[b,m,n] = A[b,m,k] B[b,k,n]: the products of attention written out, forward and backward."""
    return [
        bmm_case(layout, dtype, batch=size["batch"], m=size["m"], n=size["n"], k=size["k"])
        for dtype in bench.dtypes
        for number, layout in enumerate(("nn", "nt", "tn"))
        for size in _sizes(bench, dtype, bench.points(20), _BATCHED, start=number * _APART)
    ]


def _sizes(
    bench: Bench, dtype: str, wanted: int, ranges: Mapping[str, tuple[int, int]], *, start: int
) -> list[dict[str, int]]:
    item = ITEM_BYTES[dtype]
    found: list[dict[str, int]] = []
    for size in log_points(40 * wanted, ranges, start=start):
        batch, m, n, k = size.get("batch", 1), size["m"], size["n"], size["k"]
        operands = (batch * m * k * item, batch * n * k * item, batch * m * n * item)
        if max(operands) > bench.largest_tensor_bytes:
            continue
        if bench.fits(flop=2.0 * batch * m * n * k, moved_bytes=float(sum(operands))):
            found.append(size)
        if len(found) == wanted:
            break
    return found


def gemm_case(layout: str, dtype: str, *, m: int, n: int, k: int) -> Case:
    """One product of a linear layer: nt forward, nn data gradient, tn weight gradient."""

    def prepare(bench: Bench) -> Call:
        import torch

        weight_is_cold = layout != "tn"
        a = bench.rotate((k, m) if layout == "tn" else (m, k), dtype, cold=not weight_is_cold)
        b = bench.rotate((n, k) if layout == "nt" else (k, n), dtype, cold=weight_is_cold)
        if layout == "nt":
            return lambda: torch.mm(a(), b().t())
        if layout == "nn":
            return lambda: torch.mm(a(), b())
        return lambda: torch.mm(a().t(), b())

    return Case(
        kind="gemm",
        variant=layout,
        dtype=dtype,
        dims={"m": m, "n": n, "k": k},
        prepare=prepare,
        output_bytes=m * n * ITEM_BYTES[dtype],
        saved_output=layout == "nt",
    )


def bmm_case(layout: str, dtype: str, *, batch: int, m: int, n: int, k: int) -> Case:
    """One batched product."""

    def prepare(bench: Bench) -> Call:
        import torch

        a = bench.rotate((batch, k, m) if layout == "tn" else (batch, m, k), dtype)
        b = bench.rotate((batch, n, k) if layout == "nt" else (batch, k, n), dtype, cold=False)
        if layout == "nt":
            return lambda: torch.bmm(a(), b().mT)
        if layout == "nn":
            return lambda: torch.bmm(a(), b())
        return lambda: torch.bmm(a().mT, b())

    return Case(
        kind="bmm",
        variant=layout,
        dtype=dtype,
        dims={"batch": batch, "m": m, "n": n, "k": k},
        prepare=prepare,
        output_bytes=batch * m * n * ITEM_BYTES[dtype],
        saved_output=layout != "tn",
    )
