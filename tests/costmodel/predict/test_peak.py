"""Peak memory against torch's MemTracker on real steps, and against hand-made walks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.weak import WeakIdKeyDictionary

from costmodel.graph import trace, trace_module
from costmodel.graph.liveness import SegmentMemory, kept_segments, segment_memories
from costmodel.graph.loss import default_loss
from costmodel.graph.model_graph import ModelGraph
from costmodel.models import resolve
from costmodel.predict.optimizer_costs import update_bytes
from costmodel.predict.peak import peak_of_stage
from tests.costmodel.graph.zoo import ZOO

REAL = [
    "llama",
    "gpt2",
    "bert",
    "t5",
    "mixtral",
    "deepseek-v3",
    "mamba",
    "vit",
    "swin",
    "resnet",
    "convnext",
    "mobilenet-v2",
    "unet-2d",
    "dit",
    "autoencoder-kl",
    "gru",
    "torch-transformer",
]
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def _tensors(inputs: Inputs) -> list[torch.Tensor]:
    return [t for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor)]


class _TotalsOnly(MemTracker):
    """MemTracker without its peaks per module: they cost a walk over all modules at every operator."""

    def _update_peak_stats(self, peak_state: Any) -> None:
        per_module, self.memory_tracking = self.memory_tracking, WeakIdKeyDictionary()
        super()._update_peak_stats(peak_state)
        self.memory_tracking = per_module


def measured_peak_bytes(module: nn.Module, inputs: Inputs) -> int:
    """Most bytes during the second of two steps of AdamW, tensor by tensor."""
    optimizer = torch.optim.AdamW(module.parameters(), foreach=False)
    args, kwargs = inputs

    def step() -> None:
        loss = default_loss(module(*args, **kwargs))
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the moments
    tracker = _TotalsOnly()
    tracker.track_external(module, optimizer, *_tensors(inputs))
    with tracker:
        step()
    snapshot = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    return int(next(size for key, size in snapshot.items() if str(key).endswith("Total")))


def predicted_peak_bytes(graph: ModelGraph, module: nn.Module, inputs: Inputs, recompute: str) -> int:
    """Parameters, buffers, Adam's moments and what the walk finds above them."""
    memories = segment_memories(graph.segments, recompute)
    units = [m for s, m in zip(graph.segments, memories, strict=True) for _ in range(s.count)]
    trained = [p for p in module.parameters() if p.requires_grad]
    sizes = [p.numel() for p in trained]
    update = 4 * sum(sizes) + update_bytes(sizes, "adamw", looped=True)
    state = sum(t.nbytes for t in (*module.parameters(), *module.buffers())) + 2 * 4 * sum(sizes)
    peak = peak_of_stage(units, gradients_appear=True)
    not_saved = sum(t.nbytes for t in _tensors(inputs) if not t.is_floating_point())
    return state + not_saved + max(peak.total, update)


@pytest.mark.parametrize("name", REAL)
def test_peak_of_a_real_step(name: str) -> None:
    torch.manual_seed(0)
    module, args, kwargs = ZOO[name]()
    module.train()
    graph = trace_module(module, args, kwargs)
    measured = measured_peak_bytes(module, (args, kwargs))
    assert predicted_peak_bytes(graph, module, (args, kwargs), "none") == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "mamba"])
def test_peak_under_full_recomputation(name: str) -> None:
    torch.manual_seed(0)
    module, args, kwargs = ZOO[name]()
    module.train()
    kwargs = {
        k: v.repeat(6, *[1] * (v.ndim - 1)) if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()
    }
    graph = trace_module(module, args, kwargs)
    without = measured_peak_bytes(module, (args, kwargs))
    module.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    measured = measured_peak_bytes(module, (args, kwargs))
    assert measured < 0.9 * without
    assert predicted_peak_bytes(graph, module, (args, kwargs), "full") == pytest.approx(measured, rel=0.03)


