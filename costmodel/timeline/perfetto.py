"""Chrome trace-event JSON, one file per rank, as PyTorch's profiler lays it out.

Kernels are complete events ("ph": "X", "cat": "kernel") with the rank as process and the stream as thread;
times are microseconds. Point-to-point transfers carry flow arrows ("s" at the sender, "f" at the receiver).
Communication and copies bear the names that analysers know kernels by (ncclDevKernel_..., Memcpy ...), then
their own. The step is a ProfilerStep annotation; activations held are a counter.

A timeline holds one rank of each pipeline stage; the ranks of a stage do the same, so each gets its trace.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from costmodel.engine import Action, Run
from costmodel.files import write_whole
from costmodel.step.breakdown import activation_curve

__all__ = ["trace_events", "write_perfetto"]

_US_PER_S = 1e6
_HOST_THREAD = 1
_MOST_RANKS = 64
"""A trace for each of so many ranks at most; of a larger world one of each stage."""
_KERNELS = {
    "nccl:all_reduce": "ncclDevKernel_AllReduce",
    "nccl:all_gather": "ncclDevKernel_AllGather",
    "nccl:reduce_scatter": "ncclDevKernel_ReduceScatter",
    "nccl:": "ncclDevKernel_SendRecv",
}
_COPIES = {"h2d": "Memcpy HtoD", "d2h": "Memcpy DtoH"}


def _kernel_name(action: Action) -> str:
    name = action.name or action.kind
    if action.stream in _COPIES:
        return f"{_COPIES[action.stream]} {name}"
    return next((f"{kernel} {name}" for start, kernel in _KERNELS.items() if name.startswith(start)), name)


def trace_events(
    timeline: Run, rank: int, *, copies: int = 1, world_rank: int | None = None
) -> dict[str, Any]:
    """The trace of one rank of the timeline: its metadata, kernels, flow arrows, step and memory.

    `world_rank`: the rank that it is written for, of `copies` that do the same.
    """
    stage, rank = rank, rank if world_rank is None else world_rank
    streams = sorted(
        {a.stream for a in timeline.actions if a.rank == stage}, key=lambda s: (s != "compute", s)
    )
    number = {name: 7 + i for i, name in enumerate(streams)}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": f"rank {rank}"}},
        *(
            {"ph": "M", "name": "thread_name", "pid": rank, "tid": tid, "args": {"name": f"stream {name}"}}
            for name, tid in number.items()
        ),
    ]
    readers: dict[int, list[int]] = {}
    for i, action in enumerate(timeline.actions):
        for before in action.after:
            if timeline.actions[before].kind == "transfer":
                readers.setdefault(before, []).append(i)
    for i, action in enumerate(timeline.actions):
        start_us = timeline.start_s[i] * _US_PER_S
        if action.rank == stage:
            tid = number[action.stream]
            events.append(
                {
                    "ph": "X",
                    "cat": "kernel",
                    "name": _kernel_name(action),
                    "pid": rank,
                    "tid": tid,
                    "ts": start_us,
                    "dur": (timeline.end_s[i] - timeline.start_s[i]) * _US_PER_S,
                    "args": {"stream": tid, "correlation": i, "kind": action.kind, "device": rank},
                }
            )
            if action.kind == "transfer" and i in readers:
                events.append(_flow("s", i * copies + rank % copies, rank, tid, start_us))
        for before in action.after:
            if timeline.actions[before].kind == "transfer" and action.rank == stage:
                flow = before * copies + rank % copies
                events.append(_flow("f", flow, rank, number[action.stream], start_us))
    events.append(
        {
            "ph": "X",
            "cat": "user_annotation",
            "name": "ProfilerStep#0",
            "pid": rank,
            "tid": _HOST_THREAD,
            "ts": 0.0,
            "dur": timeline.makespan_s * _US_PER_S,
        }
    )
    events += [
        {
            "ph": "C",
            "name": "activations",
            "pid": rank,
            "tid": _HOST_THREAD,
            "ts": seconds * _US_PER_S,
            "args": {"bytes": held},
        }
        for seconds, held in activation_curve(timeline, stage)
    ]
    return {
        "schemaVersion": 1,
        "distributedInfo": {"backend": "nccl", "rank": rank, "world_size": copies * _n_ranks(timeline)},
        "displayTimeUnit": "ms",
        "traceEvents": events,
    }


def _flow(kind: str, number: int, pid: int, tid: int, ts_us: float) -> dict[str, Any]:
    event = {"ph": kind, "id": number, "cat": "p2p", "name": "p2p", "pid": pid, "tid": tid, "ts": ts_us}
    return {**event, "bp": "e"} if kind == "f" else event


def _n_ranks(timeline: Run) -> int:
    return 1 + max((a.rank for a in timeline.actions), default=0)


def write_perfetto(timeline: Run, folder: Path, *, ranks_per_stage: int = 1) -> list[Path]:
    """Write `rank-N.json` for every rank into `folder` (atomically) and return the paths.

    Ranks of one stage are numbered in a row, as pipelines lie outermost (`predict.placement`).
    """
    stages = _n_ranks(timeline)
    copies = ranks_per_stage if stages * ranks_per_stage <= _MOST_RANKS else 1
    paths = []
    for rank in range(stages * copies):
        path = folder / f"rank-{rank}.json"
        events = trace_events(timeline, rank // copies, copies=copies, world_rank=rank)
        paths.append(write_whole(path, json.dumps(events)))
    return paths
