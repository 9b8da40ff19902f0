"""`infer`: what it answers with, and what it says of what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from costmodel.errors import PlanError, UsageError
from costmodel.framework import load_framework
from costmodel.hardware.host_machine import load_host
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.models.images import UNSEEN
from costmodel.plan import Plan
from costmodel.predict.inference import InferenceForecaster
from planner import sizes
from planner.answering import infer
from tests.costmodel.models.test_images import LLAVA

SMALL = {"n_layer": 2, "n_embd": 128, "n_head": 4}


def test_no_loss_is_computed_where_nothing_is_trained() -> None:
    found = infer("gpt2", hardware="a100-sxm4-80gb", seq_len=128, overrides=SMALL)
    source = resolve("gpt2", micro_batch_size=1, seq_len=128, overrides=SMALL, task="inference")
    made = InferenceForecaster(
        source=source, profile=load_profile("a100-sxm4-80gb"), framework=load_framework("pytorch-bf16")
    )
    assert found.time_s == pytest.approx(made.forward(Plan(), batch_size=1).time_s)


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt_len": 32, "output_len": 4},
        {"prompt_len": 32, "output_len": 4, "rate_per_s": 1.0},
        {"seq_len": 64},
    ],
)
def test_a_model_that_sees_images_says_that_it_answers_text(tmp_path: Path, asked: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAVA))
    answer = infer(str(tmp_path), hardware="a100-sxm4-80gb", **asked)
    assert any(w.startswith(UNSEEN) for w in answer.warnings)
    assert any(w.startswith(UNSEEN) for w in answer.to_dict()["warnings"])


def test_sizing_servers_says_so_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAVA))
    sized = sizes.size_for_serving(
        str(tmp_path), hardware="a100-sxm4-80gb", prompt_len=32, output_len=4, rate_per_s=1.0
    )
    assert any(w.startswith(UNSEEN) for w in sized.to_dict()["warnings"])


def test_prompt_and_output_go_together() -> None:
    with pytest.raises(UsageError, match="go together"):
        infer("gpt2", hardware="a100-sxm4-80gb", prompt_len=8)


@pytest.mark.parametrize(
    ("option", "unread"),
    [
        ("--seq", {"seq_len": 64}),
        ("--steps", {"steps": 2}),
        ("--batch", {"batch_size": 4, "rate_per_s": 1.0}),
        ("--batch", {"batch_size": 4, "concurrency": 2}),
    ],
)
def test_options_that_answers_would_not_read_are_refused(option: str, unread: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{option} .* beside --.*leave"):
        infer("gpt2", hardware="a100-sxm4-80gb", prompt_len=8, output_len=4, overrides=SMALL, **unread)


@pytest.mark.parametrize("load", [{"rate_per_s": 3.0}, {"concurrency": 4}])
def test_replicas_share_the_requests(load: dict[str, Any]) -> None:
    asked = {"hardware": "a100-sxm4-80gb", "prompt_len": 32, "output_len": 8, "overrides": SMALL}
    one = infer("gpt2", plan="dp1", **asked, **load).to_dict()
    three = infer("gpt2", plan="dp3", **asked, **{name: 3 * value for name, value in load.items()}).to_dict()
    for name in ("rate_per_s", "concurrency", "tokens_per_s", "capacity_per_s", "most_running"):
        assert three[name] == pytest.approx(3 * one[name]), name
    for name in ("time_to_first_token_s", "latency_s", "kv_cache_bytes", "parameter_bytes"):
        assert three[name] == pytest.approx(one[name]), name
    few = infer("gpt2", plan="dp3", **asked, concurrency=2).to_dict()
    assert few["concurrency"] <= 2


def test_replicas_answer_their_batches_side_by_side() -> None:
    sizes = {"batch_size": 4, "prompt_len": 32, "output_len": 4}
    one, two = (
        infer("gpt2", hardware="a100-sxm4-80gb", plan=plan, overrides=SMALL, **sizes)
        for plan in ("dp1", "dp2")
    )
    assert two.latency_s == pytest.approx(one.latency_s)
    assert two.tokens_per_s == pytest.approx(2 * one.tokens_per_s)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_rate_is_a_positive_number(rate: float) -> None:
    with pytest.raises(PlanError, match="must be positive"):
        infer("gpt2", hardware="a100-sxm4-80gb", prompt_len=8, output_len=4, rate_per_s=rate, overrides=SMALL)


def test_weights_that_stream_from_a_host_fit_it(tmp_path: Path) -> None:
    host = load_host("workstation").model_copy(update={"memory_bytes": 1e6})
    (tmp_path / "host.json").write_text(host.model_dump_json())
    asked = {"hardware": "a100-sxm4-80gb", "prompt_len": 8, "output_len": 4, "overrides": SMALL}
    small = {**asked, "host": str(tmp_path / "host.json")}
    found = infer("gpt2", plan="zero-inference", **small)
    assert not found.to_dict()["fits"]
    assert found.warnings[0].startswith("DOES NOT FIT the host")
    assert infer("gpt2", plan="zero-inference", **asked).to_dict()["fits"]
    for plan in ("dp1", "zero-inference-nvme"):
        assert infer("gpt2", plan=plan, **small).to_dict()["fits"]
