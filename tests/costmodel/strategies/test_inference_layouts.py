"""Streamed weights, micro-batched pipelines and continuous batching, each against its closed form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.engine import Action, run
from costmodel.errors import InfeasibleError, PlanError
from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve, resolve_config
from costmodel.plan import Plan
from costmodel.predict.inference import InferenceForecaster, InferencePrediction
from costmodel.predict.serving import ServingPrediction, serve
from costmodel.strategies.inference import choose_micro_batches, streamed_s


@pytest.fixture(scope="module")
def gpt() -> InferenceForecaster:
    from planner import api

    return InferenceForecaster(
        source=api.model_source("gpt2", seq_len=128, overrides=["n_layer=4"]),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework("pytorch-bf16"),
    )


def generate(gpt: InferenceForecaster, plan: str, batch: int = 8) -> InferencePrediction:
    return gpt.generate(Plan.parse(plan), batch_size=batch, prompt_len=128, output_len=16)


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=12))
def test_streaming_lies_between_its_bounds(units: list[tuple[float, float]]) -> None:
    compute, transfer = [c for c, _ in units], [t for _, t in units]
    seconds = streamed_s(compute, transfer)
    assert seconds >= max(sum(compute) + transfer[0], sum(transfer) + compute[-1]) - 1e-9
    assert seconds <= sum(compute) + sum(transfer) + 1e-9


def test_equal_units_stream_at_the_slower_of_the_two() -> None:
    """Per layer max(compute, transfer) (arXiv 2207.00032, section VI)."""
    assert streamed_s([1.0] * 50, [3.0] * 50) == pytest.approx(50 * 3.0 + 1.0)
    assert streamed_s([3.0] * 50, [1.0] * 50) == pytest.approx(50 * 3.0 + 1.0)


def test_streamed_weights_are_bound_by_the_link_until_the_batch_is_large(gpt: InferenceForecaster) -> None:
    rate = 31.5e9 * gpt.host.link_efficiency
    weights = 2.0 * sum(s.count * s.n_parameters for s in gpt._at(1, 1).graph(1).segments)
    few, many = generate(gpt, "dp1.zero-inference", 1), generate(gpt, "dp1.zero-inference", 256)
    assert few.time_per_output_token_s == pytest.approx(weights / rate, rel=0.15)
    assert many.tokens_per_s > 50 * few.tokens_per_s, "a large batch shares the transfer"
    assert few.parameter_bytes < generate(gpt, "dp1", 1).parameter_bytes
    slow = generate(gpt, "dp1.zero-inference-nvme", 1)
    assert slow.time_per_output_token_s >= few.time_per_output_token_s


@pytest.mark.parametrize(("p", "m", "tokens"), [(2, 2, 5), (4, 2, 6), (2, 8, 4), (4, 4, 3)])
def test_pipelined_tokens_take_as_long_as_the_engine_says(p: int, m: int, tokens: int) -> None:
    """A token of a micro-batch passes p stages, and the next one starts from it: max(p, m) slots each."""
    actions: list[Action] = []
    index: dict[tuple[int, int, int], int] = {}
    for token in range(tokens):
        for micro_batch in range(m):
            for stage in range(p):
                before = (token, micro_batch, stage - 1) if stage else (token - 1, micro_batch, p - 1)
                after = (index[before],) if before in index else ()
                index[token, micro_batch, stage] = len(actions)
                name = f"{token}.{micro_batch}.{stage}"
                actions.append(Action(rank=stage, stream="compute", duration_s=1.0, name=name, after=after))
    # stages take micro-batches in turn, token by token
    done = run(actions)
    first, last = done.end_s[index[0, 0, p - 1]], done.end_s[index[tokens - 1, 0, p - 1]]
    assert (last - first) / (tokens - 1) == pytest.approx(max(p, m))
    prompts = max(done.end_s[index[0, i, p - 1]] for i in range(m))
    assert prompts == pytest.approx(p + m - 1)


def test_micro_batches_fill_a_pipeline(gpt: InferenceForecaster) -> None:
    naive, cut, hybrid = (generate(gpt, f"pp4{w}") for w in ("", ".pipelined.mbs2", ".hybrid"))
    assert hybrid.latency_s <= min(cut.latency_s, naive.latency_s) * 1.0001
    for answer in (cut, hybrid):
        assert sum(answer.breakdown_s.values()) == pytest.approx(answer.latency_s)
    with pytest.raises(PlanError, match="not a multiple"):
        generate(gpt, "pp4.pipelined.mbs3")


def test_hybrid_chooses_sizes_for_prompts_and_tokens_apart() -> None:
    """Tokens cost the same in any batch (weights are read once): as few parts as stages. Prompts cost by
    their tokens: as many parts as there are."""
    chosen = choose_micro_batches(Plan.parse("pp4.hybrid"), 16, lambda size: float(size), lambda size: 1.0)
    assert chosen.prompt == 1
    assert 16 // chosen.token <= 4


@pytest.mark.parametrize(
    ("batch", "prompts", "tokens"),
    [(256, 16, 256), (16, 16, 16), (6, 2, 2), (4096, 16, 2048), (33, 11, 11)],
)
def test_a_framework_cuts_a_batch_by_its_tokens(batch: int, prompts: int, tokens: int) -> None:
    """One part a stage where they divide it, then halves until a part has at most so many tokens."""

    def no_word(size: int) -> float:
        raise AssertionError("without a word of the plan no size is tried")

    plan = Plan.parse("pp3")
    cut = choose_micro_batches(plan, batch, no_word, no_word, prompt_len=128, most_tokens=2048)
    assert (cut.prompt, cut.token) == (prompts, tokens)
    whole = choose_micro_batches(Plan.parse("tp2"), batch, no_word, no_word, most_tokens=2048)
    assert whole.prompt == whole.token == batch


def test_a_pipeline_that_a_framework_cuts_answers_sooner(gpt: InferenceForecaster) -> None:
    cutting = InferenceForecaster(
        source=gpt.source,
        profile=gpt.profile,
        framework=gpt.framework.model_copy(update={"pipeline_tokens": 8192}),
    )
    whole, cut = (generate(f, "pp2", 256) for f in (gpt, cutting))
    assert cut.time_to_first_token_s < 0.8 * whole.time_to_first_token_s
    assert generate(cutting, "tp2", 256).latency_s == pytest.approx(generate(gpt, "tp2", 256).latency_s)


def test_hops_take_the_links_that_they_cross(gpt: InferenceForecaster) -> None:
    """Nodes of 8: a pipeline inside one sends over its links whatever replicas there are; of 3 stages of 4
    ranks one hop leaves the node; 12 stages leave it once."""
    shipped = gpt.profile.network
    assert shipped is not None
    big = InferenceForecaster(
        source=resolve("gpt2", seq_len=128), profile=gpt.profile, framework=gpt.framework
    )

    def sent_s(plan: str) -> float:
        return big.forward(Plan.parse(plan), batch_size=8).breakdown_s["pp_comm"]

    near = sent_s("pp2")
    far = sent_s("pp3.tp4") - sent_s("pp2.tp4")
    assert shipped.ranks_per_node == 8
    assert far > 1.5 * near
    assert sent_s("dp8.pp2") == pytest.approx(near)
    assert sent_s("dp4.pp2.tp4") == pytest.approx(sent_s("pp2.tp4"))
    assert sent_s("pp12") == pytest.approx(10 * near + far, rel=0.1)


@pytest.mark.parametrize(
    ("plan", "prompt", "output", "clients"), [("pp2", 64, 1024, 1000), ("pp4", 1500, 16, 300)]
)
def test_clients_of_a_pipeline_are_answered_however_many(
    plan: str, prompt: int, output: int, clients: int
) -> None:
    """Fewer than fit may be answered quicker in all than as many as fit: no rate of theirs is too high."""
    small = InferenceForecaster(
        source=resolve("gpt2", overrides={"n_layer": 32, "n_embd": 2048, "n_head": 16}, seq_len=128),
        profile=load_profile("h100-sxm5-80gb" if plan == "pp2" else "a100-sxm4-40gb"),
        framework=load_framework("pytorch-bf16"),
    )
    answer = serve(small, Plan.parse(plan), prompt_len=prompt, output_len=output, concurrency=clients)
    assert 0.0 < answer.rate_per_s <= answer.capacity_per_s


@pytest.mark.parametrize("width", ["", ".etp1"])
def test_hops_of_a_pipeline_with_experts_are_those_of_one_replica(width: str) -> None:
    sizes = {"num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 512}
    mixture = InferenceForecaster(
        source=resolve("mixtral-8x7b", overrides={**sizes, "num_local_experts": 4}, seq_len=64),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework("pytorch-bf16"),
    )
    sent_s = [
        mixture.forward(Plan.parse(plan), batch_size=8).breakdown_s["pp_comm"]
        for plan in (f"dp4.pp2.tp2.ep4{width}", "pp2.tp2")
    ]
    assert sent_s[0] == pytest.approx(sent_s[1])


def test_tensor_parallelism_beats_a_layer_split(gpt: InferenceForecaster) -> None:
    """The founding documents' Llama-2 table: at 2 and 4 GPUs tensor parallelism is faster."""
    from planner import api

    llama = InferenceForecaster(
        source=api.model_source("llama-2-7b", seq_len=128, overrides=["num_hidden_layers=4"]),
        profile=gpt.profile,
        framework=gpt.framework,
    )
    for n in (2, 4):
        tensor, layers = (generate(llama, f"{axis}{n}", 4).tokens_per_s for axis in ("tp", "pp"))
        assert tensor > 1.15 * layers


