"""nccl-tests logs in the column forms of its versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrate.importing.nccl_logs import read_nccl_log
from costmodel.errors import InputFileError

RANKS = "".join(
    f"#  Rank  {i} Group  0 Pid  10{i} on  host{i // 2} device  {i % 2} [0x00] NVIDIA H100\n"
    for i in range(4)
)
UNITS = (
    "# size count type redop root time algbw busbw #wrong time algbw busbw #wrong\n"
    "# (B) (elements) (us) (GB/s) (GB/s) (us) (GB/s) (GB/s)\n"
)


def _read(tmp_path: Path, text: str, **fields: object):  # type: ignore[no-untyped-def]
    path = tmp_path / "nccl.log"
    path.write_text(text)
    return read_nccl_log(path, **fields)


@pytest.mark.parametrize(
    ("line", "time_us"),
    [
        ("1048576 262144 float sum -1 50.1 20.9 31.4 0 49.0 21.4 32.1 0", 50.1),
        ("1048576 262144 float sum 50.1 20.9 31.4 0e+00 49.0 21.4 32.1 0e+00", 50.1),
        ("1048576 262144 float 50.1 20.9 31.4 0 49.0 21.4 32.1 N/A", 50.1),
        ("1048576 262144 float none 0 50.1 20.9 31.4 N/A 49.0 21.4 32.1 N/A", 50.1),
        ("1048576 262144 float sum 50.1 20.9 31.4 49.0 21.4 32.1", 50.1),
        ("1048576 262144 float sum -1 50.1 20.9 31.4", 50.1),
        ("1048576 262144 float sum 50.1 20.9 31.4 0", 50.1),
        ("1048576 262144 half -1 50.1 20.9 31.4 0", 50.1),
        ("1048576 262144 bfloat16 sum -1 350.1 20.9 31.4 0 49.0 21.4 32.1 0", 49.0),
        ("1M 262144 fp8_e4m3 sum -1 50 20.9 31.4 0 49 21.4 32.1 0", 50.0),
    ],
)
def test_column_forms(tmp_path: Path, line: str, time_us: float) -> None:
    log = _read(tmp_path, "# nThread 1\nall_reduce_perf -b 8 -e 1M\n" + RANKS + UNITS + "  " + line + "\n")
    (sample,) = log.samples
    assert not log.problems
    assert sample.size_bytes == 1048576
    assert sample.time_s == pytest.approx(time_us * 1e-6)
    assert (sample.op, sample.n_ranks, sample.n_nodes) == ("all_reduce", 4, 2)


def test_what_the_log_does_not_say_comes_from_the_caller(tmp_path: Path) -> None:
    line = "1024 256 float sum -1 10.0 1 1 0\n"
    (sample,) = _read(tmp_path, line, op="all_gather", n_ranks=8, device="A100", link="nvlink3").samples
    assert (sample.op, sample.n_ranks, sample.n_nodes, sample.device) == ("all_gather", 8, 1, "A100")
    with pytest.raises(InputFileError, match="which collective"):
        _read(tmp_path, line)
    with pytest.raises(InputFileError, match="number of ranks"):
        _read(tmp_path, line, op="all_gather")


def test_malformed_lines_are_named_and_the_rest_is_used(tmp_path: Path) -> None:
    text = (
        "alltoall_perf\nNCCL version 2.21.5+cuda12.4\n" + RANKS
        + "8 2 float 9.9 0 0 0\n"
        + "16 4 quaternion 9.9 0 0 0\n"
        + "32 8 float 9.9 0\n"
        + "64 16 float nan 0 0 0\n"
        + "128 32 float 9.9 0 0 5\n"
        + "256 64 float 11.5 0 0 0\n"
    )  # fmt: skip
    log = _read(tmp_path, text)
    assert [s.size_bytes for s in log.samples] == [8.0, 256.0]
    assert {s.version for s in log.samples} == {"2.21"}
    assert {s.op for s in log.samples} == {"all_to_all"}
    numbers = [p.split(": ")[0].rpartition(":")[2] for p in log.problems]
    assert numbers == ["8", "9", "10", "11"]
    assert "wrong values" in log.problems[-1]


def test_one_log_of_several_programs_and_launcher_prefixes(tmp_path: Path) -> None:
    text = (
        RANKS
        + "[1,0]<stdout>:# all_reduce_perf\n[1,0]<stdout>: 1024 256 float sum -1 10.0 1 1 0\n"
        + "# reduce_scatter_perf\n2048 512 float sum -1 12.0 1 1 0\n"
    )
    assert [s.op for s in _read(tmp_path, text).samples] == ["all_reduce", "reduce_scatter"]


def test_milliseconds_by_the_header(tmp_path: Path) -> None:
    text = "# (B) (elements) (ms) (GB/s) (GB/s)\n1024 256 float sum 2.0 1 1 0\n"
    assert _read(tmp_path, text, op="all_reduce", n_ranks=2).samples[0].time_s == pytest.approx(2e-3)


def test_a_file_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="no line looks like data"):
        _read(tmp_path, "hello\n# world\n")
