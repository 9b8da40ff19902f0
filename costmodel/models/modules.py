"""Shipped modules that no library has."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["mlp"]


def mlp(*, width: int, depth: int, inputs: int, outputs: int) -> nn.Module:
    """A plain multi-layer perceptron: inputs -> (width, ReLU) x depth -> outputs."""
    from torch import nn

    sizes = [inputs, *[width] * depth]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))
