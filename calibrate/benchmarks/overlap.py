"""Computation and communication beside each other, and each of them alone.

`compute_beside`: the same GEMMs while all-reduces are under way all the time; `comm_beside`: the same
all-reduces while GEMMs run all the time. The ratio to the time alone is the slow-down. Also the rates of
memory: a device-wide copy and read, and transfers between host and device where they are two.
"""

from __future__ import annotations

import math
import time

from calibrate.benchmarks.base import Bench, Call, Case, register_benchmark

__all__ = ["COMM_BYTES", "memory_cases", "overlap_cases"]

COMM_BYTES = 8 << 20
_GEMM_SIDE = 384
_COMPUTE_S = 60e-3
"""GEMMs of one call last about this long: many time slices of a scheduler (3 to 10 ms), or a core that
communication shares seems free for the length of a slice."""
_COVER = 2.0
"""All-reduces started beside the GEMMs last this many times as long, both alone."""
_MOST_STARTED = 64


@register_benchmark("overlap")
def overlap_cases(bench: Bench) -> list[Case]:
    """Four calls whose ratios are the slow-downs; all ranks make them together."""
    world = bench.world_size
    if world < 2:
        return []
    return [
        Case(
            kind="overlap",
            variant=variant,
            dtype="fp32",
            dims={},
            prepare=prepare,
            n_ranks=world,
            self_timed=variant == "compute_beside",
        )
        for variant, prepare in (
            ("compute_alone", _compute_alone),
            ("compute_beside", _compute_beside),
            ("comm_alone", _comm_alone),
            ("comm_beside", _comm_beside),
        )
    ]


@register_benchmark("memory")
def memory_cases(bench: Bench) -> list[Case]:
    """Copy and read of an eighth of the arena; with a device, pinned copies to and from the host."""
    import torch

    n = bench.arena_bytes // 32
    half = n // 2

    def copy(bench: Bench) -> Call:
        source, target = bench.rotate((half,)), bench.rotate((half,), "zeros")
        return lambda: target().copy_(source())

    def read(bench: Bench) -> Call:
        source = bench.rotate((n,))
        return lambda: source().sum()

    def to_device(bench: Bench) -> Call:
        host, device = torch.empty(half, pin_memory=True), bench.take((half,), "zeros")
        return lambda: device.copy_(host, non_blocking=True)

    def to_host(bench: Bench) -> Call:
        host, device = torch.empty(half, pin_memory=True), bench.take((half,))
        return lambda: host.copy_(device, non_blocking=True)

    makers = {"copy": copy, "read": read}
    if bench.cuda:
        makers |= {"host_to_device": to_device, "device_to_host": to_host}
    return [
        Case(
            kind="memory",
            variant=variant,
            dtype="fp32",
            dims={"bytes": 4 * (half if "host" in variant else n)},
            prepare=prepare,
        )
        for variant, prepare in makers.items()
    ]


def _settle(bench: Bench) -> None:
    """Wait for this stream only: communication runs on another one."""
    import torch

    if bench.cuda:
        torch.cuda.current_stream().synchronize()


def _compute_alone(bench: Bench) -> Call:
    gemms = bench.computation(_COMPUTE_S)

    def call() -> None:
        gemms()
        _settle(bench)

    return call


def _comm_alone(bench: Bench) -> Call:
    import torch.distributed as dist

    buffer = bench.rotate((COMM_BYTES // 4,), "zeros")
    group = bench.groups[bench.world_size]

    def call() -> None:
        dist.all_reduce(buffer(), group=group)
        _settle(bench)

    return call


def _compute_beside(bench: Bench) -> Call:
    """Seconds of the GEMMs alone while all-reduces that last longer are under way.

    Every rank starts the same number of all-reduces, from times that the ranks agree on.
    """
    import torch
    import torch.distributed as dist

    compute, comm = _compute_alone(bench), _comm_alone(bench)
    buffer = bench.rotate((COMM_BYTES // 4,), "zeros")
    group = bench.groups[bench.world_size]
    times = torch.tensor([_seconds(compute), -_seconds(comm)], device=bench.device)
    dist.all_reduce(times, op=dist.ReduceOp.MAX, group=group)
    count = min(_MOST_STARTED, math.ceil(_COVER * float(times[0]) / -float(times[1])))

    def call() -> float:
        works = [dist.all_reduce(buffer(), group=group, async_op=True) for _ in range(count)]
        start = time.perf_counter()
        compute()
        elapsed = time.perf_counter() - start
        for work in works:
            if work is not None:
                work.wait()
        return elapsed

    return call


def _seconds(call: Call) -> float:
    """Shortest of three."""
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _comm_beside(bench: Bench) -> Call:
    """One all-reduce while GEMMs are started until it has ended."""
    import torch
    import torch.distributed as dist

    a, b = bench.rotate((_GEMM_SIDE // 4, _GEMM_SIDE)), bench.rotate((_GEMM_SIDE, _GEMM_SIDE))
    buffer = bench.rotate((COMM_BYTES // 4,), "zeros")
    group = bench.groups[bench.world_size]

    def call() -> None:
        work = dist.all_reduce(buffer(), group=group, async_op=True)
        assert work is not None
        while not work.is_completed():
            torch.mm(a(), b())
        work.wait()

    return call
