"""Styles found by trial: run for real on two gloo ranks, with the predicted loss and collectives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from costmodel.graph import trace_module
from costmodel.sharding import shard
from costmodel.sharding.block import read_block
from costmodel.sharding.module_plan import executable_styles, instances_of, segment_styles
from costmodel.sharding.sharded import ShardedGraph
from tests.costmodel.sharding.gloo_worker import build, run

MODELS = ("gpt2", "bert", "resnet", "odd")


def _styles_of(sharded: ShardedGraph) -> dict[str, str]:
    """Styles of all modules as a sharded graph has them, for every instance."""
    found: dict[str, str] = {}
    for number, (whole, part) in enumerate(zip(sharded.graph.segments, sharded.segments, strict=True)):
        if part.assignment is not None:
            block = read_block(whole, is_first=number == 0)
            found.update(instances_of(whole, segment_styles(block, part.assignment)))
    return found


@pytest.mark.distributed
@pytest.mark.slow
def test_a_found_split_runs_with_the_predicted_collectives(tmp_path: Path) -> None:
    import torch.multiprocessing as mp

    styles: dict[str, dict[str, str]] = {}
    predicted: dict[str, list[tuple[str, int]]] = {}
    for name in MODELS:
        module, args, kwargs = build(name)
        graph = trace_module(module, args, kwargs, micro_batch_size=2, seq_len=16)
        styles[name] = executable_styles(module, args, kwargs, graph, tp=2)
        sharded = shard(graph, tp=2, styles=styles[name])
        assert _styles_of(sharded) == styles[name]
        predicted[name] = sorted(
            (call.op, call.size_bytes)
            for s in sharded.segments
            for call in s.collectives
            for _ in range(s.count)
        )
    result = tmp_path / "result.json"
    mp.spawn(run, args=(2, str(tmp_path / "store"), styles, str(result)), nprocs=2)
    found = json.loads(result.read_text())
    for name in MODELS:
        assert predicted[name], name
        assert found[name]["loss"] == pytest.approx(found[name]["expected"], rel=1e-4), name
        assert [tuple(c) for c in found[name]["collectives"]] == predicted[name], name


def test_styles_say_what_the_families_are_known_for() -> None:
    module, args, kwargs = build("gpt2")
    graph = trace_module(module, args, kwargs, micro_batch_size=2, seq_len=16)
    styles = executable_styles(module, args, kwargs, graph, tp=2)
    assert styles["transformer.h.0.attn.c_attn"] == "colwise:3"
    assert styles["transformer.h.1.mlp.c_proj"] == "rowwise"
    assert "lm_head" not in styles  # tied to the embedding: splitting it would untie it


def test_instances_of_a_repeated_block() -> None:
    module, args, kwargs = build("odd")
    graph = trace_module(module, args, kwargs)
    segment = graph.segments[0]
    assert instances_of(segment, {"left": "colwise"}) == {"left": "colwise"}
