"""Image models under torch.autocast, held against what their library's authors measured.

The figures: `data/image_models.json`. Nothing of profiles or frameworks was fitted to these rows, but
what the gradient of a depthwise convolution's weights takes, to half of the models (`data/depthwise.json`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodel.framework import load_framework
from costmodel.graph import GraphStore
from costmodel.hardware.store import load_profile
from costmodel.models.source import ModelSource
from costmodel.plan import Plan
from costmodel.predict import Forecaster
from costmodel.predict.inference import InferenceForecaster
from planner import api

RUNS = json.loads((Path(__file__).parent / "data" / "image_models.json").read_text())["runs"]
FRAMEWORK = load_framework("pytorch-amp")


def _built(model: str) -> Any:
    import transformers as hf

    made: dict[str, Callable[[], Any]] = {
        "resnet18": lambda: hf.ResNetForImageClassification(
            hf.ResNetConfig(
                depths=[2, 2, 2, 2], layer_type="basic", hidden_sizes=[64, 128, 256, 512], num_labels=1000
            )
        ),
        "resnet50": lambda: hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=1000)),
        "vit_small_patch16_224": lambda: hf.ViTForImageClassification(
            hf.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000)
        ),
        "convnext_tiny": lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(num_labels=1000)),
        "mobilenetv2_100": lambda: hf.MobileNetV2ForImageClassification(
            hf.MobileNetV2Config(tf_padding=False, classifier_dropout_prob=0.0, num_labels=1000)
        ),
    }
    return made[model]()


def _call(model: str, layout: str, training: bool) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    import torch

    module, images = _built(model).train(training), torch.zeros(2, 3, 224, 224)
    if layout == "nhwc":
        module, images = (x.to(memory_format=torch.channels_last) for x in (module, images))
    return module, (images,), {"labels": torch.zeros(2, dtype=torch.long)} if training else {}


@pytest.fixture(scope="module")
def forecast() -> Callable[[dict[str, Any]], tuple[float, float, float]]:
    sources: dict[tuple[str, str, str], tuple[ModelSource, GraphStore]] = {}

    def found(run: dict[str, Any]) -> tuple[float, float, float]:
        training = run["task"] == "train"
        key = (run["model"], run["layout"], run["task"])
        if key not in sources:
            globals()["_this_one"] = lambda: _call(run["model"], run["layout"], training)
            sources[key] = (api.model_source(f"{__name__}:_this_one", training=training), GraphStore())
        source, graphs = sources[key]
        profile = load_profile(run["gpu"])
        if training:
            made = Forecaster(
                source=source, profile=profile, framework=FRAMEWORK, optimizer="sgd", graphs=graphs
            )
            step = made.forecast(Plan.parse(f"dp1.mbs{run['batch']}")).prediction
            return step.step_time_s, step.step_time_low_s, step.step_time_high_s
        inference = InferenceForecaster(source=source, profile=profile, framework=FRAMEWORK, graphs=graphs)
        cost = inference.forward(Plan.parse("dp1"), batch_size=run["batch"])
        return cost.time_s, *cost.interval_s

    return found


def test_steps_of_image_models(forecast: Callable[[dict[str, Any]], tuple[float, float, float]]) -> None:
    errors, inside = [], []
    for run in RUNS:
        measured_s = run["step_ms"] * 1e-3
        time_s, low_s, high_s = forecast(run)
        errors.append(time_s / measured_s - 1.0)
        inside.append(low_s <= measured_s <= high_s)
        assert abs(errors[-1]) < 0.15, run
    assert np.mean(np.abs(errors)) < 0.07
    assert abs(np.mean(errors)) < 0.05
    assert np.mean(inside) > 0.9


def test_images_with_channels_last_are_not_turned(
    forecast: Callable[[dict[str, Any]], tuple[float, float, float]],
) -> None:
    wanted = {
        r["layout"]: r
        for r in RUNS
        if r["model"] == "resnet50" and r["task"] == "infer" and r["gpu"] == "rtx-3090"
    }
    last, first = (wanted[layout] for layout in ("nhwc", "nchw"))
    told = first["step_ms"] / last["step_ms"]
    assert forecast(first)[0] / forecast(last)[0] == pytest.approx(told, abs=0.12)
