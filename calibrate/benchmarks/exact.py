"""One operator or collective at the very size that a plan runs it at, out of the other files' benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from calibrate.benchmarks.attention import attention_case, decode_case
from calibrate.benchmarks.base import ITEM_BYTES, Bench, Case
from calibrate.benchmarks.collectives import collective_case
from calibrate.benchmarks.conv import conv_case
from calibrate.benchmarks.elementwise import elementwise_functions
from calibrate.benchmarks.embedding import INDEX_BYTES, embedding_case
from calibrate.benchmarks.gemm import bmm_case, gemm_case
from calibrate.benchmarks.memory_bound import Function, case_of
from calibrate.benchmarks.norm import IMAGE_NORMS, TOKEN_NORMS
from calibrate.benchmarks.optimizer import optimizer_case
from calibrate.benchmarks.reduction import BIAS_GRADIENT, LARGEST
from calibrate.benchmarks.softmax import CLASSES, ROWS
from costmodel.hardware.kinds import COLLECTIVE_KINDS

__all__ = ["exact_case"]

_WIDEST_ATTENTION_ROW = 4096
"""Softmax over more columns is one over classes, behind a loss."""


def exact_case(
    bench: Bench,
    kind: str,
    variant: str,
    dtype: str,
    dims: Mapping[str, int],
    *,
    images: bool = False,
) -> Case | None:
    """The case of this size; None where no benchmark times such a call, or its operands do not fit.

    `images`: normalisations are of channels, not of tokens (their backward has one name).
    """
    if kind in COLLECTIVE_KINDS:
        fits = dims["n_ranks"] in bench.groups and dims["size_bytes"] <= bench.largest_tensor_bytes
        return collective_case(kind, dims["n_ranks"], dims["size_bytes"]) if fits else None
    builder = _BUILDERS.get(kind)
    if dtype not in ITEM_BYTES or builder is None:
        return None
    case = builder(variant, dtype, dict(dims), images)
    if case is None or max(case.output_bytes, _largest_operand(dims, dtype)) > bench.largest_tensor_bytes:
        return None
    return case


def _largest_operand(dims: Mapping[str, int], dtype: str) -> int:
    if "rows" in dims:
        return dims["rows"] * dims["cols"] * ITEM_BYTES[dtype]
    if "m" in dims:
        m, n, k = dims["m"], dims["n"], dims["k"]
        return dims.get("batch", 1) * max(m * n, m * k, n * k) * ITEM_BYTES[dtype]
    return 0


def _product(variant: str, dtype: str, dims: dict[str, int], images: bool) -> Case | None:
    if variant not in ("nt", "nn", "tn"):
        return None
    return bmm_case(variant, dtype, **dims) if "batch" in dims else gemm_case(variant, dtype, **dims)


def _attention(variant: str, dtype: str, dims: dict[str, int], images: bool) -> Case | None:
    if variant == "decode" and not dims["window"] and dims["qk_dim"] == dims["v_dim"]:
        return decode_case(dtype, dims)
    same = (("q_len", "kv_len"), ("heads", "kv_heads"), ("qk_dim", "v_dim"))
    if variant not in ("fwd", "bwd") or dims["window"] or any(dims[a] != dims[b] for a, b in same):
        return None
    return attention_case(variant, dtype, dims)


def _conv(variant: str, dtype: str, dims: dict[str, int], images: bool) -> Case | None:
    if variant not in ("fwd", "dgrad", "wgrad") or dims["transposed"]:
        return None
    return conv_case(variant, dtype, dims)


def _streaming(kind: str) -> Callable[[str, str, dict[str, int], bool], Case | None]:
    def build(variant: str, dtype: str, dims: dict[str, int], images: bool) -> Case | None:
        """The function of the variant whose traffic is nearest to what the operator moves."""
        rows, cols = dims["rows"], dims["cols"]
        found = [f for f in _functions(kind, dims, images) if f.variant == variant]
        if not found or not rows or not cols:
            return None
        moved = dims["bytes"] / (rows * cols)
        item = ITEM_BYTES[dtype]
        nearest = min(found, key=lambda f: abs(f.tensors * item + f.extra_bytes - moved))
        return case_of(kind, nearest, dtype, rows, cols, moved=dims["bytes"])

    return build


def _functions(kind: str, dims: Mapping[str, int], images: bool) -> tuple[Function, ...]:
    if kind == "elementwise":
        return elementwise_functions()
    if kind == "norm":
        return IMAGE_NORMS if images else TOKEN_NORMS
    if kind == "softmax":
        return CLASSES if dims["cols"] > _WIDEST_ATTENTION_ROW else ROWS
    return (BIAS_GRADIENT, LARGEST)


def _embedding(variant: str, dtype: str, dims: dict[str, int], images: bool) -> Case | None:
    rows, cols, item = dims["rows"], dims["cols"], ITEM_BYTES[dtype]
    if variant not in ("fwd", "bwd"):
        return None
    # what the gradient moves beyond the gathered rows is the table
    left = dims["bytes"] - rows * cols * item - INDEX_BYTES * rows
    table = max(rows, left // (cols * item)) if variant == "bwd" else rows
    return embedding_case(variant, dtype, rows, cols, table, moved_bytes=dims["bytes"])


def _optimizer(variant: str, dtype: str, dims: dict[str, int], images: bool) -> Case | None:
    return optimizer_case(variant, dims["rows"], dims["cols"]) if variant in ("sgd", "adam") else None


_BUILDERS: dict[str, Callable[[str, str, dict[str, int], bool], Case | None]] = {
    "gemm": _product,
    "bmm": _product,
    "attention": _attention,
    "conv": _conv,
    "elementwise": _streaming("elementwise"),
    "norm": _streaming("norm"),
    "softmax": _streaming("softmax"),
    "reduction": _streaming("reduction"),
    "embedding": _embedding,
    "optimizer": _optimizer,
}
