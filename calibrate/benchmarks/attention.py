"""Fused attention, forward, backward and decode, by the kernel that torch's own dispatch takes."""

from __future__ import annotations

import math

from calibrate.benchmarks.base import ITEM_BYTES, Bench, Call, Case, register_benchmark
from calibrate.benchmarks.points import log_points

__all__ = ["attention_case", "attention_cases", "decode_case"]

_SIZES = {"batch": (1, 32), "length": (16, 4096), "heads": (1, 32)}
_HEAD_WIDTHS = (64, 32, 64, 128, 64, 80)
_DECODE_SIZES = {"batch": (1, 64), "length": (32, 8192), "kv_heads": (1, 32)}
_SHARING = (1, 1, 4, 8)
"""Heads that share their keys and values."""


@register_benchmark("attention")
def attention_cases(bench: Bench) -> list[Case]:
    """`scaled_dot_product_attention` over sequence, heads and batch; causal and not in turn."""
    cases = []
    for dtype in bench.dtypes:
        wanted, found = bench.points(24), 0
        for size in log_points(20 * wanted, _SIZES, picks={"width": len(_HEAD_WIDTHS), "causal": 2}):
            width, length = _HEAD_WIDTHS[size["width"]], size["length"]
            rows = size["batch"] * size["heads"] * length
            tensor_bytes = rows * width * ITEM_BYTES[dtype]
            flop = 10.0 * rows * length * width  # backward: five products
            if tensor_bytes > bench.largest_tensor_bytes // 4:
                continue
            if not bench.fits(flop=flop, moved_bytes=8.0 * tensor_bytes):
                continue
            dims = {
                "batch": size["batch"],
                "q_len": length,
                "kv_len": length,
                "heads": size["heads"],
                "kv_heads": size["heads"],
                "qk_dim": width,
                "v_dim": width,
                "window": 0,
                "causal": size["causal"],
            }
            cases += [attention_case(variant, dtype, dims) for variant in ("fwd", "bwd")]
            found += 1
            if found == wanted:
                break
        cases += _decode_cases(bench, dtype)
    return cases


def _decode_cases(bench: Bench, dtype: str) -> list[Case]:
    """One query a sequence over the keys and values that were kept."""
    cases: list[Case] = []
    wanted = bench.points(9)
    picks = {"width": len(_HEAD_WIDTHS), "sharing": len(_SHARING)}
    for size in log_points(20 * wanted, _DECODE_SIZES, picks=picks):
        width, kv_heads = _HEAD_WIDTHS[size["width"]], size["kv_heads"]
        kept = size["batch"] * size["length"] * kv_heads * width
        kept_bytes = kept * ITEM_BYTES[dtype]
        heads = kv_heads * _SHARING[size["sharing"]]
        if kept_bytes > bench.largest_tensor_bytes // 4:
            continue
        if not bench.fits(flop=4.0 * kept * heads / kv_heads, moved_bytes=2.0 * kept_bytes):
            continue
        dims = {
            "batch": size["batch"],
            "q_len": 1,
            "kv_len": size["length"],
            "heads": heads,
            "kv_heads": kv_heads,
            "qk_dim": width,
            "v_dim": width,
            "window": 0,
            "causal": 0,
        }
        cases.append(decode_case(dtype, dims))
        if len(cases) == wanted:
            break
    return cases


def decode_case(dtype: str, dims: dict[str, int]) -> Case:
    """Attention of one query a sequence; keys and values lie [batch, kv_heads, length, width]."""
    queries = (dims["batch"], dims["heads"], 1, dims["qk_dim"])
    kept = (dims["batch"], dims["kv_heads"], dims["kv_len"], dims["qk_dim"])

    def prepare(bench: Bench) -> Call:
        import torch.nn.functional as F

        q = bench.rotate(queries, dtype, cold=False)
        k, v = (bench.rotate(kept, dtype) for _ in range(2))
        shared = dims["heads"] != dims["kv_heads"]
        return lambda: F.scaled_dot_product_attention(q(), k(), v(), enable_gqa=shared)

    return Case(
        kind="attention",
        variant="decode",
        dtype=dtype,
        dims=dims,
        prepare=prepare,
        output_bytes=math.prod(queries) * ITEM_BYTES[dtype],
    )


def attention_case(variant: str, dtype: str, dims: dict[str, int]) -> Case:
    """Attention of equal lengths, head counts and widths of keys and values."""
    shape = (dims["batch"], dims["q_len"], dims["heads"], dims["qk_dim"])
    causal = bool(dims["causal"])
    tensor_bytes = math.prod(shape) * ITEM_BYTES[dtype]

    def prepare(bench: Bench) -> Call:
        import torch
        import torch.nn.functional as F

        # projections leave [batch, length, heads, width]; attention sees it transposed, as in models
        forward = variant == "fwd"
        q, k, v = (bench.rotate(shape, dtype, cold=False) for _ in range(3))
        if forward:
            return lambda: F.scaled_dot_product_attention(
                q().transpose(1, 2), k().transpose(1, 2), v().transpose(1, 2), is_causal=causal
            )
        leaves = [t().detach().transpose(1, 2).requires_grad_() for t in (q, k, v)]
        with torch.enable_grad():
            out = F.scaled_dot_product_attention(leaves[0], leaves[1], leaves[2], is_causal=causal)
        gradient = bench.rotate(shape, dtype, cold=False)().transpose(1, 2)
        return lambda: torch.autograd.grad(out, leaves, gradient, retain_graph=True)

    return Case(
        kind="attention",
        variant=variant,
        dtype=dtype,
        dims=dims,
        prepare=prepare,
        output_bytes=tensor_bytes,
        saved_output=variant == "fwd",
    )
