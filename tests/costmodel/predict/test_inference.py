"""Inference against bounds that no machine can beat and identities that any forecast must keep."""

from __future__ import annotations

import pytest

from costmodel.errors import PlanError
from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict.inference import InferenceForecaster, InferencePrediction
from costmodel.predict.passes import Attending, PassCosts

GPT = {"n_layer": 4, "n_embd": 1024, "n_head": 16, "vocab_size": 1024, "n_positions": 2048}
WIDTH, LAYERS = 1024, 4


def inference(name: str = "gpt2", overrides: object = GPT, **source: int) -> InferenceForecaster:
    given = dict(overrides) if isinstance(overrides, dict) else {}
    return InferenceForecaster(
        source=resolve(name, overrides=given, **source),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework("pytorch-bf16"),
    )


@pytest.fixture(scope="module")
def gpt() -> InferenceForecaster:
    return inference(seq_len=512)


def test_an_answer_is_its_first_token_and_the_others(gpt: InferenceForecaster) -> None:
    answer = gpt.generate(Plan(), batch_size=4, prompt_len=512, output_len=33)
    expected = answer.time_to_first_token_s + 32 * answer.time_per_output_token_s
    assert answer.latency_s == pytest.approx(expected)
    assert sum(answer.breakdown_s.values()) == pytest.approx(answer.latency_s)
    assert answer.tokens_per_s == pytest.approx(4 * 33 / answer.latency_s)
    low_s, high_s = answer.interval_s
    assert low_s < answer.latency_s < high_s


def test_cache_holds_keys_and_values_of_every_token(gpt: InferenceForecaster) -> None:
    answer = gpt.generate(Plan(), batch_size=4, prompt_len=512, output_len=32)
    assert answer.kv_cache_bytes == 2 * 2 * LAYERS * WIDTH * 4 * (512 + 32)
    assert answer.parameter_bytes == pytest.approx(2 * (12 * WIDTH**2 * LAYERS), rel=0.15)
    assert answer.fits


def test_no_token_is_faster_than_reading_the_weights(gpt: InferenceForecaster) -> None:
    answer = gpt.generate(Plan(), batch_size=1, prompt_len=128, output_len=16)
    blocks_bytes = 2 * 12 * WIDTH**2 * LAYERS
    assert answer.time_per_output_token_s > blocks_bytes / gpt.profile.device.memory_bytes_per_s
    assert answer.time_to_first_token_s < 128 * answer.time_per_output_token_s


def test_no_prompt_is_faster_than_its_arithmetic(gpt: InferenceForecaster) -> None:
    answer = gpt.generate(Plan(), batch_size=8, prompt_len=1024, output_len=2)
    flop = 2 * 12 * WIDTH**2 * LAYERS * 8 * 1024
    assert answer.time_to_first_token_s > flop / gpt.profile.device.peak_flop_per_s["bf16"]


def test_longer_contexts_and_batches_take_longer_but_share_the_weights(gpt: InferenceForecaster) -> None:
    def per_token(batch: int, prompt: int) -> float:
        answer = gpt.generate(Plan(), batch_size=batch, prompt_len=prompt, output_len=2)
        return answer.time_per_output_token_s

    assert per_token(16, 2000) > per_token(16, 100)
    assert per_token(1, 100) <= per_token(16, 100) < 16 * per_token(1, 100)


def test_tensor_parallelism_divides_weights_and_cache(gpt: InferenceForecaster) -> None:
    one = gpt.generate(Plan(), batch_size=4, prompt_len=512, output_len=32)
    two = gpt.generate(Plan(tp=2), batch_size=4, prompt_len=512, output_len=32)
    assert two.kv_cache_bytes == one.kv_cache_bytes // 2
    assert two.parameter_bytes < 0.7 * one.parameter_bytes
    assert two.breakdown_s["tp_comm"] > 0


def test_a_layer_split_saves_memory_not_time(gpt: InferenceForecaster) -> None:
    one = gpt.generate(Plan(), batch_size=4, prompt_len=512, output_len=32)
    split = gpt.generate(Plan(pp=2), batch_size=4, prompt_len=512, output_len=32)
    assert split.latency_s > one.latency_s
    assert split.parameter_bytes == pytest.approx(one.parameter_bytes / 2, abs=1)
    assert split.breakdown_s["pp_comm"] > 0


