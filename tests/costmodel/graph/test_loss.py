"""What a loss is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from costmodel.errors import TraceError
from costmodel.graph.loss import default_loss


@dataclass
class _Output:
    ids: torch.Tensor
    parts: dict[str, Any]
    loss: torch.Tensor | None = None


def test_the_outputs_own_loss_comes_first_then_its_first_numbers() -> None:
    numbers = torch.tensor([1.0, 3.0])
    ids = torch.tensor([5])
    assert default_loss(_Output(ids, {"x": numbers}, torch.tensor(7.0))) == 7.0
    assert default_loss(_Output(ids, {"x": [None, numbers]})) == 2.0
    assert default_loss({"inner": _Output(ids, {"x": numbers})}) == 2.0
    assert default_loss((ids, torch.tensor(4.0), numbers)) == 4.0


def test_an_output_without_numbers_is_refused_with_a_way_out() -> None:
    with pytest.raises(TraceError, match=r"no floating-point tensor.*--inference"):
        default_loss(_Output(torch.tensor([5]), {}))
