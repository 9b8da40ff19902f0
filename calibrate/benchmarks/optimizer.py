"""One optimizer step of torch.optim as a user constructs it, over tensor counts and sizes."""

from __future__ import annotations

from calibrate.benchmarks.base import Bench, Call, Case, register_benchmark
from calibrate.benchmarks.points import log_points

__all__ = ["optimizer_case", "optimizer_cases"]

_MOVED_TENSORS = {"sgd": 3, "adam": 7}
"""fp32 tensors of a parameter's size read and written: Adam reads parameter, gradient and both moments
and writes all but the gradient; SGD reads two and writes one."""

_MODEL_ELEMENTS = 3 << 20
_TENSOR_ELEMENTS = (1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
"""A step finds its parameters cold: all together they are far more than any cache holds. How long the update
takes then depends on the size of one tensor, so models of small and of large tensors are measured."""


@register_benchmark("optimizer")
def optimizer_cases(bench: Bench) -> list[Case]:
    """SGD and AdamW with default arguments (torch chooses single-tensor, foreach or fused)."""
    cases = []
    sizes = log_points(100, {"rows": (1, 128), "cols": (64, 4 << 20)})
    for variant, moved in _MOVED_TENSORS.items():
        fitting = [
            s
            for s in sizes
            if 4 * s["rows"] * s["cols"] <= bench.arena_bytes // 8
            and bench.fits(moved_bytes=4.0 * moved * s["rows"] * s["cols"])
        ]
        models = [{"rows": max(2, _MODEL_ELEMENTS // cols), "cols": cols} for cols in _TENSOR_ELEMENTS]
        for size in (*fitting[: bench.points(6)], *models):
            cases.append(optimizer_case(variant, size["rows"], size["cols"]))
    return cases


def optimizer_case(variant: str, rows: int, cols: int) -> Case:
    """One step of `rows` tensors of `cols` elements each. KeyError for an optimizer that is not measured."""
    moved = _MOVED_TENSORS[variant]

    def prepare(bench: Bench) -> Call:
        import torch

        parameters = [torch.nn.Parameter(bench.take((cols,)).clone()) for _ in range(rows)]
        for parameter in parameters:
            parameter.grad = bench.take((cols,))
        optimizer: torch.optim.Optimizer
        if variant == "adam":
            optimizer = torch.optim.AdamW(parameters, lr=1e-6, capturable=bench.cuda)
        else:
            optimizer = torch.optim.SGD(parameters, lr=1e-6)
        optimizer.step()
        return optimizer.step

    return Case(
        kind="optimizer",
        variant=variant,
        dtype="fp32",
        dims={"rows": rows, "cols": cols, "bytes": 4 * moved * rows * cols},
        prepare=prepare,
    )