class _Block(nn.Module):
    """`again`: the part that runs again, by hand: "core" of attention, "mlp" or nothing."""

    def __init__(self, width: int, heads: int, *, again: str) -> None:
        super().__init__()
        self.heads, self.again = heads, again
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        wide = nn.Linear(width, 2 * width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), wide, nn.GELU(), nn.Linear(2 * width, width))

    def core(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = torch.matmul(q, k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        return torch.matmul(nn.functional.dropout(torch.softmax(scores, -1), 0.1), v)

    def _run(self, part: str, function: Callable[..., torch.Tensor], *args: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = (
            checkpoint(function, *args, use_reentrant=False) if part == self.again else function(*args)
        )
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, h = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4).contiguous()
        attended = self._run("core", self.core, q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(b, s, h))
        return x + self._run("mlp", self.mlp, x)


@pytest.mark.parametrize(
    ("again", "recompute"), [("core", "selective"), ("mlp", "modules-mlp"), ("", "none")]
)
def test_peak_where_parts_of_blocks_run_again(again: str, recompute: str) -> None:
    def make(again: str) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*(_Block(64, 4, again=again) for _ in range(4)), nn.Linear(64, 10))

    inputs: Inputs = ((torch.randn(4, 96, 64),), {})
    graph = trace_module(make(""), *inputs)
    module = make(again)
    measured = measured_peak_bytes(module, inputs)
    assert predicted_peak_bytes(graph, module, inputs, recompute) == pytest.approx(measured, rel=0.03)


_MM = torch.ops.aten.mm.default
_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


class _Gated(nn.Module):
    """A block of products without biases, run again by operator where `again`: attention and every second
    product are kept, as torchtitan does it."""

    def __init__(self, width: int, heads: int, *, again: bool) -> None:
        super().__init__()
        self.heads, self.again = heads, again
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)

    def _block(self, x: torch.Tensor) -> torch.Tensor:
        b, s, h = x.shape
        made = self.first(x)
        q, k, v = (part(made).view(b, s, self.heads, -1).transpose(1, 2) for part in (self.q, self.k, self.v))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(attended.transpose(1, 2).reshape(b, s, h))
        made = self.second(x)
        rest: torch.Tensor = x + self.down(nn.functional.silu(self.gate(made)) * self.up(made))
        return rest

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.again:
            return self._block(x)

        def contexts() -> Any:
            products = {True: 0, False: 0}

            def policy(context: Any, operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
                products[context.is_recompute] += operator is _MM
                kept = operator is _ATTENTION or (operator is _MM and products[context.is_recompute] % 2)
                return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

            return create_selective_checkpoint_contexts(policy)

        made: torch.Tensor = checkpoint(self._block, x, use_reentrant=False, context_fn=contexts)
        return made


@pytest.mark.parametrize(("again", "recompute"), [(False, "none"), (True, "ops2")])
def test_peak_where_operators_run_again(again: bool, recompute: str) -> None:
    def make(again: bool) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*(_Gated(64, 4, again=again) for _ in range(6)), nn.Linear(64, 10))

    inputs: Inputs = ((torch.randn(4, 96, 64),), {})
    graph = trace_module(make(False), *inputs)
    module = make(again)
    measured = measured_peak_bytes(module, inputs)
    assert predicted_peak_bytes(graph, module, inputs, recompute) == pytest.approx(measured, rel=0.06)


def test_walk_of_a_stage() -> None:
    unit = SegmentMemory(
        saved_bytes=10, forward_bytes=14, backward_bytes=6, accumulating_bytes=4, gradient_bytes=12
    )
    fresh = peak_of_stage([unit] * 3, gradients_appear=True)
    # after two backwards 10 are held, 24 are gradients, 6 pass
    assert (fresh.activations, fresh.gradients, fresh.temporary) == (10, 24, 6)
    added = peak_of_stage([unit] * 3, gradients_appear=False)
    assert (added.activations, added.gradients, added.temporary) == (20, 0, 14)


