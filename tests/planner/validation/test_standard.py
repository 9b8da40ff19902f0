"""The standard models take every standard plan; blocks and stages are found in them."""

from __future__ import annotations

import pytest
from torch import nn

from costmodel.errors import PlanError, UsageError
from costmodel.plan import Plan
from planner.validation.harness import strategy_of
from planner.validation.run_spec import RunSpec
from planner.validation.standard import standard_models, standard_plans
from planner.validation.strategies.blocks import default_blocks, default_stages
from planner.validation.strategies.pipeline import schedule_class, stages_of_rank
from tests.planner.validation.sample_models import mixed, perceptron


def test_six_plans_of_one_global_batch() -> None:
    model = standard_models()[0]
    plans = standard_plans(model.global_batch_size)
    assert {p.global_batch_size for p in plans} == {model.global_batch_size}
    names = [strategy_of(RunSpec(model=model.model, plan=p)) for p in plans]
    assert names == ["single", "ddp", "fsdp", "tp", "pp-gpipe", "pp-1f1b"]
    assert all(p.world_size in (1, 2) for p in plans)


def test_unknown_model_and_odd_batch() -> None:
    with pytest.raises(UsageError, match="unknown validation models"):
        standard_models(("no-such",))
    with pytest.raises(UsageError, match="global batch 3 over 2 ranks"):
        standard_plans(3)


def test_blocks_and_stages() -> None:
    model, _ = mixed()
    assert default_blocks(model) == ("blocks.0", "blocks.1", "blocks.2")
    net, _ = perceptron()
    assert default_blocks(net) == ("0", "2", "4", "6")
    assert default_stages(net, 2) == (("0", "2"), ("4", "6"))
    with pytest.raises(PlanError, match="model has 3 blocks"):
        default_stages(model, 4)
    uneven = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    assert default_stages(uneven, 2) == (("0",), ("1", "2", "3"))


def test_stage_placement() -> None:
    loop = Plan(pp=2, vpp=2, micro_batch_size=1, global_batch_size=4)
    assert [stages_of_rank(loop, r) for r in range(2)] == [(0, 2), (1, 3)]
    folded = loop.with_(schedule="zbv")
    assert [stages_of_rank(folded, r) for r in range(2)] == [(0, 3), (1, 2)]
    with pytest.raises(PlanError, match="no torch class"):
        schedule_class(loop.with_(schedule="chimera"))
