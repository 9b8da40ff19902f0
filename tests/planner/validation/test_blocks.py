"""Which modules are gathered and recomputed one by one."""

from __future__ import annotations

import torch
from torch import nn

from planner.validation.strategies.blocks import checkpoint_blocks, present


class _Pairs(nn.Module):
    """Layers as lists and dictionaries of parts, called one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.ModuleList([nn.Linear(4, 4), nn.Identity(), nn.ModuleDict({"last": nn.Linear(4, 4)})]),
                nn.Linear(4, 4),
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, same, parts = self.layers[0]
        return self.layers[1](parts["last"](same(first(x))).relu())


def test_what_a_list_holds_stands_for_a_list() -> None:
    module = _Pairs()
    found = present(module, ["layers.0", "layers.1", "layers.0", "layers.2"])
    assert found == [module.layers[0][0], module.layers[0][2]["last"], module.layers[1]]


def test_parts_of_a_list_are_recomputed() -> None:
    module, calls = _Pairs(), []
    first = module.layers[0][0]
    forward = first.forward
    first.forward = lambda x: calls.append(1) or forward(x)
    checkpoint_blocks(present(module, ["layers.0", "layers.1"]))
    module(torch.randn(2, 4)).sum().backward()
    assert len(calls) == 2
