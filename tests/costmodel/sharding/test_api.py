"""`shard` on traced models: sizes, collectives, errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from costmodel.errors import PlanError
from costmodel.graph import ModelGraph, Operator, Phase, Segment, trace, trace_module
from costmodel.hardware.forms.attention import AttentionForm
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.sharding import Routing, Shard, shard
from costmodel.sharding.expert import dispatch_bytes, expert_tensors, split_experts
from costmodel.sharding.sharded import unsharded_segment
from costmodel.sharding.tp_plan import assignment_from_tp_plan
from tests.costmodel.sharding.gloo_worker import build


@pytest.fixture(scope="module")
def gpt2() -> ModelGraph:
    module, args, kwargs = build("gpt2")
    return trace_module(module, args, kwargs, micro_batch_size=2, seq_len=16)


def test_degree_one_changes_nothing(gpt2: ModelGraph) -> None:
    sharded = shard(gpt2, tp=1)
    assert tuple(s.local for s in sharded.segments) == gpt2.segments
    assert all(not s.collectives for s in sharded.segments)
    assert sharded.parameter_bytes == 4 * gpt2.n_parameters


@pytest.mark.parametrize(
    ("heads", "kv_heads", "noted"),
    [(6, 6, r"heads\(6\) % tp\(4\) != 0: every rank"), (12, 3, r"kv_heads\(3\) % tp\(4\) != 0: every rank")],
)
def test_heads_that_the_ranks_do_not_divide_leave_attention_alone_whole(
    heads: int, kv_heads: int, noted: str
) -> None:
    """Sequence parallelism splits every product that tensor parallelism without it splits."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 48 * 8, "intermediate_size": 528, "vocab_size": 128}
    counts = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    graph = trace(resolve("llama-2-7b", overrides={**sizes, **counts}, seq_len=16).with_batch(2))
    work = []
    for sequence_parallel in (False, True):
        split = shard(graph, tp=4, sequence_parallel=sequence_parallel)
        assert any(re.match(noted, note) for note in split.notes)
        block = next(s for s in split.segments if s.count == 2)
        assert all(p.is_sharded for p in block.parameters if len(p.shape) > 1)
        work.append(sum(op.flop for op in block.local.operators if op.kind == "gemm"))
    assert work[1] == work[0]
    assert not any("heads(" in note for note in shard(graph, tp=3).notes)


def test_block_of_two_ranks(gpt2: ModelGraph) -> None:
    sharded = shard(gpt2, tp=2)
    part = next(s for s in sharded.segments if s.count == 2)
    whole = gpt2.segments[sharded.segments.index(part)]
    hidden = 2 * 16 * 64 * 4
    calls = [(c.op, c.size_bytes, c.phase) for c in part.collectives]
    assert calls == [("all_reduce", hidden, p) for p in (Phase.FORWARD,) * 2 + (Phase.BACKWARD,) * 2]
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        products = ("gemm", "bmm", "attention")
        local = sum(op.flop for op in part.local.phase(phase) if op.kind in products)
        total = sum(op.flop for op in whole.phase(phase) if op.kind in products)
        assert 2 * local == total
    names = {p.name.split(".h.")[1][2:]: p for p in part.parameters}
    assert names["attn.c_attn.weight"].placement == Shard(1, 3)  # query, key, value split alike
    assert names["attn.c_attn.weight"].local_shape == (64, 96)
    assert names["mlp.c_proj.weight"].placement == Shard(0)
    whole_bytes = sum(t.size_bytes for t in whole.parameters)
    replicated = sum(p.size_bytes for p in part.parameters if not p.is_sharded)
    assert part.parameter_bytes == (whole_bytes - replicated) // 2 + replicated
    assert part.output_bytes == whole.output_bytes
    assert part.saved_bytes < whole.saved_bytes


def test_backward_products_have_the_local_sizes(gpt2: ModelGraph) -> None:
    part = next(s for s in shard(gpt2, tp=2).segments if s.count == 2)
    sizes = sorted(
        tuple(op.dims[d] for d in "mnk")
        for op in part.local.phase(Phase.BACKWARD)
        if op.kind == "gemm" and op.module.endswith("c_fc")
    )
    assert sizes == sorted([(32, 64, 128), (64, 128, 32)])  # dx [m, k] over n / 2; dW [k, n / 2] over m


