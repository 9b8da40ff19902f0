"""Ranks that share key heads against ranks that have as many of their own, and what training does instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from costmodel.framework import load_framework
from costmodel.graph.model_graph import Phase
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict.inference import InferenceForecaster
from costmodel.sharding import ShardedGraph
from costmodel.sharding.key_heads import repeat_key_heads

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 32, "vocab_size": 1024}


def served(key_heads: int, *, framework: str = "vllm", **sizes: int) -> InferenceForecaster:
    overrides = {**SIZES, "num_key_value_heads": key_heads, **sizes}
    return InferenceForecaster(
        source=resolve("llama-3.1-8b", overrides=overrides, seq_len=64),
        profile=load_profile("h100-sxm5-80gb"),
        framework=load_framework(framework),
    )


def split(key_heads: int, *, tp: int, framework: str = "vllm") -> ShardedGraph:
    plan = Plan(tp=tp, micro_batch_size=64, global_batch_size=64)
    return served(key_heads, framework=framework).one_token().sharded(plan)


def gathers(graph: ShardedGraph) -> list[str]:
    calls = [c for s in graph.segments if s.local.is_block for c in s.phase(Phase.FORWARD)]
    return [c.op for c in calls if c.op == "all_gather"]


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_ranks_that_share_a_key_head_work_as_ranks_with_one_of_their_own(key_heads: int) -> None:
    shared, own = split(key_heads, tp=8), split(8, tp=8)
    assert not gathers(shared)
    for ours, theirs in zip(shared.segments, own.segments, strict=True):
        assert [p.local_shape for p in ours.parameters] == [p.local_shape for p in theirs.parameters]
        assert ours.parameter_bytes == theirs.parameter_bytes
        operators = (part.local.phase(Phase.FORWARD) for part in (ours, theirs))
        for one, other in zip(*operators, strict=True):
            rest = {name: size for name, size in other.dims.items() if name != "bytes"}
            assert {name: one.dims[name] for name in rest} == rest, one.module
            # sines and cosines, which all heads read, are counted with the heads
            assert one.dims.get("bytes", 0) == pytest.approx(other.dims.get("bytes", 0), rel=0.05)


@pytest.mark.parametrize("framework", ["vllm", "sglang", "tensorrt-llm"])
def test_an_answer_takes_as_long_and_as_much_memory(framework: str) -> None:
    sizes = {"batch_size": 8, "prompt_len": 64, "output_len": 16}
    shared, own = (served(n, framework=framework).generate(Plan(tp=8), **sizes) for n in (2, 8))
    assert shared.latency_s == pytest.approx(own.latency_s, rel=1e-3)
    assert shared.memory_bytes == pytest.approx(own.memory_bytes, rel=1e-3)


def test_frameworks_that_do_not_say_so_gather_parts_of_heads() -> None:
    assert len(gathers(split(2, tp=8, framework="pytorch-bf16"))) == 2


@pytest.mark.parametrize(("heads", "key_heads", "tp"), [(32, 8, 8), (32, 8, 4), (24, 6, 8)])
def test_heads_that_nobody_shares_or_that_ranks_do_not_share_evenly_stay(
    heads: int, key_heads: int, tp: int
) -> None:
    plan = Plan(tp=tp, micro_batch_size=64, global_batch_size=64)
    made = served(key_heads, framework="pytorch-bf16", num_attention_heads=heads, hidden_size=128 * heads)
    graph = made.one_token().sharded(plan)
    assert repeat_key_heads(graph).segments == graph.segments


def test_normalised_keys_have_heads_of_their_own_too(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 2048,
        "vocab_size": 1024,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    made = InferenceForecaster(
        source=resolve(str(path), seq_len=64),
        profile=load_profile("h100-sxm5-80gb"),
        framework=load_framework("vllm"),
    )
    graph = made.one_token().sharded(Plan(tp=4, micro_batch_size=64, global_batch_size=64))
    assert not gathers(graph)
    shapes = {p.name: p.local_shape for s in graph.segments for p in s.parameters}
    (key,) = {shape for name, shape in shapes.items() if "k_proj.weight" in name}
    assert key == (64, 1024)
