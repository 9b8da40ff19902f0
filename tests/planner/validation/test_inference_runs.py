"""Inference of other projects, forecast as a user would ask for it, beside what they measured.

Nothing was fitted to these rows. Bounds are what was reached, with room; left out of them and said in the
README: MI300X under vLLM of 2024, and four L40S, whose hosts differ in their links.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

import pytest

from tests.planner.validation.inference_runs import Run, forecast, runs


def errors(found: tuple[Run, ...]) -> list[float]:
    return [run.error(forecast(run)) for run in found]


@pytest.mark.parametrize(
    ("wanted", "bound"),
    [
        ({"project": "llm-inference-bench", "framework": "vllm", "gpu": "a100-sxm4-40gb", "tp": 1}, 0.09),
        ({"project": "llm-inference-bench", "framework": "deepspeed"}, 0.12),
        ({"project": "llm-inference-bench", "framework": "tensorrt-llm"}, 0.13),
        ({"project": "lmdeploy", "tp": 1}, 0.08),
        ({"project": "torchao", "products": "same"}, 0.08),
        ({"project": "torchao"}, 0.18),
        ({"project": "tinychat", "gpu": "rtx-a6000", "products": "int4_wo"}, 0.11),
        ({"project": "tinychat", "gpu": "rtx-4090", "products": "int4_wo"}, 0.37),
        ({"project": "tinychat", "framework": "pytorch-fp16"}, 0.25),
        ({"project": "tensorrt-bert", "gpu": "a100-sxm4-40gb"}, 0.42),
        ({"project": "tensorrt-bert", "gpu": "t4"}, 0.13),
    ],
)
def test_batches_are_forecast_within_what_is_reached(wanted: dict[str, Any], bound: float) -> None:
    found = errors(runs(**wanted))
    assert mean(map(abs, found)) < bound, found


@pytest.mark.parametrize(
    ("wanted", "outputs", "bound"),
    [
        ({"project": "nim", "gpu": "gh200-96gb"}, (1000,), 0.14),
        ({"project": "tensorrt-llm", "gpu": "l40s", "model": "llama-3.1-8b"}, (128, 1000), 0.09),
        ({"project": "tensorrt-llm", "gpu": "h100-sxm5-80gb", "model": "mixtral-8x7b"}, (128, 500), 0.12),
        ({"project": "tensorrt-llm", "gpu": "h100-sxm5-80gb", "model": "llama-3.1-70b"}, (128, 500), 0.12),
        ({"project": "tensorrt-llm", "gpu": "b200", "model": "llama-3.1-405b"}, (128, 1000), 0.09),
    ],
)
def test_servers_under_load_reach_what_was_measured(
    wanted: dict[str, Any], outputs: tuple[int, ...], bound: float
) -> None:
    found = errors(tuple(run for run in runs(**wanted) if run.sizes[2] in outputs))
    assert mean(map(abs, found)) < bound, found


def test_the_table_holds_what_its_projects_measured() -> None:
    found = runs()
    assert len(found) == 168
    assert len({run.group["project"] for run in found}) == 7
    assert len({run.group["gpu"] for run in found}) == 13
    assert all(run.measured > 0 for run in found)
