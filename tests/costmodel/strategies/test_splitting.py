"""Meshes and branches: the papers' volumes, FLOP and memory, in whole steps."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from costmodel.errors import ModelArgumentError, PlanError
from costmodel.graph.model_graph import ModelGraph, Operator, Phase, TensorRole
from costmodel.hardware.collectives.algorithms import bus_factor
from costmodel.models.splitnet import split_module, split_source
from costmodel.plan import Plan
from costmodel.sharding import ShardedGraph
from costmodel.sharding.branches import branch_split
from costmodel.sharding.mesh import mesh_split
from costmodel.sharding.tensor_parallel_nd import LinearShape, layer_volume_bytes
from planner import api

MESHES = [("2d", 4, 1), ("2d", 16, 1), ("2.5d", 8, 2), ("3d", 8, 1), ("3d", 64, 1)]


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    return api.trace("gpt2", micro_batch_size=16, overrides=["n_layer=2", "n_embd=512", "n_head=8"])


def products(graph: ModelGraph) -> list[Operator]:
    """Forward products with a weight, of every segment once."""
    found = []
    for segment in graph.segments:
        weights = {t.index for t in segment.tensors if t.role is TensorRole.PARAMETER}
        weights |= {t.index for t in segment.tensors if t.view_of in weights}
        found += [op for op in segment.phase(Phase.FORWARD) if op.kind == "gemm" and set(op.inputs) & weights]
    return found


def sent_bytes(split: ShardedGraph) -> dict[tuple[str, str], float]:
    """(phase, module) -> bytes that a rank sends, by the bus factors of nccl-tests."""
    total: dict[tuple[str, str], float] = defaultdict(float)
    for segment in split.segments:
        for call in segment.collectives:
            factor = 1.0 if call.op in ("broadcast", "reduce") else bus_factor(call.op, call.n_ranks)
            total[str(call.phase), call.module] += factor * call.size_bytes
    return total


@pytest.mark.parametrize(("scheme", "p", "depth"), MESHES)
def test_mesh_sends_the_papers_volumes(graph: ModelGraph, scheme: str, p: int, depth: int) -> None:
    split = mesh_split(graph, scheme, p, depth=depth)
    sent = sent_bytes(split)
    for op in products(graph):
        shape = LinearShape(tokens=op.dims["m"], inputs=op.dims["k"], outputs=op.dims["n"], element_bytes=4)
        forward, backward = layer_volume_bytes(scheme, shape, p, depth=depth)
        assert sent["forward", op.module] == pytest.approx(forward, rel=0.02), op.module
        assert sent["backward", op.module] == pytest.approx(backward, rel=0.02), op.module


@pytest.mark.parametrize(("scheme", "p", "depth"), MESHES)
def test_mesh_divides_work_and_state(graph: ModelGraph, scheme: str, p: int, depth: int) -> None:
    split = mesh_split(graph, scheme, p, depth=depth)
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        assert split.local.flop(phase) == pytest.approx(graph.flop(phase) / p, rel=0.01)
    held = sum(s.count * s.parameter_bytes for s in split.segments)
    assert held == pytest.approx(4 * graph.n_parameters / (p / depth), rel=0.01)
    assert split.local.saved_activation_bytes == pytest.approx(graph.saved_activation_bytes / p, rel=0.01)


def test_crossover_against_one_dimension() -> None:
    """2-D sends (T K + K N) / q where 1-D sends whole activations: with many tokens and many ranks on a fast
    network the mesh is ahead, with few tokens it is not."""
    forecaster = api.forecaster(
        "gpt2",
        hardware="a100-sxm4-80gb",
        framework="megatron",
        overrides=["n_layer=2", "n_embd=1024", "n_head=16"],
    )

    def moved(plan: str) -> float:
        sharded = forecaster.sharded(Plan.parse(plan))
        return sum(s.count * v for s, v in zip(sharded.segments, _volumes(sharded), strict=True))

    def _volumes(sharded: ShardedGraph) -> list[float]:
        return [
            sum(
                (1.0 if c.op in ("broadcast", "reduce") else bus_factor(c.op, c.n_ranks)) * c.size_bytes
                for c in segment.collectives
            )
            for segment in sharded.segments
        ]

    assert moved("tp64.tp2d.mbs16") < moved("tp16.tp2d.mbs16"), "a larger mesh sends less a rank"
    assert moved("tp64.tp2d.mbs16") < moved("tp64.mbs16")
    assert moved("tp4.tp2d.mbs1") > moved("tp4.mbs1")


def test_meshes_are_named_in_plans_and_wrong_ones_refused() -> None:
    forecaster = api.forecaster("gpt2", hardware="a100-sxm4-80gb", overrides=["n_layer=2"])
    for plan in ("tp4.tp2d", "tp8.tp25d2", "tp8.tp3d", "dp2.tp4.tp2d.pp2.mbs1.gbs8"):
        prediction = forecaster.forecast(Plan.parse(plan)).prediction
        assert sum(prediction.breakdown_s.values()) == pytest.approx(prediction.step_time_s, rel=1e-3)
        assert prediction.breakdown_s["tp_comm"] > 0
        assert str(prediction.plan) == str(Plan.parse(plan))
    for plan in ("tp8.tp2d", "tp4.tp3d", "tp4.tp25d2", "tp1.tp2d"):
        with pytest.raises(PlanError, match=r"square mesh|cube|divides nothing"):
            forecaster.forecast(Plan.parse(plan))


class Branching(torch.nn.Module):
    """Blocks of convolution, of linear layers and of normalisation."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, width)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.LayerNorm(width), torch.nn.Linear(width, 2 * width), torch.nn.ReLU(),
                torch.nn.Linear(2 * width, width),
            )
            for _ in range(3)
        )  # fmt: skip
        self.head = torch.nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def branching() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    return Branching(), (torch.randn(16, 8),)


