"""Memory of answers, held against real ones on the CPU and against what devices of some size can take."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from costmodel.errors import InfeasibleError
from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict.answer_memory import overhead_bytes, sampling_bytes
from costmodel.predict.inference import InferenceForecaster
from costmodel.predict.serving import serve
from planner.validation.memory_watch import MemoryWatch

LLAMA = {"num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 8, "vocab_size": 1000}
MODELS = {
    "gpt2": {"n_layer": 3, "n_embd": 128, "n_head": 8, "vocab_size": 1000, "n_positions": 256},
    "llama-2-7b": {**LLAMA, "num_key_value_heads": 8, "intermediate_size": 352},
    "mixtral-8x7b": {**LLAMA, "num_key_value_heads": 2, "intermediate_size": 256, "num_local_experts": 4},
}


def inference(name: str, device: str = "epyc-9005-core", framework: str = "pytorch") -> InferenceForecaster:
    return InferenceForecaster(
        source=resolve(name, overrides=MODELS[name], seq_len=64),
        profile=load_profile(device),
        framework=load_framework(framework),
    )


def real_answer(name: str, *, batch: int, prompt: int, output: int) -> int:
    """Most bytes that an answer holds beside parameters."""
    source = resolve(name, overrides=MODELS[name], seq_len=prompt + output, micro_batch_size=batch)
    module: Any = source.build(device="cpu").module.eval()
    tokens = torch.randint(0, 100, (batch, prompt))
    known = [*module.parameters(), *module.buffers()]
    with torch.no_grad(), MemoryWatch(known) as watch:
        before = watch.live_bytes()
        cache = None
        for _ in range(output):
            made = module(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            tokens, cache = made.logits[:, -1].argmax(-1)[:, None], made.past_key_values
            del made
        return watch.peak_bytes - before


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sizes", [(4, 192, 4), (16, 8, 64)], ids=["long prompts", "long answers"])
def test_memory_of_real_answers(name: str, sizes: tuple[int, int, int]) -> None:
    batch, prompt, output = sizes
    real = real_answer(name, batch=batch, prompt=prompt, output=output)
    answer = inference(name).generate(Plan(), batch_size=batch, prompt_len=prompt, output_len=output)
    # what frames of the model's own code hold on to is left out, at most a few results of a block's width
    assert 0.75 * real < answer.kv_cache_bytes + answer.activation_bytes < 1.05 * real
    assert answer.kv_cache_bytes < 0.8 * real or output > prompt


def with_memory(made: InferenceForecaster, memory_bytes: int) -> InferenceForecaster:
    device = made.profile.device.model_copy(update={"memory_bytes": memory_bytes})
    return InferenceForecaster(
        source=made.source,
        profile=made.profile.model_copy(update={"device": device}),
        framework=made.framework,
    )


def test_all_of_it_has_to_fit() -> None:
    made = inference("llama-2-7b", "a100-sxm4-80gb", "pytorch-bf16")
    sizes = {"batch_size": 64, "prompt_len": 192, "output_len": 4}
    answer = made.generate(Plan(), **sizes)
    parts = answer.parameter_bytes, answer.kv_cache_bytes, answer.activation_bytes, answer.overhead_bytes
    assert min(parts) > 0
    assert answer.overhead_bytes == made.framework.memory_overhead_bytes
    assert with_memory(made, sum(parts)).generate(Plan(), **sizes).fits
    assert not with_memory(made, sum(parts) - 1).generate(Plan(), **sizes).fits
    pipelined = made.generate(Plan.parse("pp3.pipelined"), **sizes)
    assert pipelined.activation_bytes < answer.activation_bytes


@pytest.mark.parametrize("load", [{"rate_per_s": 50.0}, {"concurrency": 400}])
def test_clients_have_what_a_pass_leaves(load: dict[str, Any]) -> None:
    memory_bytes = 800_000_000
    made = with_memory(inference("llama-2-7b", "a100-sxm4-80gb", "pytorch-bf16"), memory_bytes)
    served = serve(made, Plan(), prompt_len=64, output_len=64, **load)
    held = served.parameter_bytes + served.activation_bytes + served.overhead_bytes
    per_request = made.generate(Plan(), batch_size=1, prompt_len=64, output_len=64).kv_cache_bytes
    assert served.activation_bytes > 0
    assert served.most_running == pytest.approx((memory_bytes - held) / (per_request * 104 / 128), rel=0.02)
    with pytest.raises(InfeasibleError, match="activations and libraries"):
        serve(with_memory(made, held), Plan(), prompt_len=64, output_len=64, **load)


def test_clients_reach_the_rate_that_is_said_to_be_held() -> None:
    """Pages hold keys and values for both; a batch answered together joins each token to them."""
    made = inference("llama-2-7b", "a100-sxm4-80gb", "pytorch-bf16")
    sizes = {"prompt_len": 128, "output_len": 64}
    held = serve(made, Plan(), rate_per_s=1.0, **sizes).capacity_per_s
    played = serve(made, Plan(), concurrency=1000, **sizes).rate_per_s
    assert 0.6 * played < held < 1.1 * played
    joined = made.generate(Plan(), batch_size=8, **sizes).time_per_output_token_s
    assert made.in_pages().generate(Plan(), batch_size=8, **sizes).time_per_output_token_s < joined


@pytest.mark.parametrize(("device_bytes", "requests"), [(24e9, 256), (80e9, 1024)])
def test_a_server_keeps_room_to_sample_all_requests_that_may_run(device_bytes: float, requests: int) -> None:
    framework = load_framework("vllm")
    kept = sampling_bytes(framework, 128_256, device_bytes=device_bytes)
    assert kept == requests * 128_256 * framework.sampled_logit_bytes
    assert sampling_bytes(load_framework("pytorch-bf16"), 128_256, device_bytes=device_bytes) == 0


def test_ranks_of_a_layer_hold_buffers_of_their_collectives() -> None:
    framework = load_framework("vllm")
    alone, shared = (overhead_bytes(framework, ranks) for ranks in (1, 2))
    assert shared - alone == framework.ranks_overhead_bytes > 0


@pytest.mark.parametrize(
    ("model", "tp", "kept_gib"),
    [("llama-3.1-8b", 1, 58.11), ("llama-3.1-8b", 2, 63.76), ("llama-3.1-8b", 4, 67.44)],
)
def test_keys_and_values_get_what_a_server_s_log_says(model: str, tp: int, kept_gib: float) -> None:
    """vLLM 0.19 on H100, 95 % of its memory (llm-d-incubation/llm-d-planner, accuracy_report.md)."""
    framework = load_framework("vllm").model_copy(update={"device_memory_fraction": 0.95})
    made = InferenceForecaster(
        source=resolve(model, seq_len=64), profile=load_profile("h100-sxm5-80gb"), framework=framework
    )
    sizes = {"prompt_len": 1024, "output_len": 256}
    alone = made.generate(Plan(tp=tp), batch_size=1, **sizes)
    held = alone.parameter_bytes + alone.overhead_bytes + made.pass_bytes(Plan(tp=tp), **sizes)
    free = 0.95 * alone.device_memory_bytes - held
    assert free / 2**30 == pytest.approx(kept_gib, rel=0.01)