def test_a_divided_table_gets_its_part_of_the_gradient(gpt2: ModelGraph) -> None:
    """Gradients of all looked-up rows are read, half of the table is written; the head's are added to it."""
    whole, part = gpt2.segments[0], shard(gpt2, tp=2).segments[0]
    table = next(p for p in part.parameters if "wte" in p.name)
    assert table.placement == Shard(0)
    rows, width = next(t.shape for t in whole.parameters if "wte" in t.name)

    def over_table(segment: Segment) -> list[Operator]:
        shapes = {t.index: t.shape for t in segment.tensors}
        backward = segment.phase(Phase.BACKWARD)
        return [op for op in backward if any(shapes[t] == (rows, width) for t in op.outputs)]

    pairs = list(zip(over_table(whole), over_table(part.local), strict=True))
    assert {before.kind for before, _ in pairs} == {"embedding", "elementwise"}
    for before, after in pairs:
        assert after.bytes_written == before.bytes_written // 2
        halved = before.bytes_read if before.kind == "embedding" else before.bytes_read // 2
        assert after.bytes_read == halved


def test_sequence_parallel(gpt2: ModelGraph) -> None:
    plain = next(s for s in shard(gpt2, tp=2).segments if s.count == 2)
    part = next(s for s in shard(gpt2, tp=2, sequence_parallel=True).segments if s.count == 2)
    hidden = 2 * 16 * 64 * 4
    moved = [(c.op, c.phase) for c in part.collectives if c.what == "activation" or c.what == "boundary"]
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        assert sorted(op for op, p in moved if p is phase) == ["all_gather"] * 2 + ["reduce_scatter"] * 2
    assert {c.size_bytes for c in part.collectives if c.what == "activation"} == {hidden}
    assert {(c.op, c.size_bytes) for c in part.collectives if c.what == "gradient"} == {("all_reduce", 256)}
    assert part.output_bytes == plain.output_bytes // 2
    assert part.saved_bytes < plain.saved_bytes


