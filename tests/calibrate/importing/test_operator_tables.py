"""Operator tables: each kind's columns, malformed lines named, the rest used."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest

from calibrate.importing.operator_tables import read_operator_tables, read_rows
from costmodel.errors import InputFileError

GEMM = "gpu,dtype,op,m,n,k,batch,latency_us,source,framework,timing,part\n"
ATTENTION = "gpu,dtype,kv_dtype,phase,kind,batch,q_len,kv_len,heads,kv_heads,qk_dim,v_dim,window,causal,latency_us,timing,framework,kernel\n"  # noqa: E501


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_gemm_and_bmm(tmp_path: Path) -> None:
    text = (
        GEMM
        + "T4,fp32,linear,8,16,32,1,12.5,here,torch,event_eager,\n"
        + "T4,fp32,bmm,8,16,32,4,25,here,torch,event_eager,\n"
        + "A100-PCIe-80GB,bf16,linear,8,16,32,1,10,here,te,derived,wgrad\n"
    )
    read = read_operator_tables([_write(tmp_path / "g.csv", text)])
    gemm, bmm = read.tables["gemm"], read.tables["bmm"]
    assert gemm.time_s.tolist() == pytest.approx([12.5e-6, 10e-6])
    assert gemm.variant.tolist() == ["nt", "tn"]
    assert bmm.dims["batch"].tolist() == [4.0]
    assert (bmm.row_id.tolist(), gemm.row_id.tolist()) == (["2"], ["1", "3"])
    assert read.problems == ()


def test_gzip_and_attention_cache_dtype(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    rows = (
        "H100-SXM5-80GB,bf16,fp8,decode,mha/gqa,2,1,512,32,8,128,128,0,True,20,cuda_graph,vllm-0.24.0,fa3\n"
    )
    rows += "H100-SXM5-80GB,bf16,bf16,train_bwd,mla,2,512,512,32,32,192,128,0,True,20,cuda_graph,te,\n"
    path.write_bytes(gzip.compress((ATTENTION + rows).encode()))
    table = read_operator_tables([path]).tables["attention"]
    assert table.dtype.tolist() == ["bf16+fp8kv", "bf16"]
    assert table.variant.tolist() == ["decode", "mla_bwd"]
    assert table.framework.tolist() == ["vllm-0.24.0:fa3", "te"]
    assert table.dims["causal"].tolist() == [1.0, 1.0]


def test_memory_bound_and_experts(tmp_path: Path) -> None:
    memory = "gpu,dtype,op,rows,cols,bytes,latency_us,timing\n"
    memory += "T4,fp32,add_scalar,8,8,512,9,event_eager\nT4,fp32,layernorm,8,8,512,9,event_eager\n"
    moe = "gpu,dtype,num_tokens,hidden,inter,topk,num_experts,moe_tp,moe_ep,distribution,"
    moe += "latency_us,timing,kernel\n"
    moe += "B200,bf16,64,128,256,2,8,1,4,balanced,9,cuda_graph,k\n"
    moe += "B200,bf16,64,128,256,2,8,1,4,balanced,9,derived,grouped_gemm:bwd_grad_w\n"
    read = read_operator_tables([_write(tmp_path / "m.csv", memory), _write(tmp_path / "e.csv", moe)])
    assert set(read.tables) == {"elementwise", "norm", "moe", "grouped_gemm"}
    assert read.tables["elementwise"].variant.tolist() == ["add"]
    assert read.tables["grouped_gemm"].dims["groups"].tolist() == [2.0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("T4,fp32,linear,8,x,32,1,12.5,,,t,", "n='x' is not a number"),
        ("T4,fp32,linear,8,16,32,1,-3,,,t,", "latency_us=-3 must be positive"),
        ("T4,fp32,linear,8,16,32,1,nan,,,t,", "latency_us"),
        ("T4,fp32,linear", "is not a number"),
        (",fp32,linear,8,16,32,1,12.5,,,t,", "gpu is empty"),
        ("T4,fp32,conv,8,16,32,1,12.5,,,t,", "neither linear nor bmm"),
        ("T4,fp32,linear,8,16,32,1,12.5,,,t,,extra", "more fields"),
    ],
)
def test_malformed_lines_are_named_and_the_rest_used(tmp_path: Path, line: str, reason: str) -> None:
    good = "T4,fp32,linear,8,16,32,1,12.5,here,torch,event_eager,\n"
    path = _write(tmp_path / "g.csv", GEMM + good + line + "\n" + good)
    read = read_operator_tables([path])
    assert len(read.tables["gemm"]) == 2
    assert len(read.problems) == 1
    assert read.problems[0].startswith(f"{path}:3: ")
    assert reason in read.problems[0]
    assert read.skipped[0][0] == "2"


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="no operator table"):
        read_operator_tables([_write(tmp_path / "x.csv", "a,b\n1,2\n")])
    with pytest.raises(InputFileError, match="missing: latency_us"):
        read_operator_tables([_write(tmp_path / "y.csv", "gpu,dtype,m,n,k\nT4,fp32,1,2,3\n")])
    with pytest.raises(InputFileError, match="No such file"):
        read_operator_tables([tmp_path / "none.csv"])


def test_lines_are_named_as_the_standard_reader_names_them(tmp_path: Path) -> None:
    text = 'a,b,c\n1,2,3\n\n4,5\n6,7,8,9,10\n"x\ny",,z\n'
    path = tmp_path / "t.csv"
    path.write_text(text)
    standard = csv.DictReader(io.StringIO(text), restval="")
    expected = [(standard.line_num, row) for row in standard]
    assert read_rows(path) == (["a", "b", "c"], expected)