def test_serving_meets_one_request_at_low_rates_and_saturates(gpt: InferenceForecaster) -> None:
    plan = Plan.parse("dp1")
    alone = serve(gpt, plan, prompt_len=128, output_len=16, concurrency=1)
    idle = serve(gpt, plan, prompt_len=128, output_len=16, rate_per_s=0.01)
    assert idle.time_per_output_token_s == pytest.approx(alone.time_per_output_token_s, rel=0.02)
    assert idle.latency_s == pytest.approx(alone.latency_s, rel=0.1)
    busy = serve(gpt, plan, prompt_len=128, output_len=16, rate_per_s=0.9 * idle.capacity_per_s)
    assert busy.latency_s > 2 * idle.latency_s
    assert busy.concurrency > 10 * idle.concurrency
    with pytest.raises(InfeasibleError, match="that it can hold"):
        serve(gpt, plan, prompt_len=128, output_len=16, rate_per_s=1.1 * idle.capacity_per_s)


def test_clients_that_wait_for_their_answer(gpt: InferenceForecaster) -> None:
    """Rate x latency without the queue = clients (Little)."""
    plan = Plan.parse("dp1")
    closed = serve(gpt, plan, prompt_len=128, output_len=16, concurrency=8)
    assert closed.concurrency <= 8
    assert closed.rate_per_s * closed.latency_s == pytest.approx(8, rel=0.1)
    more = serve(gpt, plan, prompt_len=128, output_len=16, concurrency=32)
    assert more.tokens_per_s > closed.tokens_per_s
    assert more.time_per_output_token_s > closed.time_per_output_token_s