def test_context_parallel_splits_all_products_and_passes_keys_and_values(gpt2: ModelGraph) -> None:
    sharded = shard(gpt2, tp=1, cp=2)
    part = next(s for s in sharded.segments if s.count == 2)
    whole = gpt2.segments[sharded.segments.index(part)]
    kinds = ("gemm", "bmm", "attention")
    local = sum(op.flop for op in part.local.phase(Phase.FORWARD) if op.kind in kinds)
    assert 2 * local == sum(op.flop for op in whole.phase(Phase.FORWARD) if op.kind in kinds)
    assert sharded.parameter_bytes == shard(gpt2, tp=1).parameter_bytes
    one = 2 * 16 * 64 * 4 // 2
    forward = [c for c in part.phase(Phase.FORWARD) if c.axis == "cp"]
    assert [(c.op, c.size_bytes) for c in forward] == [("p2p", one)] * 2
    assert sum(c.size_bytes for c in part.phase(Phase.BACKWARD)) == 4 * one  # keys, values, their gradients
    ulysses = next(s for s in shard(gpt2, tp=1, cp=2, cp_exchange="all_to_all").segments if s.count == 2)
    assert [c.op for c in ulysses.phase(Phase.FORWARD)] == ["all_to_all"] * 4
    both = next(s for s in shard(gpt2, tp=2, cp=2).segments if s.count == 2)
    assert {c.size_bytes for c in both.phase(Phase.FORWARD) if c.axis == "cp"} == {one // 2}
    assert {c.size_bytes for c in both.phase(Phase.FORWARD) if c.axis == "tp"} == {one}


@pytest.mark.parametrize("exchange", ["ring", "all_gather", "all_to_all"])
@pytest.mark.parametrize("cp", [2, 4])
def test_causal_attention_is_shared_evenly_by_context_parallel_ranks(
    gpt2: ModelGraph, cp: int, exchange: str
) -> None:
    # otherwise the rank with the last tokens would set the pace, with nearly twice the work of the mean
    def pairs(segments: Sequence[Segment]) -> float:
        ops = [op for s in segments for op in s.operators if op.kind == "attention"]
        assert ops
        assert all(op.dims["causal"] for op in ops)
        dims = {k: np.array([float(op.dims[k]) for op in ops]) for k in ops[0].dims}
        return float(AttentionForm().flop(dims, "fwd").sum())

    local = [s.local for s in shard(gpt2, tp=1, cp=cp, cp_exchange=exchange).segments]
    assert cp * pairs(local) == pytest.approx(pairs(gpt2.segments), rel=0.01)


def test_what_cannot_be_split_is_said_with_the_formula(gpt2: ModelGraph) -> None:
    with pytest.raises(PlanError, match=r"heads\(4\) % tp\(7\) != 0, width\(100\)"):
        shard(gpt2, tp=7)
    with pytest.raises(PlanError, match=r"seq_len\(16\)"):
        shard(gpt2, tp=1, cp=3)
    with pytest.raises(PlanError, match="sequence parallelism"):
        shard(gpt2, tp=32, sequence_parallel=True)
    with pytest.raises(PlanError, match="no expert weights"):
        shard(gpt2, tp=1, ep=2)
    with pytest.raises(PlanError, match=r"tp\(0\): must be at least 1"):
        shard(gpt2, tp=0)


def test_a_sequence_that_nobody_named_is_said() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return nn.functional.scaled_dot_product_attention(q, k, v)

    graph = trace_module(Attends(), (torch.randn(2, 4, 8),))
    with pytest.raises(PlanError, match=r"cp\(2\): the model names no sequence"):
        shard(graph, tp=1, cp=2)
    with pytest.raises(PlanError, match="sp: the model names no sequence"):
        shard(graph, tp=2, sequence_parallel=True)


def test_styles_that_are_a_librarys_objects_are_left_to_the_search() -> None:
    class Planned(nn.Sequential):
        _tp_plan = {"0": "colwise", "2": object()}  # noqa: RUF012

    graph = trace_module(Planned(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), (torch.randn(4, 8),))
    assert graph.tp_plan == {"0": "colwise"}
    local = {t.name: t.shape for s in shard(graph, tp=2).segments for t in s.local.parameters}
    assert local["0.weight"] == (8, 8)
    assert local["2.weight"] in ((8, 8), (4, 16))


def test_a_product_squeezed_in_place_runs_whole() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            return torch.mm(y[:1], y[:1].T).squeeze_(1)

    graph = trace_module(Squeezed(), (torch.randn(4, 8),))
    assert shard(graph, tp=2).tp == 2


def test_tp_plan_is_followed_and_dropped_where_it_does_not_fit() -> None:
    module, args, kwargs = build("odd")
    graph = trace_module(module, args, kwargs)
    plan = {"left": "colwise", "right": "colwise", "join": "rowwise"}
    placed = assignment_from_tp_plan(graph.segments[0], {"middle": "colwise"})
    assert placed == {}
    followed = shard(replace(graph, tp_plan=plan), tp=2)
    places = {p.name: p.placement for s in followed.segments for p in s.parameters}
    assert places["left.weight"] == Shard(0)
    assert places["join.weight"] == Shard(1)
    wrong = shard(replace(graph, tp_plan={"norm": "colwise"}), tp=2)
    assert any("does not fit" in note for note in wrong.notes)


class Experts(nn.Module):
    """Four experts, one batched product each way."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(4, 8, 32))
        self.down = nn.Parameter(torch.zeros(4, 32, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.bmm(torch.bmm(x, self.up).relu(), self.down).sum()


def test_experts_are_divided_and_tokens_exchanged() -> None:
    graph = trace_module(Experts(), (torch.zeros(4, 16, 8, requires_grad=True),))
    segment = next(s for s in graph.segments if expert_tensors(s))
    assert sorted(expert_tensors(segment).values()) == [4, 4]
    sharded = shard(graph, tp=1, ep=2, routing=Routing(imbalance=1.5))
    part = next(s for s in sharded.segments if s.name == segment.name)
    assert part.parameter_bytes == 2 * 4 * 8 * 32 * 4 // 2
    rows = 4 * 16
    assert [(c.op, c.size_bytes, c.axis) for c in part.phase(Phase.FORWARD)] == [
        ("all_to_all", rows * 8 * 4, "ep")
    ] * 2
    sliced = split_experts(unsharded_segment(segment), ep=2, routing=Routing(), slices=4)
    assert {c.size_bytes for c in sliced.phase(Phase.FORWARD)} == {rows * 8 * 4 // 4}
    with pytest.raises(PlanError, match=r"experts\(4\) % ep\(3\) != 0"):
        shard(graph, tp=1, ep=3)


def routed_block(plan: str) -> list[tuple[str, str, int]]:
    """(collective, axis, bytes) of the forward of Mixtral's mixture in small: 32 tokens of width 64, each to
    2 experts."""
    parsed = Plan.parse(plan)
    sizes = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 128, "num_local_experts": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 128}
    graph = trace(resolve("mixtral-8x7b", overrides={**sizes, **heads}, seq_len=16).with_batch(2))
    sharded = shard(
        graph,
        tp=parsed.tp,
        ep=parsed.ep,
        sequence_parallel=parsed.sequence_parallel,
        experts_over=parsed.experts_over,
    )
    block = next(s for s in sharded.segments if s.local.is_block)
    return [
        (c.op, c.axis, c.size_bytes)
        for c in block.phase(Phase.FORWARD)
        if c.module.endswith((".mlp", ".mlp.experts"))
    ]


def test_experts_over_tensor_parallel_ranks_send_no_token_twice() -> None:
    """Of ranks with the same tokens each sends a part, of one replica none (vLLM); slices of sequences are
    sent as they are, and not gathered for experts that lie whole on a rank (Megatron-Core)."""
    tokens = 32 * 64 * 4
    routed = 2 * tokens
    assert routed_block("tp4.ep4") == routed_block("tp4") == [("all_reduce", "tp", routed)]
    assert routed_block("dp4.ep4") == [("all_to_all", "ep", routed)] * 2
    assert [("all_to_all", "ep", routed // 2)] * 2 == [
        call for call in routed_block("dp2.tp2.ep4") if call[1] == "ep"
    ]
    assert routed_block("tp4.ep4.sp") == [("all_to_all", "ep", routed // 4)] * 2
    assert routed_block("dp4.tp2.ep4.etp1.sp") == [("all_to_all", "ep", routed // 2)] * 2
    split_too = routed_block("dp2.tp2.ep2.sp")  # an expert over two ranks each: gathered and summed as before
    assert ("all_gather", "tp", tokens) in split_too
    assert split_too.count(("all_to_all", "ep", routed // 2)) == 2


def test_dispatch_volume_is_the_papers() -> None:
    assert (
        dispatch_bytes(tokens=100, top_k=2, width=64, element_bytes=2, routing=Routing()) == 100 * 2 * 64 * 2
    )
    full = Routing(capacity_factor=1.25)
    assert dispatch_bytes(tokens=100, top_k=2, width=64, element_bytes=2, routing=full) == 250 * 64 * 2
    with pytest.raises(PlanError, match="imbalance"):
        Routing(imbalance=0.5)


def test_a_table_whose_uses_cannot_be_split_alike_stays_whole() -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 64)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
                for _ in range(2)
            )

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.table(ids)
            for block in self.blocks:
                x = x + block(x)
            return x @ self.table.weight.T

    graph = trace_module(Repeated(), (torch.randint(0, 50, (4, 16)),), micro_batch_size=4)
    found = shard(graph, tp=2)
    placements = {p.placement for s in found.segments for p in s.parameters if p.name == "table.weight"}
    assert len(placements) == 1
    assert found.sharded_fraction > 0.5


def test_context_parallel_ranks_route_their_own_tokens() -> None:
    graph = trace(
        resolve(
            "mixtral-8x7b",
            seq_len=64,
            overrides={"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256},
        )
    )
    part = next(s for s in shard(graph, tp=1, cp=2).segments if s.count == 2)
    whole = next(s for s in graph.segments if s.count == 2)
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        flop = [
            sum(op.flop for op in s.phase(phase) if op.kind == "grouped_gemm") for s in (part.local, whole)
        ]
        assert 0 < 2 * flop[0] == flop[1]
    assert part.saved_bytes < 0.6 * whole.saved_bytes
    # keys and values go round and nothing else
    assert {c.module.rpartition(".")[2] for c in part.collectives} == {"self_attn"}
