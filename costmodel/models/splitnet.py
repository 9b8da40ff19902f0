"""SplitNet (Kim et al., ICML 2017): block-diagonal weights, so that a network falls into branches.

In the repeated blocks of a model every linear layer and convolution becomes `groups` smaller ones side by
side, each reading and writing its own share of the features, and every layer normalisation normalises within
a share. Weights and FLOP of those layers fall to 1 / groups; split over as many ranks the branches need no
communication between the first and the last block. What lies before and after the blocks stays whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakSet

from costmodel.errors import ModelArgumentError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from costmodel.models.source import BuiltModel, ModelSource

__all__ = ["split_module", "split_source"]


def split_source(source: ModelSource, groups: int) -> ModelSource:
    """The same model with its blocks split into `groups` branches. Raises ModelArgumentError on building."""
    done: WeakSet[nn.Module] = WeakSet()

    def build(micro_batch_size: int, seq_len: int) -> BuiltModel:
        built = source.builder(micro_batch_size, seq_len)
        if built.module not in done:  # a source may hand out one module for several traces
            split_module(built.module, groups)
            done.add(built.module)
        return built

    identity = f"{source.identity}/splitnet{groups}" if source.identity else ""
    return replace(source, builder=build, identity=identity)


def split_module(module: nn.Module, groups: int) -> int:
    """Replace the layers of every module list's elements in place; returns how many were.

    Raises ModelArgumentError where a width does not divide, or there is nothing to split.
    """
    from torch import nn

    if groups < 2:
        raise ModelArgumentError(f"splitnet{groups}: needs at least 2 branches")
    blocks = [
        block for part in module.modules() if isinstance(part, nn.ModuleList) for block in part.children()
    ]
    count = 0
    for block in blocks:
        for name, layer in list(block.named_modules()):
            made = _split_layer(layer, groups, name)
            if made is not None and name:
                parent = block.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], made)
                count += 1
    if not count:
        raise ModelArgumentError(
            "splitnet: the model has no linear layer or convolution inside a list of blocks to split"
        )
    return count


def _split_layer(layer: nn.Module, groups: int, name: str) -> nn.Module | None:
    import torch
    from torch import nn

    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        _divides(name, layer.normalized_shape[0], groups)
        return _grouped_norm(layer, groups)
    if isinstance(layer, nn.Linear):
        _divides(name, layer.in_features, groups)
        _divides(name, layer.out_features, groups)
        return _grouped_linear(layer.in_features, layer.out_features, groups, layer.bias is not None)
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"):  # transformers' linear layer of GPT-2
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        inputs, outputs = weight.shape
        _divides(name, inputs, groups)
        _divides(name, outputs, groups)
        return _grouped_linear(inputs, outputs, groups, bias=True)
    if isinstance(layer, nn.Conv2d):
        _divides(name, layer.in_channels, groups * layer.groups)
        _divides(name, layer.out_channels, groups * layer.groups)
        return nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            groups * layer.groups,
            layer.bias is not None,
        )
    return None


def _divides(name: str, width: int, groups: int) -> None:
    if width % groups:
        raise ModelArgumentError(
            f"splitnet{groups}: the width {width} of {name!r} is not a multiple of {groups}; "
            "take fewer branches"
        )


def _grouped_linear(inputs: int, outputs: int, groups: int, bias: bool) -> nn.Module:
    import torch
    from torch import nn

    class GroupedLinear(nn.Module):
        """`groups` linear layers side by side: weight [groups, in, out] of a branch."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(groups, inputs // groups, outputs // groups) * 0.02)
            self.bias = nn.Parameter(torch.zeros(groups, 1, outputs // groups)) if bias else None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shape = x.shape[:-1]
            branches = x.reshape(-1, groups, inputs // groups).transpose(0, 1)
            y = torch.bmm(branches, self.weight)
            if self.bias is not None:
                y = y + self.bias
            return y.transpose(0, 1).reshape(*shape, outputs)

    return GroupedLinear()


def _grouped_norm(layer: nn.LayerNorm, groups: int) -> nn.Module:
    import torch
    from torch import nn

    width, eps, affine = layer.normalized_shape[0], layer.eps, layer.elementwise_affine

    class GroupedLayerNorm(nn.Module):
        """Layer normalisation within each branch's share of the features."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(groups, width // groups)) if affine else None
            self.bias = nn.Parameter(torch.zeros(groups, width // groups)) if affine else None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            branches = x.reshape(*x.shape[:-1], groups, width // groups)
            y = nn.functional.layer_norm(branches, (width // groups,), eps=eps)
            if self.weight is not None and self.bias is not None:
                y = y * self.weight + self.bias
            return y.reshape(x.shape)

    return GroupedLayerNorm()
