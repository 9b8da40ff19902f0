"""Chrome traces of PyTorch's profiler (Kineto), plain or gzipped, to events.

Fields as torch/profiler/_chrome_trace_export.py and libkineto (output_json.cpp, CuptiActivity.cpp) write:
complete events ("ph": "X") with `cat`, `ts` and `dur` in microseconds; "fwdbwd" arrows ("s" at the forward
operator, "f" at the backward node) with equal `id`s, at the start times of their events; kernels bear the
`correlation` of the cuda_runtime call that launched them and the operator's number as `External id`.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from costmodel.errors import InputFileError
from planner.validation.kineto.events import Event, Kind, RankTrace
from planner.validation.kineto.recording import METADATA_KEY, MODULE_RANGE

__all__ = ["CLASS_RANGE", "read_trace", "read_traces", "trace_files"]

CLASS_RANGE = "nn.Module: "
_US = 1e-6
_KINDS = {
    "cpu_op": Kind.OPERATOR,
    "operator": Kind.OPERATOR,
    "user_annotation": Kind.RANGE,
    "cuda_runtime": Kind.LAUNCH,
    "cuda_driver": Kind.LAUNCH,
    "runtime": Kind.LAUNCH,
    "kernel": Kind.KERNEL,
    "gpu_memcpy": Kind.COPY,
    "gpu_memset": Kind.COPY,
    "memcpy": Kind.COPY,
    "memset": Kind.COPY,
}
"""The profiler's categories, lower case; the short ones are of releases before 1.12."""
_IN_FLIGHT = ("gloo:", "nccl:", "mpi:", "ucc:", "xccl:")
_DEVICE = (Kind.KERNEL, Kind.COPY)
_ENDINGS = (".json", ".json.gz")
_RANK_IN_NAME = re.compile(r"rank[-_. ]?(\d+)", re.IGNORECASE)


