"""Timing one call: on the host clock for a CPU, by CUDA-graph replay for a GPU.

Both give times per call in blocks, of which the visit's time is made: a GPU's replays give their median;
calls on a CPU vary more, and upwards, so their mean counts. The spread is the blocks' interquartile range
over their median. Blocks are long enough for the clock (a CPU block lasts about `_BLOCK_S`), and a visit
ends with its slice of time, not with a count, so that ranks measuring side by side stay together.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from calibrate.benchmarks.base import Bench, Call, Case

__all__ = [
    "IQR_OF_NORMAL",
    "THREAD_TIME",
    "Agree",
    "Timed",
    "clipped_mean",
    "summarise",
    "time_call",
    "time_case",
    "time_together",
]

Agree = Callable[[Sequence[float]], list[list[float]]]
"""Numbers of this rank -> those of every rank, by rank; all ranks call it together."""

THREAD_TIME = "thread_time"
"""Timing of host costs that hold no waiting: the processor time of the calling thread."""

_BLOCK_S = 100e-6
_BETWEEN_S = 3e-3
"""Computation before each timed call of ranks on a CPU: of the order of a layer's, and of a time slice."""
_LONGER_SLICE = 4.0
"""Calls after computation vary by more than themselves; their visits last so many times as long."""
_LONGEST_BLOCK = 2.0
_FEWEST_TOGETHER = 4
IQR_OF_NORMAL = 1.349
"""Interquartile range of a normal distribution in standard deviations."""
_RING_BYTES = 48 << 20
_RING_LONGEST = 64
_GRAPH_CALLS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Seconds of a call, spread (interquartile range over median), number of calls timed."""

    time_s: float
    spread: float
    n: int
    timing: str


def summarise(blocks_s: Sequence[float], calls_per_block: int, timing: str) -> Timed:
    """Median and spread of block times per call."""
    median = statistics.median(blocks_s)
    spread = 0.0
    if len(blocks_s) >= 2:
        low, _, high = statistics.quantiles(blocks_s, n=4, method="inclusive")
        spread = (high - low) / median
    return Timed(time_s=median, spread=spread, n=len(blocks_s) * calls_per_block, timing=timing)


def time_case(case: Case, bench: Bench, *, slice_s: float) -> Timed:
    """One visit: prepare, warm up, time for about `slice_s`, release.

    Raises RuntimeError (and what else torch raises) where the device cannot run the case.
    """
    import torch

    if bench.cuda and not case.host_clock:
        return _time_graph(case, bench, slice_s=slice_s)
    with torch.no_grad():
        call = case.prepare(bench)
        keep = _ring_length(case)
        settle = torch.cuda.synchronize if bench.cuda else None
        timed = time_call(call, slice_s=slice_s, keep=keep, settle=settle)
    return replace(timed, time_s=timed.time_s / case.calls)


def time_call(
    call: Call, *, slice_s: float, keep: int = 1, settle: Callable[[], None] | None = None
) -> Timed:
    """Time a call on the host clock; its last `keep` results stay alive.

    `settle` runs between blocks, outside the time: it lets a device finish what the host queued.
    """
    ring: deque[object] = deque(maxlen=keep)
    clock = time.perf_counter
    start = clock()
    ring.append(call())
    first_s = clock() - start
    # a second call: the first one builds primitives and grows the heap
    if first_s < slice_s:
        start = clock()
        ring.append(call())
        first_s = min(first_s, clock() - start)
    inner = max(1, math.ceil(_BLOCK_S / max(first_s, 1e-7)))
    for _ in range(min(keep, inner, max(0, int(0.3 * slice_s / max(first_s, 1e-7))))):
        ring.append(call())
    blocks: list[float] = []
    end = clock() + slice_s
    while len(blocks) < 2 or (clock() < end and len(blocks) < 1000):
        if settle is not None:
            settle()
        start = clock()
        for _ in range(inner):
            ring.append(call())
        blocks.append((clock() - start) / inner)
        if len(blocks) == 1 and blocks[0] > slice_s:
            break
    return clipped_mean(blocks, inner, "eager_loop")


def clipped_mean(blocks_s: Sequence[float], calls_per_block: int, timing: str) -> Timed:
    """What a call adds to a step on average, which is more than the median where some calls take longer.

    A block counts as `_LONGEST_BLOCK` medians at most: an interruption longer than that is not the call's.
    """
    found = summarise(blocks_s, calls_per_block, timing)
    limit = _LONGEST_BLOCK * found.time_s
    return replace(found, time_s=statistics.fmean(min(b, limit) for b in blocks_s))


def time_together(case: Case, bench: Bench, *, slice_s: float, agree: Agree) -> Timed:
    """One visit of a call that all ranks make together: they agree on how often, then call.

    The mean counts, not the median: what a step pays for many such calls is their sum, and where threads of
    the backend wait for a core some calls take many times as long as others.
    """
    import torch

    with torch.no_grad():
        call = case.prepare(bench)
        apart = case.between_computation and not bench.cuda
        computation = bench.computation(_BETWEEN_S) if apart else None
        agree([0.0])
        call()
        first_s = max(row[0] for row in agree([_wall_s(call, case, bench)]))
        inner = 1 if case.self_timed or apart else max(1, min(50, math.ceil(3 * _BLOCK_S / first_s)))
        length_s = inner * first_s + (_BETWEEN_S if apart else 0.0)
        longer_s = _LONGER_SLICE * slice_s if apart else slice_s
        fewest = _FEWEST_TOGETHER if apart or case.self_timed else 2
        count = max(fewest, min(20, int(longer_s / length_s)))
        blocks = []
        for _ in range(count):
            if computation is not None:
                computation()
            blocks.append(_one_block(call, inner, case, bench) / case.calls)
    if case.kind == "overlap" or (case.kind == "host" and case.self_timed):
        own = case.kind == "host" and not bench.cuda
        return summarise(blocks, inner, THREAD_TIME if own else "eager_loop")
    return _mean(blocks, inner, "eager_loop" if case.kind == "host" else "torch_loop")


def _mean(blocks_s: Sequence[float], calls_per_block: int, timing: str) -> Timed:
    """Mean of block times; the spread is that of the mean (interquartile range of its distribution)."""
    n = len(blocks_s)
    mean = statistics.fmean(blocks_s)
    spread = IQR_OF_NORMAL * statistics.stdev(blocks_s) / math.sqrt(n) / mean if n >= 2 else 0.0
    return Timed(time_s=mean, spread=spread, n=n * calls_per_block, timing=timing)


def _one_block(call: Call, inner: int, case: Case, bench: Bench) -> float:
    import torch

    if case.self_timed:
        seconds = call()
        assert isinstance(seconds, float)
        return seconds
    if bench.cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(inner):
        call()
    if bench.cuda and not case.host_clock:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / inner


def _wall_s(call: Call, case: Case, bench: Bench) -> float:
    """How long a call lasts, which is not what a call that times itself gives."""
    start = time.perf_counter()
    block_s = _one_block(call, 1, case, bench)
    return time.perf_counter() - start if case.self_timed else block_s


def _ring_length(case: Case) -> int:
    if not case.saved_output or not case.output_bytes:
        return 1
    return max(1, min(_RING_LONGEST, _RING_BYTES // case.output_bytes))


def _time_graph(case: Case, bench: Bench, *, slice_s: float) -> Timed:
    """Replay a captured graph of several calls between two events; kernels without their host launches.

    Inputs and outputs of the captured calls differ (see `benchmarks.base`), so the last-level cache does
    not serve them from the call before.
    """
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        call = case.prepare(bench)
        for _ in range(2):
            call()
        stream.synchronize()
        start = time.perf_counter()
        call()
        stream.synchronize()
        fitting = int(slice_s / (time.perf_counter() - start))
        calls = max(1, min(_GRAPH_CALLS, fitting, _ring_length(case) if case.saved_output else _GRAPH_CALLS))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                results = [call() for _ in range(calls)] if case.saved_output else _last(call, calls)
        except RuntimeError:
            torch.cuda.synchronize()
            return _time_queued(call, slice_s=slice_s)
        timed = _time_events(graph.replay, calls, slice_s=slice_s, timing="cuda_graph")
        del results, graph
    torch.cuda.current_stream().wait_stream(stream)
    return timed


def _last(call: Call, calls: int) -> object:
    result: object = None
    for _ in range(calls):
        result = call()
    return result


def _time_queued(call: Call, *, slice_s: float) -> Timed:
    """For calls that cannot be captured: queue several behind a sleeping kernel, so launches are hidden."""
    import torch

    cycles = int(2e9 * min(0.01, max(1e-4, slice_s)))

    def queued() -> None:
        for _ in range(_GRAPH_CALLS):
            call()

    blocks: list[float] = []
    end = time.perf_counter() + slice_s
    while len(blocks) < 3 or (time.perf_counter() < end and len(blocks) < 200):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(cycles)
        start.record()
        queued()
        stop.record()
        stop.synchronize()
        blocks.append(start.elapsed_time(stop) * 1e-3 / _GRAPH_CALLS)
    return summarise(blocks, _GRAPH_CALLS, "event_queued")


def _time_events(run: Callable[[], object], calls: int, *, slice_s: float, timing: str) -> Timed:
    import torch

    run()
    blocks: list[float] = []
    end = time.perf_counter() + slice_s
    while len(blocks) < 3 or (time.perf_counter() < end and len(blocks) < 1000):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        blocks.append(start.elapsed_time(stop) * 1e-3 / calls)
    return summarise(blocks, calls, timing)
