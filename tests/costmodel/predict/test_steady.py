"""A server at a steady rate: Little's law on iterations that are given, and the same server under clients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from costmodel.errors import InfeasibleError
from costmodel.framework import FrameworkProfile, load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict.inference import InferenceForecaster
from costmodel.predict.serving import ServingPrediction, serve
from costmodel.predict.steady import prompts_s, steady_state

SIZES = {"n_layer": 32, "n_embd": 2048, "n_head": 16}


@dataclass(frozen=True)
class _Given:
    """Decodes of 20 ms; `prompt_s` for each prompt, or for any number of them."""

    prompt_s: float = 0.1
    together: bool = False

    def decode_s(self, running: float) -> float:
        return 0.02

    def added_s(self, prompts: float, running: float) -> float:
        return self.prompt_s * (1.0 if self.together else prompts)

    def first_s(self, prompts: float, running: float, iteration_s: float) -> float:
        return 0.0


def test_little_s_law_of_a_constant_decode() -> None:
    found = steady_state(_Given(), 100, rate_per_s=2.0, most=64)
    assert found is not None
    running, iteration_s = found
    assert iteration_s == pytest.approx(0.02 / 0.8)
    assert running == pytest.approx(2.0 * 100 * iteration_s)
    assert steady_state(_Given(), 100, rate_per_s=10.0, most=64) is None, "prompts fill the time"
    assert steady_state(_Given(), 100, rate_per_s=9.0, most=64) is None, "the memory is full"


@pytest.mark.parametrize("mean", [0.01, 0.7, 5.0, 31.0, 33.0])
def test_prompts_come_as_they_like(mean: float) -> None:
    """Of a cost per prompt the mean counts; of a cost of any prompts the chance that one came."""
    assert prompts_s(_Given(), mean, 1.0) == pytest.approx(0.1 * mean, rel=1e-4)
    assert prompts_s(_Given(together=True), mean, 1.0) == pytest.approx(0.1 * -math.expm1(-mean), rel=1e-4)


def _server(framework: str) -> InferenceForecaster:
    return InferenceForecaster(
        source=resolve("gpt2", overrides=SIZES, seq_len=128),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework(framework),
    )


@pytest.mark.parametrize("framework", ["pytorch-bf16", "sglang", "vllm"])
@pytest.mark.parametrize("clients", [2, 16, 48])
def test_a_rate_and_clients_that_reach_it_wait_as_long_for_a_token(framework: str, clients: int) -> None:
    made, sizes = _server(framework), {"prompt_len": 512, "output_len": 128}
    played = serve(made, Plan(), concurrency=clients, **sizes)
    steady = serve(made, Plan(), rate_per_s=played.rate_per_s, **sizes)
    assert steady.time_per_output_token_s == pytest.approx(played.time_per_output_token_s, rel=0.07)
    assert steady.concurrency == pytest.approx(played.concurrency, rel=0.1)


def test_a_front_end_bounds_the_rate() -> None:
    slow = _server("vllm")
    slow.framework = slow.framework.model_copy(update={"frontend_request_s": 0.5})
    sizes = {"prompt_len": 64, "output_len": 16}
    assert serve(slow, Plan(), rate_per_s=1.0, **sizes).capacity_per_s < 2.0
    with pytest.raises(InfeasibleError, match="that it can hold"):
        serve(slow, Plan(), rate_per_s=2.0, **sizes)


def test_requests_come_through_the_front_end_of_a_pipeline_too() -> None:
    without = load_framework("vllm").model_copy(
        update=dict.fromkeys(
            ("arrival_overhead_s", "frontend_prompt_token_s", "frontend_token_s", "frontend_request_s"), 0.0
        )
    )
    slow = without.model_copy(update={"arrival_overhead_s": 0.5, "frontend_request_s": 0.25})

    def served(framework: FrameworkProfile) -> ServingPrediction:
        made = InferenceForecaster(
            source=resolve("gpt2", overrides=SIZES, seq_len=128),
            profile=load_profile("a100-sxm4-80gb"),
            framework=framework,
        )
        return serve(made, Plan(pp=2), prompt_len=64, output_len=16, rate_per_s=1.0)

    quick, late = served(without), served(slow)
    assert late.time_to_first_token_s == pytest.approx(quick.time_to_first_token_s + 0.75)
    assert late.time_per_output_token_s == pytest.approx(quick.time_per_output_token_s)
    assert late.capacity_per_s == pytest.approx(4.0), "one process reads a request in a quarter of a second"
