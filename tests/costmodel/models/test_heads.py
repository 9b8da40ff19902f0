"""Heads on part of the positions: only the head's work falls, in proportion."""

from __future__ import annotations

import pytest

from costmodel.errors import ModelArgumentError
from costmodel.graph import trace
from costmodel.graph.model_graph import ModelGraph, Phase
from costmodel.graph.scalable import GraphStore
from costmodel.models import ModelSource, resolve_config, with_fewer_predictions

WIDTH, VOCAB, SEQ = 64, 1000, 32
CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForPreTraining"],
    "num_hidden_layers": 1,
    "hidden_size": WIDTH,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": VOCAB,
}


def source(share: float | None) -> ModelSource:
    plain = resolve_config(CONFIG, name="bert", micro_batch_size=2, seq_len=SEQ)
    return plain if share is None else with_fewer_predictions(plain, "cls.predictions", share)


def forward_flop(graph: ModelGraph) -> int:
    return graph.flop(Phase.FORWARD)


def test_the_head_sees_its_share_and_the_rest_all() -> None:
    whole, part = trace(source(None)), trace(source(0.25))
    head = 2 * (WIDTH * VOCAB + WIDTH * WIDTH)  # decoder and the transformation before it, per position
    assert forward_flop(whole) - forward_flop(part) == 2 * (SEQ - SEQ // 4) * head
    assert part.n_parameters == whole.n_parameters


def test_all_positions_change_nothing() -> None:
    assert forward_flop(trace(source(1.0))) == forward_flop(trace(source(None)))


def test_a_module_that_is_not_there_and_a_share_that_is_none_are_refused() -> None:
    plain = source(None)
    with pytest.raises(ModelArgumentError, match="no module 'lm_head'"):
        with_fewer_predictions(plain, "lm_head", 0.5).build("meta")
    with pytest.raises(ModelArgumentError, match=r"share\(1.5\)"):
        with_fewer_predictions(plain, "cls.predictions", 1.5)


def test_stored_graphs_tell_heads_apart() -> None:
    """A forecast must not depend on which one was asked for first."""
    store = GraphStore()
    asked = [
        store.graph(source(share), training=True, attention="as_run", dtype="fp32").at(micro_batch_size=2)
        for share in (None, 0.25, 0.5, None)
    ]
    flop = [forward_flop(graph) for graph in asked]
    assert flop[0] == flop[3] > flop[2] > flop[1]
