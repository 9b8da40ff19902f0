"""Fused (flash) attention, forward and backward, under every name torch dispatches it to."""

from __future__ import annotations

from costmodel.operator_costs.registry import Call, Piece, register_cost

__all__ = ["backward", "forward"]

_FORWARD = (
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_fused_attention_overrideable",
)


def _dims(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], causal: bool) -> dict[str, int]:
    """q [b, h, s, d], k [b, h_kv, t, d], v [b, h_kv, t, d_v]."""
    return {
        "batch": q[0],
        "q_len": q[2],
        "kv_len": k[2],
        "heads": q[1],
        "kv_heads": k[1],
        "qk_dim": q[3],
        "v_dim": v[3],
        "window": 0,
        "causal": int(causal),
    }


def _is_causal(call: Call, skip: int) -> bool:
    """The boolean argument after the tensors; a mask of its own is not known to be causal."""
    if "is_causal" in call.kwargs:
        return bool(call.kwargs["is_causal"])
    return any(a is True for a in call.args[skip:])


@register_cost(*_FORWARD)
def forward(call: Call) -> list[Piece]:
    """4 b h s t d FLOP over the whole square (causal halves the work, not torch's count)."""
    q, k, v = call.tensors[:3]
    return [
        Piece(
            kind="attention",
            variant="fwd",
            dims=_dims(q.shape, k.shape, v.shape, _is_causal(call, 3)),
            flop=call.flop,
            read_bytes=call.read_bytes,
            written_bytes=call.outputs[0].traffic_bytes,
        )
    ]


@register_cost(*(f"{name}_backward" for name in _FORWARD))
def backward(call: Call) -> list[Piece]:
    """Five products against the forward's two: 2.5 times its FLOP."""
    _, q, k, v = call.tensors[:4]
    return [
        Piece(
            kind="attention",
            variant="bwd",
            dims=_dims(q.shape, k.shape, v.shape, _is_causal(call, 4)),
            flop=call.flop,
            read_bytes=call.read_bytes,
            written_bytes=call.written_bytes,
        )
    ]
