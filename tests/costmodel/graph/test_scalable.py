"""One trace for every micro-batch size, and for everybody who asks for the same model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from costmodel.graph import GraphStore, trace, tracing
from costmodel.graph.model_graph import Phase
from costmodel.graph.scalable import scalable_graph
from costmodel.models import ModelSource, resolve, resolve_config

TINY = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_layer": 2,
    "n_embd": 32,
    "n_head": 2,
    "vocab_size": 64,
}


def source(name: str = "a", **changes: int) -> ModelSource:
    return resolve_config({**TINY, **changes}, name=name, seq_len=16)


def test_a_model_is_traced_once_whatever_it_is_called() -> None:
    store = GraphStore()
    first = store.graph(source("a"), training=True, attention="flash", dtype="fp16")
    assert store.graph(source("b"), training=True, attention="flash", dtype="fp16") is first


def test_what_changes_a_trace_has_its_own() -> None:
    store = GraphStore()
    made = [
        store.graph(source(), training=True, attention="flash", dtype="fp16"),
        store.graph(source(), training=True, attention="flash", dtype="bf16"),
        store.graph(source(), training=True, attention="unfused", dtype="fp16"),
        store.graph(source(), training=False, attention="flash", dtype="fp16"),
        store.graph(source(n_layer=3), training=True, attention="flash", dtype="fp16"),
        store.graph(
            resolve_config(TINY, name="a", seq_len=8), training=True, attention="flash", dtype="fp16"
        ),
    ]
    assert len({id(graph) for graph in made}) == len(made)


def test_only_the_last_used_are_kept() -> None:
    store = GraphStore(most=2)
    asked = [source(n_layer=n) for n in (1, 2, 1, 3)]
    made = [store.graph(s, training=True, attention="flash", dtype="fp32") for s in asked]
    assert made[0] is made[2]
    again = [store.graph(s, training=True, attention="flash", dtype="fp32") for s in asked[:2]]
    assert again[0] is made[0]
    assert again[1] is not made[1]


def test_an_unknown_module_is_nobody_elses() -> None:
    def build(batch: int, seq_len: int):  # type: ignore[no-untyped-def]
        raise AssertionError("nothing is traced before it is asked for")

    own = ModelSource(name="own", micro_batch_size=1, seq_len=0, builder=build)
    store = GraphStore()
    first = store.graph(own, training=True, attention="flash", dtype="fp32")
    assert store.graph(own, training=True, attention="flash", dtype="fp32") is not first


def test_flop_of_a_sample_do_not_turn_on_the_micro_batch() -> None:
    graph = GraphStore().graph(source(), training=True, attention="flash", dtype="fp32")
    flop = {graph.at(micro_batch_size=b).flop(Phase.FORWARD) / b for b in (1, 2, 4, 6)}
    assert len(flop) == 1
    assert min(flop) > 0


def contrasted() -> Any:
    """Samples that all meet each other, as `module:callable` returns it."""

    class Contrast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(8, 16), nn.Linear(8, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.left(x) @ self.right(x).T).logsumexp(1).mean()

    return Contrast(), (torch.randn(2, 8),)


def test_what_grows_with_the_square_of_the_batch_is_traced_at_its_size() -> None:
    source = resolve(f"{__name__}:contrasted")
    scaled = scalable_graph(source).at(micro_batch_size=64)
    traced = trace(source.with_batch(64))
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        assert scaled.flop(phase) == traced.flop(phase)
    assert scaled.saved_activation_bytes == traced.saved_activation_bytes


def test_sizes_are_traced_as_asked_for_and_two_give_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []

    def counted(source: ModelSource, **how: Any) -> Any:
        traced.append(source.micro_batch_size)
        return trace(source, **how)

    monkeypatch.setattr(tracing, "trace", counted)
    graph = scalable_graph(source())
    made = {size: graph.at(micro_batch_size=size) for size in (8, 3, 2, 12)}
    assert traced == [8, 3]
    for size, one in made.items():
        own = trace(source().with_batch(size))
        assert replace(one, trace_time_s=0.0) == replace(own, trace_time_s=0.0)