def test_pages_hold_more_requests_than_whole_reservations(gpt: InferenceForecaster) -> None:
    plan = Plan.parse("dp1")
    paged = serve(gpt, plan, prompt_len=64, output_len=960, rate_per_s=0.1)
    whole = serve(gpt, plan, prompt_len=64, output_len=960, rate_per_s=0.1, paged=False)
    assert paged.most_running >= whole.most_running
    assert paged.kv_cache_bytes < whole.kv_cache_bytes


def test_serving_takes_a_rate_or_clients(gpt: InferenceForecaster) -> None:
    with pytest.raises(PlanError, match="not both"):
        serve(gpt, Plan.parse("dp1"), prompt_len=8, output_len=8)
    with pytest.raises(PlanError, match="must be positive"):
        serve(gpt, Plan.parse("dp1"), prompt_len=8, output_len=8, rate_per_s=0.0)


def test_replicas_share_experts_only_where_the_plan_says_so() -> None:
    sizes = {"num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 3584, "num_local_experts": 8}
    routed = InferenceForecaster(
        source=resolve("mixtral-8x7b", overrides=sizes, seq_len=128),
        profile=load_profile("h100-sxm5-80gb"),
        framework=load_framework("vllm"),
    )

    def served(plan: str, clients: int) -> ServingPrediction:
        return serve(routed, Plan.parse(plan), prompt_len=128, output_len=32, concurrency=clients)

    alone, four, shared = served("dp1", 16), served("dp4", 64), served("dp4.ep4", 64)
    assert four.rate_per_s == pytest.approx(4 * alone.rate_per_s)
    assert four.time_per_output_token_s == pytest.approx(alone.time_per_output_token_s)
    assert shared.parameter_bytes < 0.5 * four.parameter_bytes
    # a rank reads a quarter of the experts for four times the tokens, and waits for exchanges
    assert (
        0.3 * four.time_per_output_token_s < shared.time_per_output_token_s < 3 * four.time_per_output_token_s
    )
    assert served("tp4.ep4", 16).time_per_output_token_s < alone.time_per_output_token_s


def test_a_server_keeps_less_than_the_whole_device(gpt: InferenceForecaster) -> None:
    def most(**shares: float) -> int:
        framework = gpt.framework.model_copy(update=shares)
        made = InferenceForecaster(source=gpt.source, profile=gpt.profile, framework=framework)
        return serve(made, Plan(), prompt_len=256, output_len=768, rate_per_s=0.1).most_running

    few = most(free_memory_fraction=0.04)
    assert most(free_memory_fraction=0.08) == pytest.approx(2 * few, abs=1)
    assert most(device_memory_fraction=0.08) < most(free_memory_fraction=0.08)


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_ranks_beyond_the_key_heads_keep_one_each(model_type: str) -> None:
    """Norms of queries and keys change nothing: their gradients, which no pass sends, had decided it."""
    config = {
        "model_type": model_type,
        "architectures": [{"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[model_type]],
        "num_hidden_layers": 2,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 4096,
    }
    made = InferenceForecaster(
        source=resolve_config(config, name=model_type, seq_len=512),
        profile=load_profile("h100-sxm5-80gb"),
        framework=load_framework("vllm"),
    )
    four, eight = (
        made.generate(Plan.parse(f"tp{tp}"), batch_size=8, prompt_len=512, output_len=64) for tp in (4, 8)
    )
    assert eight.kv_cache_bytes == four.kv_cache_bytes > 0
