"""Experts of a fixed capacity in a trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from costmodel.graph import trace
from costmodel.graph.model_graph import ModelGraph, Phase
from costmodel.models import resolve

SWITCH = {
    "model_type": "switch_transformers",
    "architectures": ["SwitchTransformersForConditionalGeneration"],
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "encoder_sparse_step": 2,
    "decoder_sparse_step": 2,
    "num_experts": 4,
    "expert_capacity": 6,
    "vocab_size": 128,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}


def traced(tmp_path: Path, *, batch: int = 2, seq_len: int = 16, **changes: int) -> ModelGraph:
    (tmp_path / "config.json").write_text(json.dumps(SWITCH | changes))
    return trace(resolve(str(tmp_path), micro_batch_size=batch, seq_len=seq_len))


def expert_rows(graph: ModelGraph) -> list[int]:
    """Rows of the products of experts, forward."""
    return [
        op.dims["m"]
        for segment in graph.segments
        for op in segment.phase(Phase.FORWARD)
        if op.kind == "gemm" and ".experts." in op.module
        for _ in range(segment.count)
    ]


@pytest.mark.parametrize(("seq_len", "taken"), [(16, 6), (4, 4)])
def test_each_expert_takes_its_capacity_of_every_sequence(tmp_path: Path, seq_len: int, taken: int) -> None:
    rows = expert_rows(traced(tmp_path, seq_len=seq_len))
    # one sparse layer in each of encoder and decoder, four experts of two products
    assert rows == [2 * taken] * (2 * 4 * 2)


def test_every_expert_has_gradients(tmp_path: Path) -> None:
    graph = traced(tmp_path)
    weights = [p for s in graph.segments for p in s.parameters if ".experts." in p.name]
    backward = [
        op
        for s in graph.segments
        for op in s.phase(Phase.BACKWARD)
        if op.kind == "gemm" and ".experts." in op.module
    ]
    assert len(weights) == 2 * 4 * 2
    assert len(backward) == 2 * len(weights)