class _Tied(nn.Module):
    """A table of tokens that is also the head."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.blocks = nn.Sequential(*(_Block(width, 4, again="") for _ in range(2)))
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.head(self.blocks(self.table(tokens)))
        return made


def test_the_gradient_of_a_tied_table_is_held_once_by_each_use() -> None:
    words, width = 2000, 64
    table_bytes = 4 * words * width
    inputs: Inputs = ((torch.zeros(1, 8, dtype=torch.int64),), {})
    module = _Tied(words, width)
    graph = trace_module(module, *inputs)
    units = segment_memories(graph.segments)
    first, last = units[0], units[-1]
    assert first.gradient_bytes == pytest.approx(table_bytes, rel=0.01)
    assert last.gradient_bytes == pytest.approx(table_bytes, rel=0.01)
    for level in (first.backward_bytes, first.accumulating_bytes):  # its own; the sum takes its place
        assert level == pytest.approx(table_bytes, rel=0.05)
    measured = measured_peak_bytes(module, inputs)
    assert predicted_peak_bytes(graph, module, inputs, "none") == pytest.approx(measured, rel=0.1)


def test_gradients_of_many_uses_are_added_up_on_the_way() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.change = nn.Sequential(nn.Linear(128, 256), nn.Tanh(), nn.Linear(256, 128))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(20):
                x = x + 0.1 * self.change(x)
            return x

    inputs: Inputs = ((torch.zeros(1, 128),), {})
    module = Steps()
    measured = measured_peak_bytes(module, inputs)
    predicted = predicted_peak_bytes(trace_module(module, *inputs), module, inputs, "none")
    one_gradient_bytes = 4 * sum(p.numel() for p in module.parameters())
    assert predicted == pytest.approx(measured, abs=1.1 * one_gradient_bytes)


@pytest.mark.parametrize(
    ("width", "segments"),
    [
        (2**17, 3 * 0.25),  # 0.5 MiB each: four to a segment of 2 MiB
        (2**20, 3 * 0.2),  # 4 MiB each: five to a segment of 20 MiB
        (2**22, 3 * 1.0),  # 16 MiB each: one of its own
    ],
)
def test_kept_tensors_take_segments_as_the_caching_allocator_does(width: int, segments: float) -> None:
    # three logistic functions keep their results; the input, which the product keeps, was there before
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.scale).sigmoid().sigmoid().sigmoid().sum()

    with torch.device("meta"):
        module, x = Chain(), torch.empty(1, width)
    graph = trace_module(module, (x,))
    assert sum(kept_segments(s) for s in graph.segments) == pytest.approx(segments, abs=0.01)


def test_a_skip_is_held_once_where_blocks_run_again() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList(nn.Sequential(nn.Linear(256, 256), nn.ReLU()) for _ in range(3))
            self.up = nn.ModuleList(nn.Sequential(nn.Linear(512, 256), nn.ReLU()) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skips = []
            for block in self.down:
                x = block(x)
                skips.append(x)
            for block in self.up:
                x = block(torch.cat([x, skips.pop()], dim=-1))
            return x

    graph = trace_module(Skips(), (torch.randn(64, 256),))
    size = 64 * 256 * 4
    whole = sum(s.count * memory.saved_bytes for s, memory in _held(graph, "full"))
    # results of three blocks down and three up, and three concatenations of two each
    assert whole == (3 + 3 + 3 * 2) * size
    assert whole <= sum(s.count * memory.saved_bytes for s, memory in _held(graph, "none"))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])  # in halves the last norm keeps a copy, not its input
@pytest.mark.parametrize("n_layers", [2, 7])
@pytest.mark.parametrize("name", ["llama-2-7b", "gpt2"])
def test_each_block_that_runs_again_holds_its_input(name: str, n_layers: int, dtype: str) -> None:
    layers = "n_layer" if name == "gpt2" else "num_hidden_layers"
    source = resolve(name, micro_batch_size=1, seq_len=128, overrides={layers: n_layers})
    graph = trace(source, dtype=dtype)
    width = graph.segments[0].output_bytes  # the embedding's result
    blocks = [(s, memory.saved_bytes) for s, memory in _held(graph, "full") if s.is_block]
    assert sum(s.count for s, _ in blocks) == n_layers
    held = sum(s.count * size for s, size in blocks)
    assert (n_layers - 1) * width <= held <= n_layers * width * 1.01


def _held(graph: ModelGraph, recompute: str) -> list[tuple[Any, SegmentMemory]]:
    return list(zip(graph.segments, segment_memories(graph.segments, recompute), strict=True))
