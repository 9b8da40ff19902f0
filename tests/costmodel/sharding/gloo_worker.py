"""One of two gloo ranks: runs a styled module forward and backward, records its collectives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode


class Odd(nn.Module):
    """No transformer and no tp_plan: two gated branches of one input, an odd activation, a tail."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(48, 96)
        self.right = nn.Linear(48, 96)
        self.join = nn.Linear(96, 48)
        self.norm = nn.LayerNorm(48)
        self.tail = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.sin(self.left(x)) * torch.sigmoid(self.right(x))
        return self.tail(self.norm(x + self.join(hidden))).square().mean()


def build(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """A seeded module with its inputs."""
    torch.manual_seed(0)
    ids = torch.randint(0, 100, (2, 16))
    if name == "odd":
        return Odd(), (torch.randn(4, 48),), {}
    import transformers as t

    if name == "gpt2":
        config: Any = t.GPT2Config(
            use_cache=False, n_layer=2, n_embd=64, n_head=4, vocab_size=100, n_positions=32,
            attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return t.GPT2LMHeadModel(config), (), {"input_ids": ids, "labels": ids}
    if name == "bert":
        config = t.BertConfig(
            num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=128, vocab_size=100,
            hidden_dropout_prob=0, attention_probs_dropout_prob=0,
        )  # fmt: skip
        return t.BertForMaskedLM(config), (), {"input_ids": ids, "labels": ids}
    config = t.ResNetConfig(depths=[1, 1], hidden_sizes=[32, 64], embedding_size=16, num_labels=4)
    image = torch.randn(2, 3, 32, 32)
    return t.ResNetForImageClassification(config), (), {"pixel_values": image, "labels": torch.tensor([1, 2])}


class Collectives(TorchDispatchMode):
    """Records (kind, bytes by nccl-tests' convention) of every collective."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented
        name = func._schema.name
        for namespace in ("_c10d_functional::", "c10d::"):
            if name.startswith(namespace):
                kind = name.removeprefix(namespace).rstrip("_")
                kind = {"all_gather_into_tensor": "all_gather", "allreduce": "all_reduce"}.get(kind, kind)
                if kind in ("all_reduce", "all_gather", "reduce_scatter_tensor", "all_to_all_single"):
                    tensor = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
                    size = tensor.numel() * tensor.element_size()
                    self.seen.append((kind, size * (self.n if kind == "all_gather" else 1)))
        return func(*args, **(kwargs or {}))


def loss_of(output: Any) -> torch.Tensor:
    """The loss of a model's output, or the output itself."""
    return output if isinstance(output, torch.Tensor) else output.loss


def run(rank: int, n: int, store: str, styles: dict[str, dict[str, str]], result: str) -> None:
    """Entry point of each rank."""
    from torch.distributed.device_mesh import init_device_mesh

    from planner.validation.strategies.tensor_styles import apply_styles

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n)
    mesh = init_device_mesh("cpu", (n,), mesh_dim_names=("tp",))
    found: dict[str, Any] = {}
    for name, plan in styles.items():
        module, args, kwargs = build(name)
        expected = loss_of(module(*args, **kwargs)).item()
        module, args, kwargs = build(name)
        apply_styles(module, mesh["tp"], plan)
        with Collectives(n) as collectives:
            loss = loss_of(module(*args, **kwargs))
            loss.backward()
        found[name] = {"expected": expected, "loss": loss.item(), "collectives": sorted(collectives.seen)}
    if rank == 0:
        Path(result).write_text(json.dumps(found))
    dist.destroy_process_group()
