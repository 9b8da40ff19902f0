"""Tables of collectives: columns, names, outliers, malformed lines."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from calibrate.importing.collective_tables import op_name, read_collective_table, split_implementation
from costmodel.errors import InputFileError

HEAD = (
    "gpu,n_gpus,n_nodes,op,message_bytes,dtype,latency_us,latency_inplace_us,link,impl,timing,"
    "source,quality,note\n"
)


def _write(path: Path, *lines: str, head: str = HEAD) -> Path:
    path.write_text(head + "\n".join(lines) + "\n")
    return path


def test_one_row(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "c.csv",
        "H200-SXM,4,1,alltoall,1024,half,12.5,,NVLink4 (NVSwitch),nccl-2.26.2,nccl-tests,src,rank_skew,",
    )
    table = read_collective_table(path)
    (sample,) = table.samples
    assert (sample.op, sample.n_ranks, sample.size_bytes) == ("all_to_all", 4, 1024.0)
    assert sample.time_s == pytest.approx(1.25e-5)
    assert (sample.impl, sample.version, sample.quality) == ("nccl", "2.26", "rank_skew")
    assert sample.link == "NVLink4 (NVSwitch)"
    assert sample.row_id == "1"


def test_first_touch_outlier_gives_way_to_in_place(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "c.csv",
        "g,2,1,all_reduce,8,float,99,20,,nccl,nccl-tests,s,,",
        "g,2,1,all_reduce,16,float,39,20,,nccl,nccl-tests,s,,",
    )
    assert [s.time_s for s in read_collective_table(path).samples] == pytest.approx([2e-5, 3.9e-5])


def test_malformed_lines_are_named_and_the_rest_is_used(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "c.csv",
        "g,2,1,all_reduce,8,float,10,,,nccl,nccl-tests,s,,",
        "g,2,1,all_reduce,eight,float,10,,,nccl,nccl-tests,s,,",
        "g,2,1,gossip,8,float,10,,,nccl,nccl-tests,s,,",
        "g,2,1,all_reduce,8,float,-1,,,nccl,nccl-tests,s,,",
        "g,5,2,all_reduce,8,float,10,,,nccl,nccl-tests,s,,",
        "g,2",
        "g,2,1,all_reduce,32,float,10,,,nccl,nccl-tests,s,,",
    )
    table = read_collective_table(path)
    assert [s.size_bytes for s in table.samples] == [8.0, 32.0]
    assert [s.row_id for s in table.samples] == ["1", "7"]
    assert [p.split(": ")[0] for p in table.problems] == [f"{path}:{n}" for n in (3, 4, 5, 6, 7)]
    assert "'eight' is not a number" in table.problems[0]


def test_gzip_and_minimal_columns(tmp_path: Path) -> None:
    path = tmp_path / "c.csv.gz"
    path.write_bytes(gzip.compress(b"gpu,n_gpus,op,message_bytes,latency_us\nT4,2,AllReduce,4096,33\n"))
    (sample,) = read_collective_table(path).samples
    assert (sample.op, sample.impl, sample.timing, sample.n_nodes) == ("all_reduce", "nccl", "nccl-tests", 1)


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", HEAD, HEAD + "g,x\n"], ids=["empty", "other", "head", "bad"]
)
def test_unusable_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.csv"
    path.write_text(text)
    with pytest.raises(InputFileError, match=str(path)):
        read_collective_table(path)


def test_binary_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(b"\x1f\x8bgarbage")
    with pytest.raises(InputFileError):
        read_collective_table(path)
    with pytest.raises(InputFileError):
        read_collective_table(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("text", "note", "expected"),
    [
        ("nccl", "", ("nccl", "")),
        ("nccl", "NCCL 2.9.9", ("nccl", "2.9")),
        ("nccl-2.27.7(NVLS off)", "", ("nccl:ring", "2.27")),
        ("nccl-2.27.7", "algo=NVLS", ("nccl:nvls", "2.27")),
        ("nccl(torch)", "a100_dgx", ("nccl", "")),
        ("nccl", "IB SHARP (COLLNET) on, NCCL 2.8", ("nccl:sharp", "2.8")),
        ("nccl", "second cluster, NCCL_ALGO=Ring MIN_CTAS=24 QPS=2", ("nccl:ring", "")),
        ("custom:vllm-0.14.0:vLLM_custom_graph", "", ("custom:vllm:vLLM_custom_graph", "0.14")),
        ("custom:trtllm-1.3.0rc20:TRTLLM", "", ("custom:trtllm:TRTLLM", "1.3")),
    ],
)
def test_wordings_of_implementations(text: str, note: str, expected: tuple[str, str]) -> None:
    assert split_implementation(text, note) == expected


def test_names_of_collectives() -> None:
    assert [op_name(t) for t in ("AllReduce", "alltoall", "sendrecv", "reduce_scatter", "p2p")] == [
        "all_reduce", "all_to_all", "p2p", "reduce_scatter", "p2p",
    ]  # fmt: skip
