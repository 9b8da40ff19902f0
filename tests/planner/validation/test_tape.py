"""Stages cut from a tape compute the model's loss and gradients, hold each parameter once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from costmodel.errors import PlanError
from planner.validation.model_source import loss_of, named_inputs
from planner.validation.tape import StageModule, cut, first_called, record
from tests.planner.validation.sample_models import mixed, perceptron


def run_stages(model: nn.Module, inputs: dict[str, torch.Tensor], points: list[str]) -> list[StageModule]:
    """Build the stages, run them in order, backward from the loss; returns them with gradients."""
    batch = next(iter(inputs.values())).shape[0]
    tape = record(model, inputs, batch=batch, cut_points=points, loss_of=loss_of)
    plans = cut(tape, points)
    stages = [
        StageModule(copy.deepcopy(model), tape, plan, is_last=plan.index == len(points) - 1) for plan in plans
    ]
    values: tuple[torch.Tensor, ...] = (inputs[stages[0].first_input],)
    for stage, plan in zip(stages, plans, strict=True):
        named = {k: inputs[k] for k in plan.inputs if k != stage.first_input}
        result = stage(*values, **named)
        values = result if isinstance(result, tuple) else (result,)
    values[0].backward()
    return stages


@pytest.mark.parametrize(
    "points", [["", "blocks.1"], ["", "blocks.1", "head"], ["", "blocks.0", "blocks.1", "blocks.2"]]
)
def test_gradients_equal_the_whole_models(points: list[str]) -> None:
    torch.manual_seed(0)
    model, args = mixed()
    inputs = named_inputs(model, args, {})
    whole = copy.deepcopy(model)
    loss_of(whole(**inputs)).backward()
    points = ["blocks.0" if p == "" else p for p in points] if "blocks.0" not in points else points[1:]
    stages = run_stages(model, inputs, points)
    expected = {name: p.grad for name, p in whole.named_parameters()}
    seen: list[str] = []
    for stage in stages:
        for name, parameter in stage.model.named_parameters():
            seen.append(name)
            torch.testing.assert_close(parameter.grad, expected[name])
    assert sorted(seen) == sorted(expected), "every parameter on exactly one stage"


def test_masks_are_made_again_and_skips_travel() -> None:
    torch.manual_seed(0)
    model, args = mixed()
    inputs = named_inputs(model, args, {})
    points = ["blocks.0", "blocks.2"]
    tape = record(model, inputs, batch=4, cut_points=points, loss_of=loss_of)
    first, last = cut(tape, points)
    assert first.receives == ()
    assert last.inputs == ("lengths",), "the boolean mask is made from the inputs by the stage that needs it"
    assert [tuple(tape.samples[v].shape) for v in last.receives] == [(4, 6, 16), (4, 6, 16)]
    assert first.sends == last.receives


class _Turned(nn.Module):
    """What the second layer gets is a view in another order, as T5's bias of positions is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).transpose(1, 2)).sum()


def test_views_are_sent_as_tensors_of_their_own() -> None:
    torch.manual_seed(0)
    model, inputs = _Turned(), {"x": torch.randn(2, 3, 4)}
    whole = copy.deepcopy(model)
    whole(**inputs).backward()
    tape = record(model, inputs, batch=2, cut_points=["first", "second"], loss_of=loss_of)
    stage = StageModule(model, tape, cut(tape, ["first", "second"])[0], is_last=False)
    assert stage(inputs["x"]).is_contiguous()
    for part in run_stages(copy.deepcopy(whole), inputs, ["first", "second"]):
        for name, parameter in part.model.named_parameters():
            torch.testing.assert_close(parameter.grad, dict(whole.named_parameters())[name].grad)


def test_stages_out_of_order_are_refused() -> None:
    model, args = perceptron()
    inputs = named_inputs(model, args, {})
    points = ["4", "2"]
    tape = record(model, inputs, batch=8, cut_points=points, loss_of=loss_of)
    with pytest.raises(PlanError, match="order of the stages"):
        cut(tape, points)


def test_a_stage_that_names_no_module_is_refused() -> None:
    model, args = mixed()
    inputs = named_inputs(model, args, {})
    with pytest.raises(PlanError, match="not a module"):
        record(model, inputs, batch=4, cut_points=["blocks.0", "blocks.9"], loss_of=loss_of)
    assert first_called(model, ["", "nothing", "blocks", "blocks.1"], ["blocks.0"]) == "blocks.1"
    assert first_called(model, ["blocks"]) == "blocks.0"  # a list is not called, what is in it is
    with pytest.raises(PlanError, match="holds no module"):
        first_called(model, ["blocks", "blocks.7"], ["blocks.0"])


def test_a_stage_does_not_begin_with_the_module_that_holds_all_stages() -> None:
    """Sums between layers belong to the module around them, layers may be lists of called modules."""

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]) for _ in range(2))
            self.norm = nn.LayerNorm(4)

    stages = [["first", "t.layers.0", "t"], ["t", "t.layers.1", "t", "t.norm"]]
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "t": Around()})
    assert first_called(model, stages[0]) == "first"
    assert first_called(model, stages[1], stages[0]) == "t.layers.1.0"


def test_what_has_no_gradient_does_not_cross() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(4, 2)
            self.expert = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            chosen = self.router(x).argmax(-1)
            return (self.expert(x) * chosen[:, None]).sum()

    model = Routed()
    inputs = {"x": torch.randn(3, 4)}
    points = ["router", "expert"]
    tape = record(model, inputs, batch=3, cut_points=points, loss_of=loss_of)
    with pytest.raises(PlanError, match="would cross"):
        cut(tape, points)


def test_recording_leaves_the_model_as_it_was() -> None:
    model, args = mixed()
    inputs = named_inputs(model, args, {})
    before = loss_of(model(**inputs))
    record(model, inputs, batch=4, cut_points=["blocks.0", "blocks.1"], loss_of=loss_of)
    assert all("forward" not in vars(m) for m in model.modules())
    torch.testing.assert_close(loss_of(model(**inputs)), before)
