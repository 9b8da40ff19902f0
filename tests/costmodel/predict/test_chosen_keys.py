"""Chosen keys: what is scored, chosen and attended to."""

from __future__ import annotations

from typing import Any

import pytest

from costmodel.framework import load_framework
from costmodel.graph.model_graph import Operator, Phase, Segment
from costmodel.hardware.store import load_profile
from costmodel.models import resolve_config
from costmodel.plan import Plan
from costmodel.predict.chosen_keys import ChosenKeys
from costmodel.predict.inference import InferenceForecaster, InferencePrediction
from costmodel.predict.serving import serve

_CONFIG: dict[str, Any] = {
    "index_topk": 4,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "q_lora_rank": 32,
    "hidden_size": 64,
}
_LATENT: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 2048,
    "moe_intermediate_size": 512,
    "vocab_size": 32000,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 3,
    "q_lora_rank": 384,
    "kv_lora_rank": 256,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_group": 1,
    "topk_group": 1,
}
_SCORED = {"index_topk": 512, "index_n_heads": 8, "index_head_dim": 64}


def _inference(model_type: str, framework: str = "vllm", **config: Any) -> InferenceForecaster:
    whole = {"model_type": model_type, **_LATENT, **config}
    return InferenceForecaster(
        source=resolve_config(whole, name=model_type, seq_len=64),
        profile=load_profile("H100-SXM5-80GB"),
        framework=load_framework(framework),
    )


def _answer(
    forecaster: InferenceForecaster, prompt_len: int, tp: int = 1, batch_size: int = 4
) -> InferencePrediction:
    return forecaster.generate(Plan(tp=tp), batch_size=batch_size, prompt_len=prompt_len, output_len=16)


def _call(kind: str, variant: str, **dims: int) -> Operator:
    return Operator(
        index=0,
        target=kind,
        kind=kind,
        variant=variant,
        dtype="bf16",
        dims=dims,
        flop=0,
        bytes_read=0,
        bytes_written=0,
        inputs=(),
        outputs=(),
        phase=Phase.FORWARD,
        module="",
    )


_PRODUCT = _call("gemm", "nt", m=1, n=1, k=1)
_STREAM = _call("elementwise", "copy", rows=1, cols=1, bytes=1)


def _few() -> ChosenKeys:
    found = ChosenKeys.of(_CONFIG)
    assert found is not None
    return found


def test_a_model_without_a_scorer_attends_to_all_keys() -> None:
    assert ChosenKeys.of({"hidden_size": 64}) is None
    assert not _few().attends(4)
    assert _few().attends(5)


@pytest.mark.parametrize(("tokens", "context"), [(1, 9), (6, 6), (3, 12), (12, 12)])
def test_every_query_attends_to_its_own_keys_and_scores_all_before_it(tokens: int, context: int) -> None:
    few = _few()
    op = _call("attention", "fwd", batch=1, q_len=1, kv_len=1, heads=4, kv_heads=4, qk_dim=8, v_dim=8)
    segment = Segment.__new__(Segment)
    object.__setattr__(segment, "operators", ())
    own = few.attention(segment, op, requests=2, tokens=tokens, context=context, cache="")
    keys = [min(few.keys, before) for before in range(context - tokens + 1, context + 1)]
    assert own.dims["batch"] == 2 * tokens
    assert own.dims["q_len"] == 1
    assert own.dims["kv_len"] == pytest.approx(sum(keys) / tokens, abs=0.5)

    scored = few.scores(_PRODUCT, requests=2, tokens=tokens, context=context).dims
    pairs = 2 * sum(range(context - tokens + 1, context + 1))
    assert scored["m"] * scored["n"] * scored["k"] == pytest.approx(
        pairs * few.heads * few.width, rel=1.0 / scored["n"]
    )
    chosen = few.choice(_STREAM, requests=2, tokens=tokens, context=context).dims
    assert chosen["bytes"] == 4 * scored["m"] * scored["n"]


def test_kernels_of_every_pass_are_linear_in_tokens() -> None:
    few = _few()
    one, ten = (few.kernels(_PRODUCT, _STREAM, n) for n in (1, 10))
    assert [op.kind for op in one] == [op.kind for op in ten]
    assert [op.dims["m"] for op in ten if op.kind == "gemm"] == [10, 10, 10]
    assert sum(op.dims["bytes"] for op in ten if op.kind == "elementwise") == 10 * sum(
        op.dims["bytes"] for op in one if op.kind == "elementwise"
    )


def test_an_answer_over_chosen_keys_pays_for_scores_and_gains_at_long_contexts() -> None:
    all_keys, few = _inference("deepseek_v3"), _inference("deepseek_v3", **_SCORED)
    short, long = 256, 32768
    for prompt_len, least, most in ((short, 1.0, 2.0), (long, 0.0, 1.0)):
        whole, chosen = (_answer(f, prompt_len, batch_size=64) for f in (all_keys, few))
        assert least < chosen.time_per_output_token_s / whole.time_per_output_token_s < most
        kept = chosen.kv_cache_bytes - whole.kv_cache_bytes
        assert kept == 64 * 3 * (64 + 4) * (prompt_len + 16)
    # a prompt no longer than the keys chosen attends as without
    assert _answer(few, short).time_to_first_token_s < 1.5 * _answer(all_keys, short).time_to_first_token_s


def test_clients_of_a_server_are_answered_over_chosen_keys_too() -> None:
    played = [
        serve(forecaster, Plan(), prompt_len=32768, output_len=16, concurrency=1)
        for forecaster in (_inference("deepseek_v3"), _inference("deepseek_v3", **_SCORED))
    ]
    assert played[0].time_per_output_token_s != played[1].time_per_output_token_s
    assert played[1].kv_cache_bytes > 0


@pytest.mark.parametrize("tp", [1, 2])
def test_code_that_scores_for_itself_is_priced_as_a_configuration_that_says_so(tp: int) -> None:
    said = _answer(_inference("deepseek_v3", **_SCORED), 4096, tp)
    traced = _answer(_inference("deepseek_v32", **_SCORED), 4096, tp)
    assert traced.time_to_first_token_s == pytest.approx(said.time_to_first_token_s, rel=0.05)
    assert traced.time_per_output_token_s == pytest.approx(said.time_per_output_token_s, rel=0.05)
    assert traced.kv_cache_bytes == said.kv_cache_bytes


def test_layers_that_take_a_choice_over_score_nothing() -> None:
    own = _inference("glm_moe_dsa", **_SCORED, indexer_types=["full"] * 3)
    shared = _inference("glm_moe_dsa", **_SCORED, indexer_types=["full", "shared", "shared"])
    each, once = _answer(own, 8192), _answer(shared, 8192)
    assert once.time_to_first_token_s < each.time_to_first_token_s
    assert each.kv_cache_bytes - once.kv_cache_bytes == 2 * 4 * (64 + 4) * (8192 + 16)


def test_code_that_runs_as_written_attends_to_all_keys() -> None:
    written = _inference("deepseek_v3", "pytorch-bf16", **_SCORED)
    assert written.chosen_keys is None
    assert (
        _answer(written, 4096).time_per_output_token_s
        == _answer(_inference("deepseek_v3", "pytorch-bf16"), 4096).time_per_output_token_s
    )
