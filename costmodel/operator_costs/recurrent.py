"""Recurrent layers that a library runs in one call: the products and gates of every step."""

from __future__ import annotations

from costmodel.operator_costs.registry import Call, Piece, register_cost

__all__ = ["backward", "forward"]


def _pieces(call: Call, *, products: int) -> list[Piece]:
    """The input's product for all steps at once, the state's and the gates step by step.

    x [steps, batch, features], weights [gates * hidden, features] and [gates * hidden, hidden]; backward
    has `products` = 2 of each (data and weight gradient).
    """
    x, w_input, w_state = call.tensors[:3]
    steps, batch = x.shape[0], x.shape[1]
    gates, hidden = w_state.shape
    first = Piece(
        kind="gemm",
        variant="nt",
        dims={"m": steps * batch, "n": gates, "k": w_input.shape[1]},
        flop=2 * steps * batch * gates * w_input.shape[1],
        read_bytes=call.read_bytes,
        written_bytes=call.written_bytes,
    )
    again = Piece(kind="gemm", variant="nt", dims=first.dims, flop=first.flop, outputs=())
    state = Piece(
        kind="gemm",
        variant="nt",
        dims={"m": batch, "n": gates, "k": hidden},
        flop=2 * batch * gates * hidden,
        outputs=(),
    )
    gate = Piece(
        kind="elementwise",
        variant="other",
        dims={"rows": batch, "cols": gates, "bytes": 2 * batch * gates * x.element_bytes},
        outputs=(),
    )
    return [first, *[again] * (products - 1), *[state] * (products * steps), *[gate] * steps]


@register_cost("aten.mkldnn_rnn_layer", "foreshard.recurrent_layer")
def forward(call: Call) -> list[Piece]:
    """One layer in one direction."""
    return _pieces(call, products=1)


@register_cost("aten.mkldnn_rnn_layer_backward", "foreshard.recurrent_layer_backward")
def backward(call: Call) -> list[Piece]:
    """Its gradient: data and weight gradient of each product."""
    return _pieces(call, products=2)
