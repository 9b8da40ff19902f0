"""Operators that a rule is missing for are named, counted and given their share of the time."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest
import torch
from torch import nn

from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict import Forecaster
from costmodel.predict.without_rule import unmodelled_bytes
from planner.cli import main

ME = "tests.costmodel.predict.test_without_rule:block"


class Summed(nn.Module):
    """Sums along rows between two products; one has no cost rule, its gradient takes it twice more."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        middle = self.up(x)
        return self.down(middle * torch.logcumsumexp(middle, -1) + middle.cumsum(-1))


def block() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """A model of one."""
    return nn.Sequential(Summed()), (torch.randn(8, 64),)


@lru_cache(maxsize=1)
def forecaster() -> Forecaster:
    return Forecaster(
        source=resolve(ME), profile=load_profile("a100-sxm4-80gb"), framework=load_framework("pytorch")
    )


def test_unmodelled_operators_are_named_with_their_share() -> None:
    found = forecaster().forecast(Plan(micro_batch_size=8)).prediction
    assert {one.operator: one.calls for one in found.unmodelled_operators} == {"aten.logcumsumexp": 3}
    (share,) = [one.time_fraction for one in found.unmodelled_operators]
    assert 0.0 < share < 1.0
    assert any("no cost rule" in w and "aten.logcumsumexp (3 calls)" in w for w in found.warnings)
    (listed,) = found.to_dict()["unmodelled_operators"]
    assert listed == {"operator": "aten.logcumsumexp", "calls": 3, "time_fraction": share}
    assert not found.unruled_operators, "one rank does everything anyway"


def test_what_every_tensor_parallel_rank_does_whole_is_named() -> None:
    found = forecaster().forecast(Plan(tp=2, micro_batch_size=8)).prediction
    assert {"aten.logcumsumexp", "aten.cumsum"} <= {one.operator for one in found.unruled_operators}
    assert any("no sharding rule" in w and "aten.cumsum" in w for w in found.warnings)


def test_shares_of_bytes_add_up_to_the_graphs_own() -> None:
    graph = forecaster().graph(8)
    assert sum(share for _, _, share in unmodelled_bytes(graph)) == pytest.approx(graph.unmodelled_fraction)


def test_trace_prints_and_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    for more in ((), ("--json",)):
        with pytest.raises(SystemExit):
            main(["trace", ME, *more])
    table, _, data = capsys.readouterr().out.partition("\n{")
    assert "warning: no cost rule, priced by the bytes they move: aten.logcumsumexp (3 calls)" in table
    (listed,) = json.loads("{" + data)["unmodelled_operators"]
    assert (listed["operator"], listed["calls"]) == ("aten.logcumsumexp", 3)
    assert 0.0 < listed["bytes_fraction"] < 1.0


def test_a_model_of_known_operators_has_none() -> None:
    made = Forecaster(
        source=resolve("mlp-mnist"),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework("pytorch"),
    )
    found = made.forecast(Plan(tp=2)).prediction
    assert (found.unmodelled_operators, found.unruled_operators) == ((), ())
    assert not any("rule" in warning for warning in found.warnings)
