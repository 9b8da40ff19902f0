"""Convolutions, forward and both gradients."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from costmodel.operator_costs.registry import Call, Piece, TensorMeta, register_cost

__all__ = ["backward", "forward"]


def _pair(values: Sequence[int]) -> tuple[int, int]:
    """The last two of a per-dimension list; 1-D has height 1."""
    padded = (1, *values) if len(values) == 1 else tuple(values)
    return int(padded[-2]), int(padded[-1])


def _plane(meta: TensorMeta) -> tuple[int, int]:
    """(height, width) of images or of a kernel; 1-D has height 1, 3-D folds depth into it."""
    sides = meta.shape[2:]
    return (1 if len(sides) == 1 else prod(sides[:-1])), sides[-1]


def _padding(declared: int, size: int, output: int, kernel: int, stride: int, *, transposed: bool) -> int:
    """The padding that makes `output` of `size` where the declared one does not (dilated kernels)."""
    if transposed:
        spare = (size - 1) * stride + kernel - output
        fits = spare == 2 * declared
    else:
        spare = (output - 1) * stride + kernel - size
        fits = 0 <= 2 * declared - spare < stride
    return declared if fits else max(0, -(-spare // 2))


def _dims(
    x: TensorMeta,
    weight: TensorMeta,
    y: TensorMeta,
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    transposed: bool,
    groups: int,
) -> dict[str, int]:
    """The cost kind's sizes; its one padding is that along the longer side of an image's kernel."""
    h, w = _plane(x)
    kh, kw = _plane(weight)
    c_in = x.shape[1]
    side = 0 if kh > kw and len(x.shape) == 4 else 1
    c_out = weight.shape[1] * groups if transposed else weight.shape[0]
    return {
        "batch": x.shape[0],
        "c_in": c_in,
        "c_out": c_out,
        "h": h,
        "w": w,
        "kh": kh,
        "kw": kw,
        "stride": _pair(stride)[1],
        "padding": _padding(
            _pair(padding)[side],
            (h, w)[side],
            _plane(y)[side],
            (kh, kw)[side],
            _pair(stride)[side],
            transposed=transposed,
        ),
        "groups": groups,
        "transposed": int(transposed),
    }


def _layout(x: TensorMeta, weight: TensorMeta) -> dict[str, int]:
    """torch runs the library's kernels for channels last where images or weights lie so."""
    return {"channels_last": int(x.has_channels_last or weight.has_channels_last)}


@register_cost("aten.convolution", "aten._convolution")
def forward(call: Call) -> list[Piece]:
    """2 x batch x output positions x c_out x c_in / groups x kernel FLOP (torch's conv_flop)."""
    x, weight = call.tensors[0], call.tensors[1]
    _, _, _, stride, padding, _, transposed, _, groups = call.args[:9]
    return [
        Piece(
            kind="conv",
            variant="fwd",
            dims=_dims(
                x, weight, call.outputs[0], stride, padding, transposed=bool(transposed), groups=int(groups)
            ),
            flop=call.flop,
            read_bytes=call.read_bytes,
            written_bytes=call.written_bytes,
            arguments=_layout(x, weight),
        )
    ]


@register_cost("aten.convolution_backward")
def backward(call: Call) -> list[Piece]:
    """Data gradient and weight gradient are two kernels of the forward's FLOP each (where asked for).

    torch's conv_backward_flop counts a grouped layer's weight gradient `groups` times too high.
    """
    grad, x, weight = call.tensors[:3]
    _, _, _, _, stride, padding, _, transposed, _, groups, mask = call.args[:11]
    dims = _dims(x, weight, grad, stride, padding, transposed=bool(transposed), groups=int(groups))
    wanted = [bool(mask[0]), bool(mask[1])]
    positions = x if transposed else grad
    each = 2 * x.shape[0] * prod(positions.shape[2:]) * prod(weight.shape)
    pieces = []
    if wanted[0]:
        pieces.append(
            Piece(
                kind="conv",
                variant="dgrad",
                dims=dims,
                flop=each,
                read_bytes=grad.traffic_bytes + weight.traffic_bytes,
                written_bytes=x.traffic_bytes,
                outputs=(0,),
                arguments=_layout(x, weight),
            )
        )
    if wanted[1]:
        pieces.append(
            Piece(
                kind="conv",
                variant="wgrad",
                dims=dims,
                flop=each,
                read_bytes=grad.traffic_bytes + x.traffic_bytes,
                written_bytes=weight.traffic_bytes,
                outputs=(1, 2) if mask[2] else (1,),
                arguments=_layout(x, weight),
            )
        )
    elif mask[2]:
        rows = grad.shape[1]
        pieces.append(
            Piece(
                kind="reduction",
                variant="sum",
                dims={"rows": rows, "cols": grad.numel // rows, "bytes": grad.traffic_bytes},
                read_bytes=grad.traffic_bytes,
                outputs=(2,),
            )
        )
    return pieces
