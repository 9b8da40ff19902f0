"""Traffic of operators without products."""

from __future__ import annotations

import torch
from torch import nn

from costmodel.graph import trace_module
from costmodel.graph.model_graph import Operator
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


def _norms(module: nn.Module, *, last: bool) -> list[Operator]:
    x = torch.randn(2, 4, 6, 6)
    x = x.to(memory_format=torch.channels_last) if last else x
    graph = trace_module(nn.Sequential(module, nn.Flatten()), (x,), training=module.training)
    return [op for _, op in graph.operators() if "norm" in op.target]


def test_kept_statistics_are_read_where_channels_lie_together_as_any_operand() -> None:
    (normed,) = _norms(nn.BatchNorm2d(4).eval(), last=True)
    assert (normed.kind, normed.variant) == ("elementwise", "mul")
    (normed,) = _norms(nn.BatchNorm2d(4).eval(), last=False)
    assert (normed.kind, normed.arguments["once"]) == ("norm", 1)
    forward, backward = _norms(nn.BatchNorm2d(4), last=True)
    assert [op.arguments["once"] for op in (forward, backward)] == [0, 0]
    assert (forward.variant, backward.variant) == ("batchnorm", "bwd")


def test_group_normalisation_says_how_images_lie() -> None:
    for last in (False, True):
        assert {op.arguments["channels_last"] for op in _norms(nn.GroupNorm(2, 4), last=last)} == {int(last)}