def trace_files(paths: Sequence[Path]) -> list[Path]:
    """The trace files among paths; of a folder every .json and .json.gz in it (hidden ones aside).

    Raises InputFileError for a path that does not exist or a folder without traces.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.name.endswith(_ENDINGS) and p.name[0] != ".")
            if not found:
                raise InputFileError(f"folder {path} holds no trace: no {' or '.join(_ENDINGS)} file in it")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise InputFileError(f"trace {path} does not exist; give files or a folder of profiler traces")
    return files


def read_traces(paths: Sequence[Path]) -> tuple[list[RankTrace], list[str]]:
    """Every readable trace, by rank, and what was wrong with the others.

    Of two files of one rank the first counts. Raises InputFileError where none can be used.
    """
    found: dict[int, RankTrace] = {}
    problems: list[str] = []
    for path in trace_files(paths):
        try:
            trace = read_trace(path)
        except InputFileError as error:
            problems.append(str(error))
            continue
        if trace.rank in found:
            problems.append(
                f"{path}: a second trace of rank {trace.rank} beside {found[trace.rank].path}; left out"
            )
            continue
        found[trace.rank] = trace
    if not found:
        raise InputFileError("no trace could be used: " + "; ".join(problems))
    return [found[rank] for rank in sorted(found)], problems


def read_trace(path: Path) -> RankTrace:
    """One trace file. Raises InputFileError where it is broken or holds no operator and no kernel."""
    data = _load(path)
    events = data.get("traceEvents") if isinstance(data, dict) else data
    if not isinstance(events, list):
        raise InputFileError(
            f"trace {path}: no list 'traceEvents'; it must be a file that torch.profiler's "
            "export_chrome_trace wrote"
        )
    head: Mapping[str, Any] = data if isinstance(data, dict) else {}
    notes: list[str] = []
    chosen, unusable = _chosen(events)
    if unusable:
        notes.append(f"{unusable} events without a name, time or duration were left out")
    if not any(kind in (Kind.OPERATOR, *_DEVICE) for kind, _ in chosen):
        raise InputFileError(
            f"trace {path}: none of its {len(events)} events is an operator (cpu_op) or a kernel; profile "
            "with activities=[ProfilerActivity.CPU] (and CUDA) and export after the steps have run"
        )
    begin_us = min(raw["ts"] for _, raw in chosen)
    host: list[Event] = []
    device: list[Event] = []
    in_flight: list[Event] = []
    starts: dict[tuple[Any, float], list[int]] = defaultdict(list)
    for kind, raw in chosen:
        event = _event(kind, raw, begin_us)
        if kind in _DEVICE:
            device.append(event)
        elif kind is Kind.COLLECTIVE:
            in_flight.append(event)
        else:
            if kind is Kind.OPERATOR:
                starts[raw.get("tid"), raw["ts"]].append(len(host))
            host.append(event)
    links = _links(events, starts, host)
    if not links and any(event.forward_thread for event in host):
        notes.append("no forward-backward arrows; backward operators are joined by sequence number")
    rank, world_size = _rank(path, head, notes)
    run = head.get(METADATA_KEY)
    return RankTrace(
        path=str(path),
        rank=rank,
        world_size=world_size,
        host=tuple(host),
        device=tuple(device),
        in_flight=tuple(in_flight),
        links=links,
        run=run if isinstance(run, dict) else None,
        notes=tuple(notes),
    )


def _load(path: Path) -> Any:
    try:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        return json.loads(text)
    except (OSError, EOFError, zlib.error) as error:
        raise InputFileError(f"trace {path} cannot be read: {error}; export it anew") from error
    except ValueError as error:
        raise InputFileError(
            f"trace {path} is not whole JSON: {error}; it was cut off or written by a defective exporter: "
            "export it anew"
        ) from error


def _chosen(events: Iterable[Any]) -> tuple[list[tuple[Kind, dict[str, Any]]], int]:
    """The timed events that are of use, with their kind, and how many of those had no proper time."""
    chosen: list[tuple[Kind, dict[str, Any]]] = []
    unusable = 0
    for raw in events:
        if not isinstance(raw, dict) or raw.get("ph") != "X":
            continue
        kind = _kind(raw)
        if kind is None:
            continue
        times = (raw.get("ts"), raw.get("dur"))
        if not all(isinstance(t, (int, float)) and not isinstance(t, bool) for t in times) or raw["dur"] < 0:
            unusable += 1
            continue
        chosen.append((kind, raw))
    return chosen, unusable


def _kind(raw: Mapping[str, Any]) -> Kind | None:
    name, category = raw.get("name"), raw.get("cat")
    if not isinstance(name, str) or not isinstance(category, str):
        return None
    category = category.lower()
    if category == "python_function":
        return Kind.MODULE if name.startswith(CLASS_RANGE) else None
    kind = _KINDS.get(category)
    if kind in (Kind.RANGE, Kind.OPERATOR):
        if name.startswith(MODULE_RANGE.rstrip()):
            return Kind.MODULE
        if name.startswith(_IN_FLIGHT):
            return Kind.COLLECTIVE
    return kind


def _event(kind: Kind, raw: Mapping[str, Any], begin_us: float) -> Event:
    found = raw.get("args")
    args: Mapping[str, Any] = found if isinstance(found, dict) else {}
    start_s = (raw["ts"] - begin_us) * _US
    name = str(raw["name"])
    if kind is Kind.MODULE and name.startswith(MODULE_RANGE.rstrip()):
        name = name[len(MODULE_RANGE) :]  # the root's path is empty
    return Event(
        kind,
        name,
        _integer(raw.get("tid")) or 0,
        start_s,
        start_s + raw["dur"] * _US,
        _integer(args.get("Sequence number")),
        _integer(args.get("Fwd thread id")),
        _integer(args.get("correlation")),
        _integer(args.get("External id", args.get("external id"))),
        _sizes(args),
    )


def _sizes(args: Mapping[str, Any]) -> tuple[str, ...]:
    """What was worked on: shapes of the inputs, of a collective's kernel the number of its elements."""
    dims = args.get("Input Dims")
    if isinstance(dims, list):
        return tuple(map(str, dims))
    return (str(args["In msg nelems"]),) if "In msg nelems" in args else ()


def _integer(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _links(
    events: Iterable[Any], starts: Mapping[tuple[Any, float], Sequence[int]], host: Sequence[Event]
) -> dict[int, int]:
    """Backward -> forward positions by the profiler's arrows; of events that start together the innermost
    one with a sequence number."""
    ends: dict[str, dict[Any, int]] = {"s": {}, "f": {}}
    for raw in events:
        if not isinstance(raw, dict) or raw.get("ph") not in ends:
            continue
        if raw.get("cat") not in ("fwdbwd", "forward_backward"):
            continue
        candidates = [
            i for i in starts.get((raw.get("tid"), raw.get("ts", -1.0)), ()) if host[i].sequence is not None
        ]
        if candidates:
            innermost = min(candidates, key=lambda i: host[i].duration_s)
            ends[raw["ph"]][raw.get("id")] = innermost
    return {end: ends["s"][key] for key, end in ends["f"].items() if key in ends["s"]}


def _rank(path: Path, head: Mapping[str, Any], notes: list[str]) -> tuple[int, int | None]:
    """(rank, world size) from the trace's own record, else from the file's name, else rank 0."""
    found = head.get("distributedInfo")
    info: Mapping[str, Any] = found if isinstance(found, dict) else {}
    world_size = _integer(info.get("world_size"))
    rank = _integer(info.get("rank"))
    if rank is not None:
        return rank, world_size
    match = _RANK_IN_NAME.search(path.name)
    if match:
        return int(match.group(1)), world_size
    notes.append("neither 'distributedInfo' nor the file's name says the rank; taken as rank 0")
    return 0, world_size