def test_models_without_tokens_have_a_forward_pass() -> None:
    images = inference("resnet-50", {"image_size": 64})
    one, many = (images.forward(Plan(), batch_size=b) for b in (1, 64))
    assert one.time_s < many.time_s < 64 * one.time_s
    with pytest.raises(PlanError, match="no sequence"):
        images.generate(Plan(), batch_size=1, prompt_len=8, output_len=8)


def test_without_attention_over_the_context_no_token_is_priced() -> None:
    unfused = InferenceForecaster(
        source=resolve("gpt2", overrides=GPT, seq_len=128),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework("megatron"),
    )
    with pytest.raises(PlanError, match="attention=flash"):
        unfused.generate(Plan(), batch_size=1, prompt_len=128, output_len=8)


@pytest.mark.parametrize("sizes", [(0, 8, 8), (1, 0, 8), (1, 8, 0)])
def test_sizes_are_positive(gpt: InferenceForecaster, sizes: tuple[int, int, int]) -> None:
    batch, prompt, output = sizes
    with pytest.raises(PlanError, match="must be at least 1"):
        gpt.generate(Plan(), batch_size=batch, prompt_len=prompt, output_len=output)


def test_a_narrow_cache_is_half_as_large_and_quicker_to_read() -> None:
    def answer(cache: str) -> InferencePrediction:
        framework = load_framework("tensorrt-llm").model_copy(update={"cache_dtype": cache})
        inference = InferenceForecaster(
            source=resolve("gpt2", overrides={"n_layer": 4}, seq_len=1024),
            profile=load_profile("h100-sxm5-80gb"),
            framework=framework.model_copy(update={"compute_dtype": "bf16"}),
        )
        return inference.generate(Plan(), batch_size=256, prompt_len=512, output_len=512)

    same, narrow = answer("same"), answer("fp8")
    assert narrow.kv_cache_bytes == same.kv_cache_bytes / 2
    assert narrow.time_per_output_token_s < same.time_per_output_token_s


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_narrow_cache_measured_beside_one_half_type_serves_the_other(dtype: str) -> None:
    framework = load_framework("vllm").model_copy(update={"cache_dtype": "fp8", "compute_dtype": dtype})
    found = InferenceForecaster(
        source=resolve("gpt2", seq_len=64), profile=load_profile("h100-sxm5-80gb"), framework=framework
    )
    assert found.cache_type() == f"{dtype}+fp8kv"


def test_kernels_of_one_query_head_take_shared_keys_once_for_each() -> None:
    """Key heads: 32 of 32 are limited by memory, 2 of 32 by what multiprocessors take."""

    def decode_s(kv_heads: int, elements_per_s: float) -> float:
        sizes = {"num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": kv_heads}
        framework = load_framework("tensorrt-llm")
        found = InferenceForecaster(
            source=resolve("llama-3.1-8b", overrides=sizes, seq_len=64),
            profile=load_profile("h100-sxm5-80gb"),
            framework=framework.model_copy(update={"decode_elements_per_s": elements_per_s}),
        )
        lengths = {"prompt_len": 2048, "output_len": 16}
        return found.generate(Plan(), batch_size=64, **lengths).time_per_output_token_s

    kept = 2 * 64 * (2048 + 8) * 32 * 2 * 128
    assert decode_s(32, 1e12) == pytest.approx(decode_s(32, 5e11))
    slow, quick = decode_s(2, 1e10), decode_s(2, 2e10)
    assert slow - quick == pytest.approx(kept / (132 * 2e10), rel=0.01)
    assert decode_s(2, 1e12) < quick


