"""The verbs as Python calls."""

from __future__ import annotations

import pytest

from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict.inference import InferenceForecaster
from planner import api

GPU = "a100-sxm4-80gb"


def forward_s(task: str) -> float:
    forecaster = InferenceForecaster(
        source=resolve("gpt2", seq_len=128, task=task),
        profile=load_profile(GPU),
        framework=load_framework("pytorch-bf16"),
    )
    return forecaster.forward(Plan(), batch_size=1).time_s


def test_inference_has_no_loss() -> None:
    answer = api.infer("gpt2", hardware=GPU, seq_len=128)
    assert answer.time_s == pytest.approx(forward_s("inference"))
    assert answer.time_s < 0.95 * forward_s("train")


def test_the_order_of_a_breakdown_does_not_hang_on_hashes() -> None:
    answer = api.infer("gpt2", hardware=GPU, plan="tp2", prompt_len=64, output_len=8)
    first = api.infer("gpt2", hardware=GPU, plan="tp2", seq_len=64)
    assert list(answer.breakdown_s)[: len(first.breakdown_s)] == list(first.breakdown_s)


def test_overrides_are_read_as_literals_where_they_are() -> None:
    assert api.parse_overrides(["n_layer=4", "tie=false", "name=a=b"]) == {
        "n_layer": 4,
        "tie": False,
        "name": "a=b",
    }
