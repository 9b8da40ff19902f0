"""Passes of a server: against the forecast of plain inference, and what sizes do to them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve_config
from costmodel.plan import Plan
from costmodel.predict.attending import latent_dims
from costmodel.predict.inference import InferenceForecaster
from costmodel.predict.passes import _TOKENS, Attending, Experts, PassCosts

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 5632,
    "vocab_size": 32000,
}
_LATENT: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 2048,
    "moe_intermediate_size": 512,
    "vocab_size": 32000,
    "n_routed_experts": 32,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 1,
    "q_lora_rank": 384,
    "kv_lora_rank": 256,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_group": 1,
    "topk_group": 1,
}
_CHOSEN = {**_LATENT, "index_topk": 512, "index_n_heads": 8, "index_head_dim": 64}
_MIXED: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "moe_intermediate_size": 512,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "vocab_size": 32000,
}
_GATED: dict[str, Any] = {
    "model_type": "qwen3_next",
    "architectures": ["Qwen3NextForCausalLM"],
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "linear_num_value_heads": 32,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 256,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "vocab_size": 32000,
}


def _forecaster(name: str, **changes: Any) -> InferenceForecaster:
    configs = {"llama": _LLAMA, "latent": _LATENT, "chosen": _CHOSEN, "mixed": _MIXED, "gated": _GATED}
    config = configs[name]
    return InferenceForecaster(
        source=resolve_config(config, name=name, seq_len=1),
        profile=load_profile("H100-SXM5-80GB"),
        framework=load_framework("vllm").model_copy(update=changes),
    )


@lru_cache(maxsize=8)
def _costs(name: str, tp: int = 1, experts: Experts | None = None) -> PassCosts:
    return PassCosts(_forecaster(name), Plan(tp=tp), experts=experts)


def _decode(requests: int, context: int = 1024) -> Attending:
    return Attending(requests=requests, tokens=1, context=context)


def test_a_pass_of_running_requests_is_near_a_decode_of_the_batch() -> None:
    found = _costs("llama").seconds([_decode(16)])
    alone = _forecaster("llama").generate(Plan(), batch_size=16, prompt_len=768, output_len=512)
    # the server leaves the loss out
    assert 0.9 * alone.time_per_output_token_s < found < alone.time_per_output_token_s


def test_a_pass_never_gets_shorter_with_tokens_requests_or_context() -> None:
    costs = _costs("llama")
    by_tokens = [costs.seconds([Attending(requests=1, tokens=n, context=n)]) for n in (64, 512, 4096)]
    by_requests = [costs.seconds([_decode(n)]) for n in (1, 16, 256, 1024)]
    by_context = [costs.seconds([_decode(64, n)]) for n in (1024, 8192, 65536)]
    for series in (by_tokens, by_requests, by_context):
        assert series == sorted(series)
    assert costs.seconds([]) == 0.0


def test_prompt_and_running_requests_together_take_less_than_apart() -> None:
    costs = _costs("llama")
    prompt = Attending(requests=1, tokens=512, context=512)
    both = costs.seconds([prompt, _decode(32)])
    assert both < costs.seconds([prompt]) + costs.seconds([_decode(32)])
    assert both > max(costs.seconds([prompt]), costs.seconds([_decode(32)]))


def test_tensor_parallelism_divides_weights_and_cache() -> None:
    one, four = _costs("llama"), _costs("llama", 4)
    assert four.parameter_bytes == pytest.approx(one.parameter_bytes / 4, rel=0.02)
    assert four.cache_bytes_per_token == pytest.approx(one.cache_bytes_per_token / 4)
    assert one.cache_bytes_per_token == 4 * 2 * 2 * 8 * 128
    config = _LLAMA
    blocks = 2048 * (2048 * 2 + 2 * 1024) + 3 * 2048 * config["intermediate_size"]
    assert one.parameter_bytes == pytest.approx(2 * (4 * blocks + 2 * 32000 * 2048), rel=0.01)
    long_prompt = Attending(requests=1, tokens=8192, context=8192)
    assert four.seconds([long_prompt]) < one.seconds([long_prompt])


def test_latent_attention_keeps_its_row_and_decodes_in_it() -> None:
    segment = next(
        s
        for s in _forecaster("latent").one_token().graph(2).segments
        if any(op.kind == "attention" for op in s.operators)
    )
    op = next(op for op in segment.operators if op.kind == "attention")
    assert latent_dims(segment, op) == (256 + 64, 256)
    costs = _costs("latent")
    assert costs.cache_bytes_per_token == 3 * 2 * (256 + 64)
    llama = _forecaster("llama").one_token().graph(2).segments
    whole = [(s, o) for s in llama for o in s.operators if o.kind == "attention"]
    assert whole
    assert all(latent_dims(s, o) is None for s, o in whole)


def test_few_tokens_read_few_experts_and_groups_read_fewer_each() -> None:
    one = _costs("latent")
    shared = _costs("latent", 2, Experts(tp=1, ep=2))
    split = _costs("latent", 2, Experts(tp=2, ep=1))
    assert one.seconds([_decode(1)]) < one.seconds([_decode(64)])
    assert shared.parameter_bytes == pytest.approx(split.parameter_bytes, rel=1e-6)
    assert shared.parameter_bytes < one.parameter_bytes


def test_experts_reduce_their_sum_over_a_tokens_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[float] = []
    priced = PassCosts._collective

    def noted(self: PassCosts, plan: Plan, op: str, low: int, high: int, axis: str) -> Any:
        if op == "all_reduce":
            sizes.append(low / self._probes[0])
        return priced(self, plan, op, low, high, axis)

    monkeypatch.setattr(PassCosts, "_collective", noted)
    PassCosts(_forecaster("mixed"), Plan(tp=2))
    assert sizes
    assert max(sizes) == 2 * _MIXED["hidden_size"]


def test_ranks_share_the_heads_of_a_recurrence(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, list[float]] = {}
    priced = PassCosts._collective

    def noted(self: PassCosts, plan: Plan, op: str, low: int, high: int, axis: str) -> Any:
        calls.setdefault(op, []).append(low / self._probes[0])
        return priced(self, plan, op, low, high, axis)

    one = PassCosts(_forecaster("gated"), Plan())
    monkeypatch.setattr(PassCosts, "_collective", noted)
    four = PassCosts(_forecaster("gated"), Plan(tp=4))
    # sums behind attention, the recurrence and both experts; no more than a choice of experts is gathered
    assert calls["all_reduce"].count(2.0 * _GATED["hidden_size"]) >= 4
    assert max(calls.get("all_gather", [0.0])) <= 2 * (_GATED["num_experts"] + 1)

    moved = [float(costs._attending(_decode(1024, context=2)).seconds[0]) for costs in (one, four)]
    assert moved[1] < 0.4 * moved[0]  # 2 MB a request and layer, moved by the ranks together


def test_kernels_that_a_server_was_told_to_take_bound_its_products() -> None:
    prompt = Attending(requests=1, tokens=4096, context=4096)
    narrow = {"half_products": "fp8"}

    def seconds(name: str, **most: float) -> float:
        limits = {key.replace("_of_", "/"): value for key, value in most.items()}
        return PassCosts(_forecaster(name, **narrow, product_flop_per_s=limits), Plan()).seconds([prompt])

    slow = 1e13
    width, inner = _LLAMA["hidden_size"], _LLAMA["intermediate_size"]
    flop = 2 * 4096 * 4 * (width * (2 * width + 2 * 1024) + 3 * width * inner)
    assert seconds("llama") == seconds("llama", gemm_of_fp8=1e18) < seconds("llama", gemm_of_fp8=slow)
    assert seconds("llama", gemm_of_fp8=slow) > flop / slow
    assert seconds("llama", moe_of_fp8=slow) == seconds("llama")
    routed = 6 * 4096 * 8 * _MIXED["hidden_size"] * _MIXED["moe_intermediate_size"] * 2
    assert seconds("mixed", moe_of_fp8=slow) > routed / slow > seconds("mixed")


def test_shared_experts_run_beside_the_routed_ones_in_passes_of_few_tokens() -> None:
    together = PassCosts(_forecaster("latent", parallel_experts_tokens=64), Plan())
    apart = PassCosts(_forecaster("latent", parallel_experts_tokens=0), Plan())
    assert together.seconds([_decode(16)]) < apart.seconds([_decode(16)])
    assert together.seconds([_decode(512)]) == apart.seconds([_decode(512)])
    dense = [PassCosts(_forecaster("llama", parallel_experts_tokens=n), Plan()) for n in (0, 64)]
    assert dense[0].seconds([_decode(16)]) == dense[1].seconds([_decode(16)])


def test_quantising_the_input_leaves_the_products_but_never_most_of_them() -> None:
    narrow = {"half_products": "fp8"}
    costs = [
        PassCosts(_forecaster("llama", **narrow, input_quantisation_s={"fp8": own}), Plan())
        for own in (0.0, 1e-6, 1.0)
    ]
    with_it, without, capped = (c.seconds([_decode(16)]) for c in costs)
    # four blocks of four products: query, key and value are one, gate and up are one
    assert with_it - without == pytest.approx(4 * 4 * 1e-6, rel=1e-3)
    assert 0 < capped < without


def test_guessed_tokens_cost_a_pass_what_tokens_cost_attention_nothing_and_their_guesses() -> None:
    costs = _costs("llama")

    def guessing(drafted: int) -> float:
        return costs.seconds([Attending(requests=16, tokens=1, context=1024, drafted=drafted)])

    plain, whole = costs.seconds([_decode(16)]), costs.seconds([_decode(1024)])
    guess = (guessing(2) - guessing(1) - (guessing(1) - plain)) / 1.0
    assert abs(guess) < 0.5 * (guessing(1) - plain)  # each guess costs about the same
    # of four layers' pass, a guess runs one layer and the head, and never the attention of 64 times as many
    assert plain + 0.25 * 63 * (plain - costs.seconds([_decode(16, context=2)])) < guessing(63)
    assert guessing(63) < whole + 63 * plain


def test_attention_over_chosen_keys_grows_with_their_scores_alone() -> None:
    forecaster = _forecaster("chosen")
    few = forecaster.chosen_keys
    assert few is not None
    all_keys, chosen = _costs("latent"), PassCosts(forecaster, Plan())
    short, long = _decode(64, context=256), _decode(64, context=65536)
    assert chosen.seconds([short]) > all_keys.seconds([short])  # it scores whatever there is to choose from
    assert chosen.seconds([long]) < all_keys.seconds([long])
    kept = chosen.cache_bytes_per_token - all_keys.cache_bytes_per_token
    assert kept == 3 * few.cache_bytes


def test_a_pass_errs_less_than_its_kernels_and_collectives_do_alike() -> None:
    for costs in (_costs("llama"), _costs("llama", 2)):
        for requests in (1, 4):
            attending = Attending(requests=requests, tokens=4096 // requests, context=4096)
            parts = [part.errors_near(_TOKENS, 4096) for part in (costs._blocks, costs._head)]
            parts.append(costs._attending(attending).errors_at(0))
            alike = sum(sum(part.values()) for part in parts) / costs.seconds([attending])
            assert 0.0 < costs.log_sigma([attending]) < alike
    assert any(name.startswith("collective all_reduce") for name in _costs("llama", 2)._blocks.errors)
    assert _costs("llama").log_sigma([]) == 0.0


def test_attention_over_a_long_context_errs_as_attention() -> None:
    costs = _costs("llama")
    (call,) = {op.dims["heads"]: op for _, op, _ in costs._attention}.values()
    assert call.kind == "attention"
    alone = costs._attending(_decode(512, 131072))
    share = sum(e * e for e in alone.errors_at(0).values()) ** 0.5 / float(alone.seconds[0])
    assert costs.log_sigma([_decode(512, 131072)]) == pytest.approx(share, rel=0.1)
