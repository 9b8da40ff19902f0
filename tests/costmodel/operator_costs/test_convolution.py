"""Sizes of convolutions in the graph: the form's output is torch's, whatever stretches the kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from costmodel.graph import trace_module
from costmodel.hardware.forms.conv_shapes import gemm_sizes, output_sides

_LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain": (nn.Conv2d(4, 8, 3, padding=1), (2, 4, 9, 11)),
    "strided": (nn.Conv2d(4, 8, 7, stride=2, padding=3), (2, 4, 32, 32)),
    "dilated": (nn.Conv2d(4, 8, 3, padding=6, dilation=6), (2, 4, 20, 20)),
    "dilated and strided": (nn.Conv2d(4, 8, 3, padding=2, dilation=2, stride=2), (2, 4, 20, 20)),
    "flat kernel": (nn.Conv2d(4, 8, (1, 7), padding=(0, 3)), (2, 4, 17, 17)),
    "upright kernel": (nn.Conv2d(4, 8, (7, 1), padding=(3, 0)), (2, 4, 17, 17)),
    "transposed": (nn.ConvTranspose2d(4, 8, 4, stride=2, padding=1), (2, 4, 8, 8)),
    "transposed without padding": (nn.ConvTranspose2d(4, 8, 2, stride=2), (2, 4, 8, 8)),
    "one dimension": (nn.Conv1d(4, 8, 5, padding=4, dilation=2), (2, 4, 30)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 9, 9)),
}


@pytest.mark.parametrize("name", _LAYERS)
def test_the_form_sees_the_output_and_the_work_of_the_layer(name: str) -> None:
    layer, shape = _LAYERS[name]
    x = torch.randn(shape)
    y = layer(x)
    graph = trace_module(nn.Sequential(layer, nn.Flatten()), (x,))
    found = [op for _, op in graph.operators() if op.kind == "conv"]
    assert {op.variant for op in found} >= {"fwd", "wgrad"}
    for op in found:
        dims = {key: np.array([float(value)]) for key, value in op.dims.items()}
        height, width = (float(side[0]) for side in output_sides(dims))
        assert height * width == y[0, 0].numel()
        assert 2.0 * np.prod(gemm_sizes(dims, op.variant)) == op.flop
        assert op.dims["padding"] >= 0


@pytest.mark.parametrize("last", ["neither", "images", "weights"])
def test_the_layout_of_images_and_weights_is_told(last: str) -> None:
    layer, x = nn.Conv2d(4, 8, 3, padding=1), torch.randn(2, 4, 9, 9)
    if last == "images":
        x = x.to(memory_format=torch.channels_last)
    if last == "weights":
        layer = layer.to(memory_format=torch.channels_last)
    graph = trace_module(nn.Sequential(layer, nn.Flatten()), (x,))
    found = [op for _, op in graph.operators() if op.kind == "conv"]
    assert {op.variant for op in found} == {"fwd", "wgrad"}
    assert {op.arguments["channels_last"] for op in found} == {int(last != "neither")}


def test_an_image_of_one_position_has_no_layout() -> None:
    graph = trace_module(nn.Sequential(nn.Conv2d(4, 8, 1), nn.Flatten()), (torch.randn(2, 4, 1, 1),))
    assert {op.arguments["channels_last"] for _, op in graph.operators() if op.kind == "conv"} == {0}