def test_a_cache_joined_by_copies_takes_their_time() -> None:
    def token_s(*, joined: bool, output: int) -> float:
        framework = load_framework("pytorch-bf16").model_copy(update={"cache_concatenated": joined})
        inference = InferenceForecaster(
            source=resolve("gpt2", overrides=GPT, seq_len=512),
            profile=load_profile("a100-sxm4-80gb"),
            framework=framework,
        )
        answer = inference.generate(Plan(), batch_size=64, prompt_len=512, output_len=output)
        return answer.time_per_output_token_s

    def extra_s(output: int) -> float:
        return token_s(joined=True, output=output) - token_s(joined=False, output=output)

    kept_bytes = 2 * LAYERS * 64 * (512 + 256) * WIDTH * 2
    assert extra_s(512) >= 2 * kept_bytes / 2.04e12, "read and written at no more than the memory's bandwidth"
    assert extra_s(1024) > extra_s(512)


def test_answers_of_encoder_decoders_are_refused() -> None:
    small = {"num_layers": 1, "num_decoder_layers": 1, "vocab_size": 128}
    with pytest.raises(PlanError, match=r"t5-small is an encoder-decoder.*forward pass"):
        inference("t5-small", small).generate(Plan(), batch_size=1, prompt_len=8, output_len=4)


def test_more_ranks_than_key_heads_each_keep_one() -> None:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 1024}
    four, eight = (
        inference("llama-3.1-8b", sizes, seq_len=128).generate(
            Plan(tp=tp, dp=1), batch_size=4, prompt_len=128, output_len=16
        )
        for tp in (4, 8)
    )
    assert eight.kv_cache_bytes == four.kv_cache_bytes == 2 * 2 * 2 * 128 * 4 * (128 + 16)


def test_a_server_s_framework_answers_a_batch_with_the_kernels_of_its_passes() -> None:
    """Projections that read one tensor are one product: a token of a batch takes what it takes in a pass."""
    source = resolve("llama-3.1-8b", overrides={"num_hidden_layers": 4, "vocab_size": 32000}, seq_len=1)
    profile, framework = load_profile("a100-sxm4-80gb"), load_framework("vllm")
    apart = framework.model_copy(update={"merges_projections": False})
    merged, separate = (
        InferenceForecaster(source=source, profile=profile, framework=f) for f in (framework, apart)
    )
    for batch in (1, 16):
        sizes = {"batch_size": batch, "prompt_len": 512, "output_len": 2}
        token_s = merged.generate(Plan(), **sizes).time_per_output_token_s
        in_pass_s = PassCosts(merged, Plan()).seconds([Attending(requests=batch, tokens=1, context=513)])
        assert token_s == pytest.approx(in_pass_s, rel=0.05)
        assert token_s < 0.97 * separate.generate(Plan(), **sizes).time_per_output_token_s


def test_requests_of_a_batch_each_cost_the_host_their_time() -> None:
    source = resolve("gpt2", overrides=GPT, seq_len=512)
    plain = load_framework("vllm").model_copy(update={"request_overhead_s": 0.0})
    slow = plain.model_copy(update={"request_overhead_s": 1e-4})
    answers = [
        InferenceForecaster(source=source, profile=load_profile("a100-sxm4-80gb"), framework=f).generate(
            Plan(), batch_size=8, prompt_len=64, output_len=16
        )
        for f in (plain, slow)
    ]
    more_s = answers[1].time_per_output_token_s - answers[0].time_per_output_token_s
    assert more_s == pytest.approx(8e-4)
    assert answers[1].breakdown_s["host"] == pytest.approx(answers[0].breakdown_s["host"] + 16 * 8e-4)


def test_a_compiler_s_vector_products_read_the_weights_at_the_memory_s_rate() -> None:
    source = resolve("llama-3.1-8b", overrides={"num_hidden_layers": 4, "vocab_size": 32000}, seq_len=1)
    profile, framework = load_profile("a100-sxm4-80gb"), load_framework("gpt-fast")
    library = framework.model_copy(update={"vector_products": ()})
    own, others = (
        InferenceForecaster(source=source, profile=profile, framework=f) for f in (framework, library)
    )

    def token_s(made: InferenceForecaster, batch: int) -> float:
        answer = made.generate(Plan(), batch_size=batch, prompt_len=8, output_len=2)
        return answer.time_per_output_token_s

    weights = 2 * (4 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096) + 32000 * 4096)
    assert weights / profile.device.memory_bytes_per_s < token_s(own, 1) < 0.9 * token_s(others, 1)
    assert token_s(own, 2) == pytest.approx(token_s(others, 2))
