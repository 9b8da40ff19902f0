"""What crosses each cut: tensors by maker and users, against the graph's own totals and by hand."""

from __future__ import annotations

import torch
from torch import nn

from costmodel.graph import trace
from costmodel.graph.model_graph import ModelGraph
from costmodel.models.source import BuiltModel, ModelSource
from costmodel.partition import crossings, cut_bytes, direct_bytes
from costmodel.partition.crossing import Crossing
from planner import api

WIDTH = 8
BATCH = 4
TENSOR = 4 * BATCH * WIDTH


class Block(nn.Module):
    """A layer and its activation; reads a skip beside its input where it has one."""

    def __init__(self, n_inputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(n_inputs * WIDTH, WIDTH)

    def forward(self, *xs: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat(xs, dim=1)).tanh()


class Skips(nn.Module):
    """Down, down, middle, up, up: every up block reads its down block's output."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([Block(1), Block(1)])
        self.middle = nn.ModuleList([Block(1)])
        self.up = nn.ModuleList([Block(2), Block(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
        x = self.middle[0](x)
        for block in self.up:
            x = block(x, kept.pop())
        return x.sum()


def graph_of(module: nn.Module) -> ModelGraph:
    builder = lambda batch, _: BuiltModel(  # noqa: E731
        module=module, args=(torch.zeros(batch, WIDTH),), kwargs={}
    )
    source = ModelSource(name="skips", micro_batch_size=BATCH, seq_len=0, builder=builder)
    return trace(source, training=True, attention="as_run")


def said(graph: ModelGraph) -> list[int]:
    return [s.output_bytes for s in graph.segments for _ in range(s.count)][:-1]


def skips_a_unit(tensor: Crossing) -> bool:
    """Whether it goes further than to the next unit."""
    return tensor.used_by[-1] > tensor.made_by + 1


def test_skips_cross_every_cut_between_maker_and_user() -> None:
    graph = graph_of(Skips())
    tensors = crossings(graph)
    n = sum(s.count for s in graph.segments)
    assert cut_bytes(tensors, n) == said(graph)
    skips = [t for t in tensors if skips_a_unit(t)]
    assert [t.size_bytes for t in skips] == [TENSOR, TENSOR]
    names = [s.name for s in graph.segments]
    first, second = (t.used_by[-1] - t.made_by for t in skips)
    assert first > second >= 2, names


def test_direct_sends_go_to_every_stage_that_reads() -> None:
    tensors = crossings(graph_of(Skips()))
    first, second = (t for t in tensors if skips_a_unit(t))
    # stages: up to the first skip, to the second, the rest
    starts = (0, first.made_by + 1, second.made_by + 1)
    sent = direct_bytes(tensors, starts)
    assert sent[0, 1] == TENSOR
    assert sent[0, 2] == TENSOR, "the skip goes past the middle stage"
    assert sent[1, 2] == TENSOR, "one tensor is sent once, however many units read it"
    assert sum(sent.values()) == 3 * TENSOR


def test_a_chain_has_no_skips() -> None:
    graph = api.trace("gpt2", overrides=["n_layer=5", "n_embd=64", "n_head=4", "vocab_size=96"], seq_len=16)
    tensors = crossings(graph)
    assert not any(skips_a_unit(t) for t in tensors)
    assert cut_bytes(tensors, sum(s.count for s in graph.segments)) == said(graph)


def test_what_all_blocks_of_a_run_read_crosses_all_of_its_cuts() -> None:
    """T5: the first block's position bias and, in the decoder, the encoder's output."""
    sizes = ["num_layers=5", "num_decoder_layers=5", "d_model=64", "d_kv=16", "num_heads=4", "d_ff=64"]
    graph = api.trace("t5-small", overrides=[*sizes, "vocab_size=96"], seq_len=16)
    tensors = crossings(graph)
    assert all(a <= b for a, b in zip(said(graph), cut_bytes(tensors, 13), strict=True))
    spans = sorted((t.made_by, len(t.used_by)) for t in tensors if skips_a_unit(t))
    assert spans == [(1, 4), (6, 5), (7, 4)]
