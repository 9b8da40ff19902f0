"""Traffic of operators without products."""

from __future__ import annotations

import torch

from costmodel.operator_costs import OPERATOR_COSTS, Call, TensorMeta


def _meta(*shape: int, dtype: str = "fp32", element_bytes: int = 4) -> TensorMeta:
    stride = torch.empty(shape, device="meta").stride()
    return TensorMeta(
        index=0,
        shape=shape,
        stride=stride,
        dtype=dtype,
        element_bytes=element_bytes,
        is_floating=dtype != "int64",
    )


def _bytes(target: str, tensors: list[TensorMeta], output: TensorMeta) -> int:
    call = Call(
        target=target, args=tuple(tensors), kwargs={}, tensors=tuple(tensors), outputs=(output,), flop=0
    )
    (piece,) = OPERATOR_COSTS[target](call)
    assert piece.dims["bytes"] == piece.read_bytes + piece.written_bytes
    return piece.read_bytes + piece.written_bytes


def test_rows_written_into_a_cache_do_not_move_the_cache() -> None:
    places, rows = _meta(3, dtype="int64", element_bytes=8), _meta(2, 3, 16)
    for length in (64, 4096):
        cache = _meta(2, length, 16)
        assert _bytes("aten.index_copy_", [cache, places, rows], cache) == 2 * 2 * 3 * 16 * 4 + 3 * 8


def test_sampling_reads_the_picture_and_the_places() -> None:
    picture, places, seen = _meta(2, 8, 6, 6), _meta(2, 5, 4, 2), _meta(2, 8, 5, 4)
    moved = 4 * (2 * 8 * 36 + 2 * 5 * 4 * 2 + 2 * 8 * 20)
    assert _bytes("aten.grid_sampler_2d", [picture, places], seen) == moved
