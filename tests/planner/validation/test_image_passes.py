"""Eager passes of image models on one GPU beside the times that transformers' documentation gives.

Nothing was fitted to these rows. Held to bounds are 16 images on A100 and V100. Left out: fewer images, which
wait for a host that nobody describes (at 40 us an operator six models' passes of one image come out within
-25 to +7 % on both), T4 (2 to 25 % short, its 70 W) and Segformer (29 to 52 % short, not
explained).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from costmodel.framework import load_framework
from costmodel.graph import GraphStore
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict.inference import InferenceForecaster

FILE = Path(__file__).parent / "data" / "image_passes.json"
Given = tuple[nn.Module, tuple[()], dict[str, torch.Tensor]]


def given(module: nn.Module, pixels: int) -> Given:
    return module.eval(), (), {"pixel_values": torch.zeros(1, 3, pixels, pixels)}


def vit() -> Given:
    from transformers import ViTConfig, ViTForImageClassification

    return given(ViTForImageClassification(ViTConfig(num_labels=1000, attn_implementation="eager")), 224)


def beit() -> Given:
    from transformers import BeitConfig, BeitForImageClassification

    config = BeitConfig(num_labels=21841, use_relative_position_bias=True, attn_implementation="eager")
    return given(BeitForImageClassification(config), 224)


def convnext() -> Given:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    sizes = {"hidden_sizes": [192, 384, 768, 1536], "depths": [3, 3, 27, 3]}
    return given(ConvNextForImageClassification(ConvNextConfig(num_labels=1000, **sizes)), 224)


def resnet() -> Given:
    from transformers import ResNetConfig, ResNetForImageClassification

    return given(ResNetForImageClassification(ResNetConfig(num_labels=1000)), 224)


def mobilenet() -> Given:
    from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation

    config = MobileNetV2Config(num_labels=21, output_stride=8, finegrained_output=False)
    return given(MobileNetV2ForSemanticSegmentation(config), 513)


def measured() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("model", "bound"),
    [("vit", 0.08), ("beit", 0.03), ("convnext", 0.17), ("resnet", 0.05), ("mobilenet", 0.11)],
)
def test_sixteen_images_are_forecast_within_what_is_reached(model: str, bound: float) -> None:
    rows = measured()["milliseconds"]
    for gpu in ("a100-sxm4-40gb", "v100-sxm2-16gb"):
        made = InferenceForecaster(
            source=resolve(f"{__name__}:{model}"),
            profile=load_profile(gpu),
            framework=load_framework("pytorch"),
            graphs=GraphStore(),
        )
        found = 1e3 * made.forward(Plan(), batch_size=16).time_s / rows[gpu][model][2]
        assert abs(found - 1.0) < bound, (gpu, found)


def test_the_table_holds_what_the_documentation_says() -> None:
    rows = measured()["milliseconds"]
    assert {len(models) for models in rows.values()} == {7}
    assert sum(len(times) for models in rows.values() for times in models.values()) == 61
    assert all(
        times == sorted(times) for models in rows.values() for times in models.values() if times[0] > 7
    )
