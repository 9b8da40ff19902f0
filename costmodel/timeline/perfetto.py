"""Chrome trace-event JSON, one file per rank, as PyTorch's profiler lays it out.

Kernels are complete events ("ph": "X", "cat": "kernel") with the rank as process and the stream as thread;
times are microseconds. Point-to-point transfers carry flow arrows ("s" at the sender, "f" at the receiver).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from costmodel.engine import Run

__all__ = ["trace_events", "write_perfetto"]

_US_PER_S = 1e6


def trace_events(timeline: Run, rank: int) -> dict[str, Any]:
    """The trace of one rank: its metadata, kernels and flow arrows."""
    streams = sorted(
        {a.stream for a in timeline.actions if a.rank == rank}, key=lambda s: (s != "compute", s)
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
        if action.rank == rank:
            tid = number[action.stream]
            events.append(
                {
                    "ph": "X",
                    "cat": "kernel",
                    "name": action.name or action.kind,
                    "pid": rank,
                    "tid": tid,
                    "ts": start_us,
                    "dur": (timeline.end_s[i] - timeline.start_s[i]) * _US_PER_S,
                    "args": {"stream": tid, "correlation": i, "kind": action.kind, "device": rank},
                }
            )
            if action.kind == "transfer" and i in readers:
                events.append(_flow("s", i, rank, tid, start_us))
        for before in action.after:
            if timeline.actions[before].kind == "transfer" and action.rank == rank:
                events.append(_flow("f", before, rank, number[action.stream], start_us))
    return {
        "schemaVersion": 1,
        "distributedInfo": {"backend": "nccl", "rank": rank, "world_size": _n_ranks(timeline)},
        "displayTimeUnit": "ms",
        "traceEvents": events,
    }


def _flow(kind: str, number: int, pid: int, tid: int, ts_us: float) -> dict[str, Any]:
    event = {"ph": kind, "id": number, "cat": "p2p", "name": "p2p", "pid": pid, "tid": tid, "ts": ts_us}
    return {**event, "bp": "e"} if kind == "f" else event


def _n_ranks(timeline: Run) -> int:
    return 1 + max((a.rank for a in timeline.actions), default=0)


def write_perfetto(timeline: Run, folder: Path) -> list[Path]:
    """Write `rank-N.json` for every rank into `folder` (atomically) and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for rank in range(_n_ranks(timeline)):
        path = folder / f"rank-{rank}.json"
        partial = path.with_suffix(".json.part")
        partial.write_text(json.dumps(trace_events(timeline, rank)))
        os.replace(partial, path)
        paths.append(path)
    return paths
