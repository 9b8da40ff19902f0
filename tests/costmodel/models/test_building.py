"""Builders as people write them: converted, copied, looking at values, too large."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from costmodel.errors import ModelArgumentError
from costmodel.graph.tracing import fake_mode
from costmodel.models import building, resolve
from costmodel.models.building import built
from planner import api

Model = tuple[nn.Module, tuple[torch.Tensor, ...]]


def in_half_precision() -> Model:
    """Converted as a whole."""
    module = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)).to("cpu", torch.bfloat16)
    return module, (torch.randn(2, 8, dtype=torch.bfloat16),)


class _Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.teacher(x)
        return (self.student(x) - wanted).square().mean()


def teacher() -> Model:
    """A deep copy beside the original."""
    return _Teacher(), (torch.randn(2, 8),)


def rates() -> Model:
    """Reads rates out of a tensor, as stochastic depth usually does."""
    layers: list[nn.Module] = []
    for rate in torch.linspace(0, 0.5, 3):
        layers += [nn.Linear(8, 8), nn.Dropout(rate.item())]
    return nn.Sequential(*layers), (torch.randn(2, 8),)


def wrong() -> Model:
    """Cannot be built at all."""
    raise ValueError("no such width")


_BUILDERS: list[tuple[Callable[[], Model], str]] = [
    (in_half_precision, "bfloat16"),
    (teacher, "float32"),
    (rates, "float32"),
]


@pytest.mark.parametrize(("make", "dtype"), _BUILDERS)
def test_a_model_is_traced_however_it_is_built(make: Callable[[], Model], dtype: str) -> None:
    graph = api.trace(f"{__name__}:{make.__name__}")
    module, _ = make()
    assert graph.n_parameters == sum(p.numel() for p in module.parameters())
    kept = {t.dtype for s in graph.segments for t in s.parameters}
    assert kept == {{"bfloat16": "bf16", "float32": "fp32"}[dtype]}


def test_conversion_keeps_ties_and_needs_no_values() -> None:
    def make() -> nn.Module:
        module = nn.ModuleList([nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)])
        module[1].weight = module[0].weight
        return module.half()

    with fake_mode():
        module, without_values = built(make, "tied")
    first, last = (child.weight for child in module)
    assert without_values
    assert first is last
    assert isinstance(first, FakeTensor)
    assert first.dtype is torch.float16
    assert first.untyped_storage().nbytes() == 9 * 4 * 2


def test_values_are_made_where_a_builder_looks_at_them() -> None:
    asked: list[bool] = []

    def make() -> Any:
        asked.append(isinstance(torch.zeros(1), FakeTensor))
        return [x.item() for x in torch.linspace(0, 1, 3)]

    with fake_mode():
        assert built(make, "rates") == ([0.0, 0.5, 1.0], False)
        assert built(make, "rates", without_values=False) == ([0.0, 0.5, 1.0], False)
    assert asked == [True, False, False]


def test_too_much_memory_for_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "MEMORY_SHARE", 1e-9)
    with pytest.raises(ModelArgumentError, match="cannot be built without values"):
        api.trace(f"{__name__}:rates")


def test_a_builders_own_error_is_told_as_it_is() -> None:
    with pytest.raises(ModelArgumentError, match="ValueError: no such width"), fake_mode():
        resolve(f"{__name__}:wrong").build()
