"""What the search finds by itself: Megatron's split of a transformer block, samples of a ResNet."""

from __future__ import annotations

import torch
from torch import nn

from costmodel.graph.model_graph import Segment
from costmodel.sharding.candidates import Axis, Rules
from costmodel.sharding.placements import REPLICATED, Replicate, Shard
from costmodel.sharding.solver import Assignment, solve_segment
from tests.costmodel.sharding.recording import record

MESH = (Axis(name="a", n=8), Axis(name="b", n=8))


class Block(nn.Module):
    """A pre-norm transformer block with separate projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.o = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, w = x.shape
        h = self.norm1(x)
        q, k, v = (p(h).view(b, s, self.heads, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-1, -2)).softmax(-1)
        x = x + self.o((scores @ v).transpose(1, 2).reshape(b, s, w))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Bottleneck(nn.Module):
    """A residual block of convolutions."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


def block(width: int = 2048, tokens: int = 256) -> Segment:
    with torch.device("meta"):
        return record(Block(width, 16), torch.empty(1, tokens, width))


def stored(segment: Segment, found: Assignment) -> dict[str, tuple[object, ...]]:
    return {t.name: found.parameters[t.index] for t in segment.parameters}


def volume(found: Assignment) -> dict[tuple[str, bool], int]:
    total: dict[tuple[str, bool], int] = {}
    for c in found.conversions:
        if c.what != "parameter":
            key = (c.transfer.op, c.backward)
            total[key] = total.get(key, 0) + c.transfer.size_bytes
    return total


def test_tensor_parallel_block_is_megatrons() -> None:
    segment = block(width=4096, tokens=1024)
    found = solve_segment(segment, (Axis(name="tp", n=4),), boundary=(REPLICATED,))
    places = stored(segment, found)
    for name in ("q", "k", "v", "up"):
        assert places[f"{name}.weight"] == (Shard(0),)
        assert places[f"{name}.bias"] == (Shard(0),)
    for name in ("o", "down"):
        assert places[f"{name}.weight"] == (Shard(1),)
        assert places[f"{name}.bias"] == (Replicate(),)
    size = 1024 * 4096 * 4
    assert volume(found) == {("all_reduce", False): 2 * size, ("all_reduce", True): 2 * size}


def test_sequence_parallel_replaces_each_all_reduce_by_two_halves() -> None:
    segment = block()
    rules = Rules(insist=True, sequence=(256, 1))
    from costmodel.sharding.placements import sharded

    found = solve_segment(segment, (Axis(name="tp", n=4),), rules=rules, boundary=(sharded(1),))
    size = 256 * 2048 * 4
    assert volume(found) == {
        (op, backward): 2 * size for op in ("all_gather", "reduce_scatter") for backward in (False, True)
    }


def test_free_search_on_one_mesh_splits_the_block_by_weights_and_the_resnet_by_samples() -> None:
    segment = block(width=4096)
    found = solve_segment(segment, MESH, rules=Rules(allow_batch=True))
    places = stored(segment, found)
    for name in ("q", "k", "v", "o", "up", "down"):
        assert any(isinstance(p, Shard) for p in places[f"{name}.weight"]), name
    kinds = {
        (name, p.dim) for name in ("up", "down") for p in places[f"{name}.weight"] if isinstance(p, Shard)
    }
    assert {("up", 0), ("down", 1)} <= kinds
    with torch.device("meta"):
        images = record(Bottleneck(64), torch.empty(256, 64, 56, 56))
    found = solve_segment(images, MESH, rules=Rules(allow_batch=True))
    assert all(p == (Replicate(), Replicate()) for p in found.parameters.values())
    assert {(c.transfer.op, c.what) for c in found.conversions} == {("all_reduce", "parameter")}


def test_parameters_stored_sharded_and_gathered_are_zero3() -> None:
    """With a weight fixed sharded and its use whole, the language gives all-gather and reduce-scatter."""
    with torch.device("meta"):
        images = record(Bottleneck(64), torch.empty(256, 64, 56, 56))
    rules = Rules(allow_batch=True, gather_parameters=True, parameters={"conv1.weight": Shard(0)})
    found = solve_segment(images, (Axis(name="dp", n=8),), rules=rules)
    weight = next(t for t in images.parameters if t.name == "conv1.weight")
    moves = [(c.transfer.op, c.backward) for c in found.conversions if c.tensor == weight.index]
    assert sorted(moves) == [("all_gather", False), ("reduce_scatter", True)]


def test_steady_boundary_is_the_same_at_both_ends() -> None:
    found = solve_segment(block(), (Axis(name="tp", n=2),), rules=Rules(allow_batch=True))
    assert found.entry is not None
    assert found.entry == found.leaves
