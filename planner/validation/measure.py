"""Timing one plan on the ranks that run it: steps, the split of one profiled step, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from planner.validation.strategies.answering import Answerer
    from planner.validation.strategies.compose import Runner

__all__ = ["let_records_end", "peak_memory", "profiled_split", "timed_step", "union_s"]

_QUIET_S = 0.2


def timed_step(
    runner: Runner | Answerer, barrier: Callable[[], None], device: torch.device
) -> tuple[float, float]:
    """(wall, processor) seconds of one step on this rank, begun together with the others."""
    import torch

    barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start, start_cpu = time.perf_counter(), time.process_time()
    runner.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, time.process_time() - start_cpu


def union_s(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of (start, end) spans.

    >>> union_s([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)])
    4.0
    """
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def let_records_end() -> None:
    """Wait before a profiler starts or stops. gloo's threads wake who waits for a collective before they end
    its record; one that ends after the profiler is gone writes into freed memory."""
    time.sleep(_QUIET_S)


def profiled_split(
    runner: Runner | Answerer, barrier: Callable[[], None], device: torch.device
) -> tuple[float, float, float]:
    """(compute, communication, optimizer) seconds of one step under the profiler.

    Compute is the time covered by operators (on CUDA: by kernels that are not collectives), communication
    that covered by collectives and point-to-point, waiting for the other side included; the two overlap
    where communication does. The profiler slows small operators, so these are shares rather than times.
    """
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    barrier()
    let_records_end()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        runner.step()
        let_records_end()
    compute: list[tuple[float, float]] = []
    communication: list[tuple[float, float]] = []
    optimizer: list[tuple[float, float]] = []
    for event in profiler.events():
        span = (event.time_range.start * 1e-6, event.time_range.end * 1e-6)
        name = event.name.lower()
        on_device = str(event.device_type).endswith("CUDA")
        if name.startswith(("gloo:", "nccl:", "nccldevkernel")):
            communication.append(span)
        elif name == "foreshard::optimizer":
            optimizer.append(span)
        elif (cuda and on_device) or (not cuda and name.startswith("aten::")):
            compute.append(span)
    return union_s(compute), union_s(communication), union_s(optimizer)


def peak_memory(
    runner: Runner | Answerer, device: torch.device, alive: Callable[[], None]
) -> tuple[int | None, dict[str, int]]:
    """Peak bytes of one step on this rank, and by kind where it can be told; `alive` is called between steps.

    CUDA: the allocator's own maximum. CPU: bytes of live tensors (parameters, gradients, optimizer state,
    activations), not of the process.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        runner.step()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)), {}
    from planner.validation.memory_watch import MemoryWatch, local_tensors

    parameters = [t for m in runner.modules for t in (*m.parameters(), *m.buffers())]
    state = []
    if runner.optimizer is not None:
        inner = getattr(runner.optimizer, "optim", runner.optimizer)  # of one that shares its state out
        kept = inner.state.values()
        state = [t for s in kept for t in s.values() if isinstance(t, torch.Tensor)]
        runner.optimizer.zero_grad(set_to_none=True)
    watch = MemoryWatch([*parameters, *state])
    with watch:
        runner.step()  # shows what stays from step to step beside them: a reducer's buckets
        alive()
        if runner.optimizer is not None:
            runner.optimizer.zero_grad(set_to_none=True)
        watch.peak_bytes = watch.live_bytes()
        runner.step()
    kinds = {
        "parameters": sum(t.untyped_storage().nbytes() for t in _distinct(local_tensors(parameters))),
        "optimizer": sum(t.untyped_storage().nbytes() for t in _distinct(local_tensors(state))),
    }
    return watch.peak_bytes, kinds


def _distinct(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """One tensor of each storage."""
    return list({t.untyped_storage().data_ptr(): t for t in tensors}.values())
