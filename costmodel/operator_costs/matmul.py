"""Matrix products: mm, addmm, bmm, baddbmm, grouped products."""

from __future__ import annotations

from costmodel.operator_costs.registry import Call, Piece, TensorMeta, register_cost

__all__ = ["batched", "gemm", "grouped"]


def _layout(a: TensorMeta, b: TensorMeta) -> str:
    """nt: B is stored transposed (forward of linear); tn: A is (weight gradient); nn: neither."""
    if b.is_transposed and not a.is_transposed:
        return "nt"
    return "tn" if a.is_transposed else "nn"


def _matrices(call: Call) -> tuple[TensorMeta, TensorMeta]:
    first, second = [t for t in call.tensors if len(t.shape) >= 2][-2:]
    return first, second


@register_cost("aten.mm", "aten.addmm", "aten._addmm_activation", "aten.mv", "aten.addmv", "aten.dot")
def gemm(call: Call) -> list[Piece]:
    """C[m,n] = A[m,k] B[k,n] (+ bias): 2 m n k FLOP."""
    wide = [t for t in call.tensors if len(t.shape) >= 2]
    if len(wide) < 2:  # matrix times vector
        m, k = wide[0].shape if wide else (1, call.tensors[0].numel)
        return [
            Piece(
                kind="gemm",
                variant="nn",
                dims={"m": m, "n": 1, "k": k},
                flop=call.flop or 2 * m * k,
                read_bytes=call.read_bytes,
                written_bytes=call.written_bytes,
            )
        ]
    a, b = _matrices(call)
    return [
        Piece(
            kind="gemm",
            variant=_layout(a, b),
            dims={"m": a.shape[0], "n": b.shape[1], "k": a.shape[1]},
            flop=call.flop,
            read_bytes=call.read_bytes,
            written_bytes=call.written_bytes,
        )
    ]


@register_cost("aten.bmm", "aten.baddbmm")
def batched(call: Call) -> list[Piece]:
    """C[b,m,n] = A[b,m,k] B[b,k,n]: 2 b m n k FLOP."""
    a, b = _matrices(call)
    return [
        Piece(
            kind="bmm",
            variant=_layout(a, b),
            dims={"batch": a.shape[0], "m": a.shape[1], "n": b.shape[2], "k": a.shape[2]},
            flop=call.flop,
            read_bytes=call.read_bytes,
            written_bytes=call.written_bytes,
        )
    ]


@register_cost("aten._grouped_mm", "transformers.grouped_mm_fallback")
def grouped(call: Call) -> list[Piece]:
    """One product per group; `m` is the total of rows: 2 m n k FLOP for [m,k] x [groups,k,n].

    With two matrices (weight gradients) the groups divide k: 2 m n k over the whole k. It is the forward's
    work with another result, and is named by the forward's sizes: the rows that the groups share are `m`.
    """
    a, b = [t for t in call.tensors if len(t.shape) >= 2 and t.is_floating][:2]
    out = call.outputs[0]
    groups = max(b.shape[0] if len(b.shape) == 3 else 1, a.shape[0] if len(a.shape) == 3 else 1)
    if len(out.shape) == 3 and len(a.shape) == len(b.shape) == 2:
        groups = out.shape[0]
    m, k = a.shape[-2], a.shape[-1]
    n = b.shape[-1]
    if len(out.shape) == 3 and len(a.shape) == len(b.shape) == 2:
        m, k = k, m
    return [
        Piece(
            kind="grouped_gemm",
            variant=_layout(a, b),
            dims={"groups": groups, "m": m, "n": n, "k": k},
            flop=call.flop or 2 * m * n * k,
            read_bytes=call.read_bytes,
            written_bytes=call.written_bytes,
        )
    ]
