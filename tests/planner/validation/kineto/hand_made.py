"""A CUDA trace small enough to know every answer, with the fields that torch's exporter writes.

Host thread 100 runs the forward of modules a and b, autograd's thread 200 the backward, stream 7 computes and
stream 20 reduces gradients. Microseconds:

    stream 7   copy 90-100, a 100-200, b 200-250, b' 300-340, a' 340-440, a' 440-540, update 700-760
    stream 20  all-reduce 400-700
    step       0-1000
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["cuda_trace", "two_layers", "write"]

_PID = 1


def _complete(name: str, category: str, tid: int, start: float, end: float, **args: Any) -> dict[str, Any]:
    pid = 0 if category in ("kernel", "gpu_memcpy") else _PID
    named = {key.replace("_", " "): value for key, value in args.items()}
    event = {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": pid,
        "tid": tid,
        "ts": start,
        "dur": end - start,
    }
    return {**event, "args": named}


def _operator(name: str, tid: int, start: float, end: float, external: int, **args: Any) -> dict[str, Any]:
    return _complete(name, "cpu_op", tid, start, end, **{"External_id": external, **args})


def _launch(tid: int, start: float, correlation: int, external: int) -> dict[str, Any]:
    args = {"cbid": 211, "correlation": correlation, "External_id": external}
    return _complete("cudaLaunchKernel", "cuda_runtime", tid, start, start + 2, **args)


def _kernel(
    name: str, stream: int, start: float, end: float, correlation: int, external: int
) -> dict[str, Any]:
    args = {"External_id": external, "device": 0, "stream": stream, "correlation": correlation}
    return _complete(name, "gpu_memcpy" if "Memcpy" in name else "kernel", stream, start, end, **args)


def _numbers(sequence: int, forward_thread: int = 0) -> dict[str, int]:
    return {"Sequence_number": sequence, "Fwd_thread_id": forward_thread}


def _node(name: str, start: float, end: float, sequence: int, external: int) -> list[dict[str, Any]]:
    numbers = _numbers(sequence, 1)
    evaluate = f"autograd::engine::evaluate_function: {name}"
    return [
        _operator(evaluate, 200, start, end, external, **numbers),
        _operator(name, 200, start + 1, end - 1, external + 1, **numbers),
    ]


def _arrow(number: int, sent: tuple[int, float], received: tuple[int, float]) -> list[dict[str, Any]]:
    event = {"id": number, "pid": _PID, "cat": "fwdbwd", "name": "fwdbwd"}
    return [
        {"ph": "s", "tid": sent[0], "ts": sent[1], **event},
        {"ph": "f", "tid": received[0], "ts": received[1], "bp": "e", **event},
    ]


def cuda_trace(
    *, rank: int = 0, arrows: bool = True, launches: bool = True, modules: str = "path", shift: float = 0.0
) -> dict[str, Any]:
    """The trace. `arrows`: with forward-backward arrows; `launches`: with calls of the CUDA runtime;
    `modules`: path, class (as with_stack names them) or none; `shift`: added to all times."""
    names = {
        "path": ("foreshard::module {}", "user_annotation"),
        "class": ("nn.Module: {}", "python_function"),
    }
    ranges: list[dict[str, Any]] = []
    if modules in names:
        text, category = names[modules]
        paths = ("", "a", "b") if modules == "path" else ("Net_0", "Linear_0", "GELU_0")
        for path, start, end in zip(paths, (10, 10, 50), (100, 50, 100), strict=True):
            ranges.append(_complete(text.format(path), category, 100, start, end))
    called = [
        _launch(100, 5, 108, 0),
        _launch(100, 30, 101, 2),
        _launch(100, 65, 102, 3),
        _launch(200, 130, 103, 22),
        _launch(200, 160, 104, 32),
        _launch(200, 180, 105, 33),
        _launch(200, 215, 106, 43),
        _launch(100, 265, 107, 51),
    ]
    events = [
        _complete("ProfilerStep#1", "user_annotation", 100, 0, 1000),
        *ranges,
        _operator("aten::linear", 100, 20, 40, 1, **_numbers(5)),
        _operator("aten::addmm", 100, 25, 38, 2, **_numbers(5)),
        _operator("aten::gelu", 100, 60, 80, 3, **_numbers(6)),
        *_node("GeluBackward0", 120, 150, 6, 20),
        _operator("aten::gelu_backward", 200, 122, 148, 22),
        *_node("AddmmBackward0", 150, 200, 5, 30),
        _operator("aten::mm", 200, 155, 170, 32),
        _operator("aten::mm", 200, 175, 190, 33),
        _operator("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 200, 200, 240, 40),
        _operator("torch::autograd::AccumulateGrad", 200, 201, 205, 41),
        _operator("c10d::allreduce_", 200, 210, 235, 42),
        _operator("record_param_comms", 200, 212, 230, 43),
        _complete("nccl:all_reduce", "user_annotation", 200, 212, 230),
        _complete("Optimizer.step#AdamW.step", "user_annotation", 100, 250, 300),
        _operator("aten::_foreach_add_", 100, 260, 280, 51),
        *(called if launches else []),
        _kernel("Memcpy HtoD (Pinned -> Device)", 7, 90, 100, 108, 0),
        _kernel("gemm_forward", 7, 100, 200, 101, 2),
        _kernel("gelu_forward", 7, 200, 250, 102, 3),
        _kernel("gelu_backward", 7, 300, 340, 103, 22),
        _kernel("gemm_input", 7, 340, 440, 104, 32),
        _kernel("gemm_weight", 7, 440, 540, 105, 33),
        _kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 20, 400, 700, 106, 43),
        _kernel("multi_tensor_apply_kernel", 7, 700, 760, 107, 51),
    ]
    if arrows:
        events += _arrow(1, (100, 60), (200, 121)) + _arrow(2, (100, 25), (200, 151))
    for event in events:
        event["ts"] += shift
    events.append({"ph": "M", "name": "process_name", "pid": _PID, "tid": 0, "args": {"name": "python"}})
    return {
        "schemaVersion": 1,
        "deviceProperties": [{"id": 0, "name": "a GPU"}],
        "distributedInfo": {"backend": "nccl", "rank": rank, "world_size": 2},
        "displayTimeUnit": "ms",
        "traceEvents": events,
    }


def write(folder: Path, trace: Any, name: str = "rank-0.json") -> Path:
    """Write a trace and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(trace))
    return path


def two_layers() -> tuple[torch.nn.Module, tuple[torch.Tensor]]:
    """The model that the trace is of: a linear layer a, then GELU b."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.GELU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.b(self.a(x))
            return made

    return Net(), (torch.randn(4, 8),)