@pytest.mark.parametrize("groups", [2, 4])
def test_splitnet_divides_weights_and_keeps_branches_apart(groups: int) -> None:
    module = Branching()
    whole = sum(p.numel() for b in module.blocks for p in b.parameters() if p.dim() > 1)
    assert split_module(module, groups) == 9
    parameters = [(name, p) for b in module.blocks for name, p in b.named_parameters()]
    split = sum(p.numel() for name, p in parameters if name.endswith("weight") and p.dim() > 2)
    assert split == whole // groups
    # changing one branch's input changes that branch's output and no other's
    x = torch.randn(5, 32)
    block = module.blocks[0]
    before = block(x)
    changed = x.clone()
    # (not by a constant, which the branch's normalisation would take away)
    changed[:, : 32 // groups] += torch.randn(5, 32 // groups)
    difference = (block(changed) - before).abs().sum(0)
    assert difference[: 32 // groups].min() > 0
    assert difference[32 // groups :].max() == 0


@pytest.mark.parametrize("groups", [2, 4])
def test_branches_on_ranks_communicate_only_around_the_blocks(groups: int) -> None:
    source = api.model_source("tests.costmodel.strategies.test_splitting:branching")
    from costmodel.graph import trace

    plain, graph = trace(source), trace(split_source(source, groups))
    blocks = [s for s in graph.segments if s.is_block]
    dense = [s for s in plain.segments if s.is_block]
    flop = sum(op.flop for s in blocks for op in s.phase(Phase.FORWARD) if op.kind == "bmm")
    assert flop == sum(op.flop for s in dense for op in s.phase(Phase.FORWARD) if op.kind == "gemm") / groups
    split = branch_split(graph, groups)
    calls = [(s.local.is_block, c.op, str(c.phase)) for s in split.segments for c in s.collectives]
    assert sorted(calls) == [(False, "all_gather", "backward"), (False, "all_gather", "forward")]
    for mine, theirs in zip(split.segments, graph.segments, strict=True):
        share = groups if theirs.is_block else 1
        assert mine.parameter_bytes == pytest.approx(4 * theirs.n_parameters / share, rel=0.01)


def test_splitnet_in_a_plan() -> None:
    forecaster = api.forecaster("resnet-50", hardware="a100-sxm4-80gb")

    def predicted(plan: str) -> tuple[float, float]:
        p = forecaster.forecast(Plan.parse(plan)).prediction
        return p.step_time_s, p.breakdown_s["tp_comm"]

    whole, split, apart = (predicted(p) for p in ("mbs32", "mbs32.splitnet2", "tp2.mbs32.splitnet2"))
    assert apart[0] < split[0] < whole[0]
    assert apart[1] < 0.05 * apart[0]
    with pytest.raises(PlanError, match="needs a number of branches"):
        predicted("dp1.splitnet")
    with pytest.raises(ModelArgumentError, match="is not a multiple of 3"):
        predicted("dp1.splitnet3")
