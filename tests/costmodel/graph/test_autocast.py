"""Autocast in a trace against torch's own on real tensors, and against the lists of a GPU's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from costmodel.errors import TraceError
from costmodel.graph import trace, trace_module
from costmodel.graph.autocast import fp32_operators
from costmodel.graph.model_graph import ModelGraph, Operator
from costmodel.models import resolve_config

CAST = "aten._to_copy"


class Shared(nn.Module):
    """Two layers, the first of which runs twice: autocast casts its weight once."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 24)
        self.last = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.gelu(self.first(nn.functional.gelu(self.first(x))))
        return nn.functional.cross_entropy(self.last(hidden), target)


class Mixed(nn.Module):
    """A product, a normalisation, a softmax and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.norm = nn.LayerNorm(32)
        self.last = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.softmax(self.norm(torch.relu(self.first(x))), dim=-1)).sum()


class Casts(TorchDispatchMode):
    """Counts casts of floating-point tensors by (bytes read, bytes written)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[int, int]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if str(func.overloadpacket) == CAST:
            self.seen[args[0].nbytes, out.nbytes] += 1
        return out


def operators(graph: ModelGraph) -> list[Operator]:
    """Every operator of a graph in which nothing repeats."""
    return [op for segment in graph.segments for op in segment.operators]


def test_casts_are_those_of_a_real_run_under_torch_autocast() -> None:
    inputs = torch.randn(6, 24), torch.randint(0, 10, (6,))
    module = Shared()
    with Casts() as real:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = module(*inputs)
        loss.backward()
    graph = trace_module(Shared(), inputs, autocast="bf16")
    traced = Counter(
        (op.bytes_read, op.bytes_written) for op in operators(graph) if op.target.startswith(CAST)
    )
    assert traced == real.seen
    weight = 24 * 24
    assert traced[4 * weight, 2 * weight] == 1  # the weight that is used twice
    assert traced[2 * weight, 4 * weight] == 1  # and its gradient


def test_normalisation_and_softmax_are_fp32_as_on_a_gpu() -> None:
    by_name = {
        op.target.split(".")[1]: op
        for op in operators(trace_module(Mixed(), (torch.randn(8, 16),), autocast="fp16"))
    }
    assert by_name["addmm"].dtype == "fp16"
    assert by_name["relu"].dtype == "fp16"
    assert by_name["native_layer_norm"].dtype == "fp32"
    assert by_name["_softmax"].dtype == "fp32"


def test_a_cpu_s_autocast_leaves_to_half_precision_what_a_gpu_s_takes_out_of_it() -> None:
    inputs = (torch.randn(8, 16),)
    with Casts() as real, torch.autocast("cpu", dtype=torch.bfloat16):
        Mixed()(*inputs)
    found = operators(trace_module(Mixed(), inputs, training=False, autocast="cpu:bf16"))
    (norm,) = (op for op in found if "layer_norm" in op.target)
    assert norm.dtype == "bf16"
    casts = Counter((op.bytes_read, op.bytes_written) for op in found if op.target.startswith(CAST))
    assert casts == real.seen


class Dispatched(TorchDispatchMode):
    """What runs inside, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_softmax_of_fp16_needs_no_cast_before_it_as_torch_runs_it_on_a_gpu(
    name: str, dtype: torch.dtype
) -> None:
    class Scores(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.softmax(a @ b, dim=-1)

    with FakeTensorMode():
        half = torch.empty(8, 8, dtype=dtype, device="cuda")
        with Dispatched() as real:
            torch.softmax(half, -1, dtype=torch.float32)  # what autocast calls
    casts = sum(target.startswith(CAST) for target in real.seen)
    assert casts == {"fp16": 0, "bf16": 1}[name]

    a, b = torch.randn(8, 16), torch.randn(16, 8)
    found = operators(trace_module(Scores(), (a, b), training=False, autocast=name))
    (softmax,) = (op for op in found if op.kind == "softmax")
    assert (softmax.bytes_read, softmax.bytes_written) == ((4 if casts else 2) * 64, 4 * 64)
    widened = [op for op in found if op.target.startswith(CAST) and op.bytes_read == 2 * 64]
    assert len(widened) == casts


def test_a_part_that_turns_autocast_off_runs_as_its_tensors_are() -> None:
    class Off(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            half = x @ x.T
            with torch.autocast("cpu", enabled=False):
                return nn.functional.layer_norm(half, half.shape[-1:])

    found = operators(trace_module(Off(), (torch.randn(8, 8),), training=False, autocast="fp16"))
    assert [op.dtype for op in found if "layer_norm" in op.target] == ["fp16"]


@pytest.mark.filterwarnings("ignore:.*autocast")
def test_cuda_s_autocast_by_name_is_the_trace_s() -> None:
    class Named(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cuda", enabled=False):
                x = x @ x.T
            with torch.cuda.amp.autocast(enabled=False):
                x = x @ x.T
            with torch.autocast(device_type="cuda", dtype=torch.bfloat16):
                return x @ x.T

    inputs = (torch.randn(8, 8),)
    found = operators(trace_module(Named(), inputs, training=False, autocast="bf16"))
    assert [op.dtype for op in found if op.kind == "gemm"] == ["fp32", "fp32", "bf16"]
    found = operators(trace_module(Named(), inputs, training=False, autocast="cpu:bf16"))
    assert [op.dtype for op in found if op.kind == "gemm"] == ["bf16", "bf16", "bf16"]
    assert torch.autocast.__init__.__qualname__ == "autocast.__init__"  # as it was


def test_without_autocast_nothing_is_cast() -> None:
    inputs = torch.randn(6, 24), torch.randint(0, 10, (6,))
    assert not any(op.target.startswith(CAST) for op in operators(trace_module(Shared(), inputs)))


def test_a_type_that_autocast_has_not_is_refused() -> None:
    with pytest.raises(TraceError, match="fp8"):
        trace_module(Mixed(), (torch.randn(8, 16),), autocast="fp8")


def test_every_listed_function_is_one_of_torch() -> None:
    places = (torch, torch.Tensor, nn.functional)
    for name in frozenset().union(*fp32_operators()):
        assert any(hasattr(place, n) for place in places for n in (name, f"__{name}__")), name


def test_blocks_of_a_model_carry_their_casts() -> None:
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": 4,
        "n_embd": 64,
        "n_head": 4,
        "n_positions": 32,
        "vocab_size": 128,
    }
    source = resolve_config(config, name="small", micro_batch_size=2, seq_len=32)
    half = trace(source, attention="eager", autocast="bf16")
    block = next(s for s in half.segments if s.count == 4)
    products = [op for op in block.operators if op.kind in ("gemm", "bmm")]
    assert {op.dtype for op in products} == {"bf16"}
    gradients = {t.dtype for s in half.segments for t in s.tensors if t.role.value == "gradient"}
    assert gradients == {"fp32"}
    assert half.n_parameters == trace(source, attention="eager").n_parameters
