"""Trace files: what is read of them, and what is said of those that cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from costmodel.errors import InputFileError
from planner.validation.kineto.events import Kind
from planner.validation.kineto.reader import read_trace, read_traces
from tests.planner.validation.kineto.hand_made import cuda_trace, write


def test_kinds_numbers_and_links(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, cuda_trace(rank=1, shift=4.4e12)))
    assert (trace.rank, trace.world_size) == (1, 2)
    assert trace.on_device
    assert len(trace.device) == 8
    assert [e.name for e in trace.in_flight] == ["nccl:all_reduce"]
    assert sum(e.kind is Kind.LAUNCH for e in trace.host) == 8
    assert [e.name for e in trace.host if e.kind is Kind.MODULE] == ["", "a", "b"]
    names = {trace.host[b].name: trace.host[f].name for b, f in trace.links.items()}
    assert names == {"GeluBackward0": "aten::gelu", "AddmmBackward0": "aten::addmm"}
    first = min(e.start_s for e in (*trace.host, *trace.device))
    assert first == 0.0
    addmm = next(e for e in trace.host if e.name == "aten::addmm")
    assert addmm.duration_s == pytest.approx(13e-6, abs=2e-9)


def test_gzip_lists_and_old_categories(tmp_path: Path) -> None:
    whole = cuda_trace(arrows=False, modules="none")
    old = {"kernel": "Kernel", "cpu_op": "Operator", "gpu_memcpy": "Memcpy", "cuda_runtime": "Runtime"}
    for event in whole["traceEvents"]:
        event["cat"] = old.get(event.get("cat", ""), event.get("cat", ""))
    path = tmp_path / "worker_rank7.json.gz"
    path.write_bytes(gzip.compress(json.dumps(whole["traceEvents"]).encode()))
    trace = read_trace(path)
    assert (trace.rank, trace.world_size) == (7, None)
    assert len(trace.device) == 8
    assert any("sequence number" in note for note in trace.notes)


def test_a_file_without_a_rank_says_so(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, cuda_trace()["traceEvents"], "trace.json"))
    assert trace.rank == 0
    assert any("rank" in note for note in trace.notes)


def test_events_without_times_are_counted(tmp_path: Path) -> None:
    whole = cuda_trace()
    bad = [{"dur": -1.0}, {"ts": None}, {"dur": "long"}, {"ts": True}]
    whole["traceEvents"] += [{**whole["traceEvents"][0], **change} for change in bad]
    whole["traceEvents"] += [None, 3, {"ph": "X"}, {"ph": "X", "cat": ["kernel"], "name": "x"}]
    trace = read_trace(write(tmp_path, whole))
    assert any("4 events" in note for note in trace.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not whole JSON"),
        (b'{"traceEvents": [{"ph": "X"', "not whole JSON"),
        (gzip.compress(b'{"traceEvents": []}' * 40, mtime=0)[:-12], "cannot be read"),
        (b"\x1f\x8bnothing", "cannot be read"),
        (b'{"events": []}', "no list 'traceEvents'"),
        (b"3", "no list 'traceEvents'"),
        (b'{"traceEvents": []}', "is an operator"),
        (b'{"traceEvents": [{"ph": "X", "cat": "Trace", "name": "x", "ts": 1, "dur": 1}]}', "is an operator"),
        (b"\xff\xfe\x00", "not whole JSON"),
    ],
)
def test_broken_files_are_named_and_the_rest_is_used(tmp_path: Path, content: bytes, message: str) -> None:
    broken = tmp_path / "broken.json"
    broken.write_bytes(content)
    with pytest.raises(InputFileError, match=message) as error:
        read_trace(broken)
    assert str(broken) in str(error.value)
    good = write(tmp_path, cuda_trace(rank=1))
    traces, problems = read_traces([broken, good])
    assert [t.rank for t in traces] == [1]
    assert len(problems) == 1
    assert message in problems[0]
    with pytest.raises(InputFileError, match="no trace could be used"):
        read_traces([broken])


def test_folders_second_ranks_and_missing_paths(tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    write(folder, cuda_trace(rank=1), "a.json")
    write(folder, cuda_trace(rank=0), "b.json")
    write(folder, cuda_trace(rank=0), "c.json")
    write(folder, cuda_trace(rank=2), ".hidden.json")
    (folder / "notes.txt").write_text("nothing")
    traces, problems = read_traces([folder])
    assert [t.rank for t in traces] == [0, 1]
    assert len(problems) == 1
    assert "second trace of rank 0" in problems[0]
    with pytest.raises(InputFileError, match="does not exist"):
        read_traces([tmp_path / "none.json"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputFileError, match="holds no trace"):
        read_traces([tmp_path / "empty"])
