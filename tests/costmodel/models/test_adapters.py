"""Low-rank adapters: only they are trained, and the backward leaves out the frozen weights' gradients."""

from __future__ import annotations

import pytest

from costmodel.errors import ModelArgumentError
from costmodel.graph import trace
from costmodel.graph.model_graph import ModelGraph, Phase
from costmodel.graph.scalable import GraphStore
from costmodel.models import ModelSource, resolve_config, with_adapters

WIDTH, RANK, SEQ, LAYERS = 64, 4, 32, 2
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 1000,
}


def source(*layers: str, rank: int = RANK) -> ModelSource:
    plain = resolve_config(CONFIG, name="llama", micro_batch_size=2, seq_len=SEQ)
    return with_adapters(plain, layers, rank) if rank else plain


def flop(graph: ModelGraph) -> tuple[int, int]:
    return graph.flop(Phase.FORWARD), graph.flop(Phase.BACKWARD)


def test_adapters_add_their_products_and_parameters() -> None:
    whole, adapted = trace(source(rank=0)), trace(source("q_proj", "v_proj"))
    pair = 2 * RANK * WIDTH
    assert adapted.n_parameters - whole.n_parameters == LAYERS * 2 * pair
    assert flop(adapted)[0] - flop(whole)[0] == LAYERS * 2 * 2 * SEQ * 2 * pair


def test_frozen_weights_have_no_gradients() -> None:
    """The backward of a product is two, of a frozen one the one towards its input."""
    whole, adapted = trace(source(rank=0)), trace(source("q_proj", rank=1))
    assert flop(adapted)[1] < 0.62 * flop(whole)[1]
    trained = sum(not t.frozen for segment in adapted.segments for t in segment.parameters)
    assert 0 < trained <= 2 * LAYERS


def test_without_names_all_but_the_head_are_adapted() -> None:
    added = trace(source()).n_parameters - trace(source(rank=0)).n_parameters
    assert added == LAYERS * RANK * (4 * 2 * WIDTH + 3 * (WIDTH + 128))


def test_unknown_layers_and_ranks_below_one_are_refused() -> None:
    with pytest.raises(ModelArgumentError, match="no linear layer named c_attn"):
        trace(source("c_attn"))
    with pytest.raises(ModelArgumentError, match=r"rank\(0\)"):
        with_adapters(source(rank=0), (), 0)


def test_stored_graphs_tell_ranks_apart() -> None:
    store = GraphStore()
    counted = [
        store.graph(source("q_proj", rank=rank), training=True, attention="as_run", dtype="fp32")
        .at(micro_batch_size=2)
        .n_parameters
        for rank in (1, 2, 0, 1)
    ]
    assert counted[0] == counted[3]
    assert counted[1] - counted[0] == counted[0] - counted[2]
