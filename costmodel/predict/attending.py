"""Attention in inference: a traced call in its phase, over a prompt or over the keys that were kept.

Latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1.2) keeps one compressed row per token and layer
for all heads, and a decoded token attends in that space: queries of latent + rotary width over one shared
head, values of latent width. Both are read off the graph, from the product that expands the rows kept.
"""

from __future__ import annotations

from dataclasses import replace

from costmodel.graph.model_graph import Operator, Segment
from costmodel.hardware.device import cache_bytes

__all__ = ["attention_call", "cache_copies", "latent_dims"]

_TRACED = ("fwd", "mla_prefill")


def attention_call(
    segment: Segment, op: Operator, *, requests: int, tokens: int, context: int, cache: str
) -> Operator:
    """A traced attention call of `segment` as `requests` calls of `tokens` queries over `context` keys each.

    `cache`: the dtype of attention over a cache of another type, "" for the same.
    """
    latent = latent_dims(segment, op)
    dims = {**op.dims, "batch": requests, "q_len": tokens, "kv_len": context, "causal": int(tokens > 1)}
    if tokens > 1:
        return replace(op, variant="mla_prefill" if latent else "prefill", dims=dims)
    if latent:
        dims |= {"kv_heads": 1, "qk_dim": latent[0], "v_dim": latent[1]}
    return replace(op, variant="mla_decode" if latent else "decode", dims=dims, dtype=cache or op.dtype)


def cache_copies(op: Operator) -> tuple[Operator, ...]:
    """The copies that join a token to its kept keys and values, for a decode call of `attention_call`."""
    rows = op.dims["batch"] * op.dims["kv_heads"]
    widths = (op.dims["qk_dim"],) if op.variant == "mla_decode" else (op.dims["qk_dim"], op.dims["v_dim"])
    copies = []
    for width in widths:
        size = round(rows * op.dims["kv_len"] * width * cache_bytes(op.dtype))
        dims = {"rows": rows, "cols": op.dims["kv_len"] * width, "bytes": 2 * size}
        copies.append(
            replace(
                op,
                target="aten.cat.default",
                kind="elementwise",
                variant="copy",
                dtype=op.dtype.partition("+")[0],
                dims=dims,
                flop=0,
                bytes_read=size,
                bytes_written=size,
            )
        )
    return tuple(copies)


def latent_dims(segment: Segment, op: Operator) -> tuple[int, int] | None:
    """(width of a kept row, width of a value) of latent attention; None where keys and values are kept whole.

    The row is expanded by a product from a width below the block's own to every head's key (without its
    rotary part) and value: n = heads (qk_dim - rotary + v_dim).
    """
    if op.kind != "attention" or op.variant not in _TRACED:
        return None
    home, heads = op.module, op.dims["heads"]
    own = [
        o
        for o in segment.operators
        if o.kind == "gemm" and o.index < op.index and o.module.startswith(home + ".")
    ]
    widest = max((o.dims["k"] for o in own), default=0)
    for product in own:
        queries = product.dims["n"] == heads * op.dims["qk_dim"]
        if product.dims["k"] >= widest or product.dims["n"] % heads or queries:
            continue
        each = product.dims["n"] // heads - op.dims["v_dim"]
        if 0 < each < op.dims["qk_dim"]:
            return product.dims["k"] + op.dims["qk_dim"] - each, product.dims["k"]
    return None
