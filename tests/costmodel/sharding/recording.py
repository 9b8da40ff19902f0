"""A small forward recorder for these tests: the operators a real module dispatches on meta tensors."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from costmodel.graph.model_graph import Operator, Phase, Segment, TensorInfo, TensorRole

KINDS = {
    "mm": "gemm",
    "addmm": "gemm",
    "bmm": "bmm",
    "baddbmm": "bmm",
    "convolution": "conv",
    "_scaled_dot_product_flash_attention_for_cpu": "attention",
    "_scaled_dot_product_fused_attention_overrideable": "attention",
    "native_layer_norm": "norm",
    "native_batch_norm": "norm",
    "embedding": "embedding",
    "_softmax": "softmax",
    "_log_softmax": "softmax",
}
HOST = (
    "view",
    "t",
    "transpose",
    "permute",
    "_unsafe_view",
    "split",
    "expand",
    "unsqueeze",
    "detach",
    "slice",
)


def _dims(
    name: str, ins: list[tuple[int, ...]], outs: list[tuple[int, ...]], op: Any, args: Any
) -> dict[str, int]:
    kind = KINDS.get(name)
    if kind == "gemm":
        a, b = ins[-2:]
        return {"m": a[0], "k": a[1], "n": b[1]}
    if kind == "bmm":
        a, b = ins[-2:]
        return {"batch": a[0], "m": a[1], "k": a[2], "n": b[2]}
    if kind == "conv":
        x, w = ins[:2]
        return {
            "batch": x[0],
            "c_in": x[1],
            "c_out": w[0],
            "h": x[2],
            "w": x[3],
            "groups": args[-1],
            "transposed": 0,
        }
    if kind == "attention":
        q, k, v = ins[:3]
        return {
            "batch": q[0], "heads": q[1], "q_len": q[2], "qk_dim": q[3], "kv_heads": k[1], "kv_len": k[2],
            "v_dim": v[3],
        }  # fmt: skip
    out = outs[0] if outs else ()
    return {"rows": prod(out[:-1]), "cols": out[-1] if out else 1, "bytes": 0}


def _flop(kind: str, dims: dict[str, int], ins: list[tuple[int, ...]], outs: list[tuple[int, ...]]) -> int:
    if kind in ("gemm", "bmm"):
        return 2 * dims.get("batch", 1) * dims["m"] * dims["n"] * dims["k"]
    if kind == "conv":
        return 2 * prod(outs[0]) * prod(ins[1][1:])
    if kind == "attention":
        return (
            2
            * dims["batch"]
            * dims["heads"]
            * dims["q_len"]
            * dims["kv_len"]
            * (dims["qk_dim"] + dims["v_dim"])
        )
    return 0


class Recorder(TorchDispatchMode):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.ids: dict[int, int] = {}
        self.keep: list[torch.Tensor] = []
        self.tensors: list[TensorInfo] = []
        self.operators: list[Operator] = []
        self.stack: list[str] = [""]
        self.names = {id(p): n for n, p in module.named_parameters()}
        self.buffers = {id(b) for b in module.buffers()}

    def tensor(self, t: torch.Tensor, role: TensorRole) -> int:
        if id(t) not in self.ids:
            name = self.names.get(id(t), "")
            self.ids[id(t)] = len(self.tensors)
            self.keep.append(t)
            self.tensors.append(
                TensorInfo(
                    index=len(self.tensors),
                    shape=tuple(t.shape),
                    dtype=str(t.dtype).removeprefix("torch."),
                    role=TensorRole.PARAMETER
                    if name
                    else TensorRole.BUFFER
                    if id(t) in self.buffers
                    else role,
                    size_bytes=t.numel() * t.element_size(),
                    name=name,
                    requires_grad=t.requires_grad,
                    saved=role is TensorRole.ACTIVATION,
                )
            )
        return self.ids[id(t)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        ins = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        outs = [t for t in tree_flatten(out)[0] if isinstance(t, torch.Tensor)]
        name = func.overloadpacket.__name__
        arguments: dict[str, Any] = {}
        for spec, value in zip(func._schema.arguments, args, strict=False):
            if isinstance(value, int) and not isinstance(value, bool):
                arguments[spec.name] = value
            elif isinstance(value, list | tuple) and value and all(isinstance(x, int) for x in value):
                arguments[spec.name] = tuple(value)
        in_ids = tuple(self.tensor(t, TensorRole.INPUT) for t in ins)
        out_ids = tuple(self.tensor(t, TensorRole.ACTIVATION) for t in outs)
        in_shapes, out_shapes = [tuple(t.shape) for t in ins], [tuple(t.shape) for t in outs]
        kind = "host" if name in HOST else KINDS.get(name, "elementwise")
        dims = _dims(name, in_shapes, out_shapes, func, args)
        self.operators.append(
            Operator(
                index=len(self.operators),
                target=f"aten.{name}",
                kind=kind,
                variant="",
                dtype="float32",
                dims=dims,
                flop=_flop(kind, dims, in_shapes, out_shapes),
                bytes_read=0 if kind == "host" else sum(t.numel() * t.element_size() for t in ins),
                bytes_written=0 if kind == "host" else sum(t.numel() * t.element_size() for t in outs),
                inputs=in_ids,
                outputs=out_ids,
                phase=Phase.FORWARD,
                module=self.stack[-1],
                arguments=arguments,
            )
        )
        return out


def record(
    module: nn.Module, *args: Any, entry: int | None = 0, device: str = "meta", **kwargs: Any
) -> Segment:
    """The forward of a module as a segment; argument number `entry` is the activation that comes in."""
    module = module.to(device)
    args = tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in args)
    if entry is not None:
        args[entry].requires_grad_(True)
    recorder = Recorder(module)
    hooks = []
    for path, child in module.named_modules():
        hooks.append(child.register_forward_pre_hook(lambda m, a, path=path: recorder.stack.append(path)))
        hooks.append(child.register_forward_hook(lambda m, a, o: recorder.stack.pop() and None))
    with recorder:
        module(*args, **kwargs)
    return Segment(
        name="recorded",
        count=1,
        modules=("",),
        operators=tuple(recorder.operators),
        tensors=tuple(recorder.tensors),
        output_bytes=recorder.tensors[recorder.operators[-1].outputs[0]].size_bytes,
    )
