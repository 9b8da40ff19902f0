"""Tables become profiles, one per device; datasheets fill the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibrate.importing import import_profiles
from costmodel.errors import InputFileError, ProfileError
from costmodel.hardware.datasheets import datasheets
from costmodel.hardware.forms.gemm import GemmForm
from costmodel.hardware.pricing import operator_times
from costmodel.hardware.store import load_profile


def _table(path: Path, gpu: str = "H100-SXM5-80GB", n: int = 60) -> Path:
    """GEMM rows that the form itself makes, a tenth slower."""
    rng = np.random.default_rng(0)
    device = datasheets()["H100-SXM5-80GB"].device
    dims = {name: np.exp2(rng.integers(5, 14, n).astype(float)) for name in ("m", "n", "k")}
    theta = {p.name: p.start for p in GemmForm().parameters(device, "bf16", "nt")}
    time_us = 1.1e6 * GemmForm().physical(theta, device, dims, "bf16", "nt")
    lines = ["gpu,dtype,op,m,n,k,batch,latency_us,source,framework,timing"]
    for i in range(n):
        sizes = ",".join(f"{dims[name][i]:g}" for name in ("m", "n", "k"))
        lines.append(f"{gpu},bf16,linear,{sizes},1,{time_us[i]:.4f},here,lib-1.0,cuda_graph")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_one_profile_per_device(tmp_path: Path) -> None:
    written = import_profiles(operators=[_table(tmp_path / "g.csv")], out_dir=tmp_path / "out")
    assert [path.name for path in written] == ["h100-sxm5-80gb.json"]
    profile = load_profile(written[0])
    assert [(f.kind, f.dtype, f.timing, f.n_samples, f.source) for f in profile.operators] == [
        ("gemm", "bf16", "cuda_graph", 60, "here")
    ]
    assert "here" in profile.source
    with pytest.raises(ProfileError, match="--force"):
        import_profiles(operators=[tmp_path / "g.csv"], out_dir=tmp_path / "out")


def test_transfer_fills_devices_without_samples(tmp_path: Path) -> None:
    written = import_profiles(
        operators=[_table(tmp_path / "g.csv")], out_dir=tmp_path / "out", transfer=True, gpus=None
    )
    assert len(written) == len(datasheets())
    dims = {name: [4096.0] for name in ("m", "n", "k")}
    measured = load_profile(tmp_path / "out" / "h100-sxm5-80gb.json")
    transferred = load_profile(tmp_path / "out" / "h200-sxm.json")
    own = operator_times(measured, "gemm", "nt", "bf16", dims)
    moved = operator_times(transferred, "gemm", "nt", "bf16", dims)
    assert moved.median_s[0] == pytest.approx(own.median_s[0], rel=0.1)  # the same units at the same clock
    assert moved.log_sigma[0] > own.log_sigma[0]
    assert transferred.operators[0].transferred_from == "H100-SXM5-80GB"


def test_unknown_device_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"no datasheet of Z9000.*datasheets\.json"):
        import_profiles(operators=[_table(tmp_path / "g.csv", gpu="Z9000")], out_dir=tmp_path / "out")


def test_transfer_writes_what_was_asked_for_and_whom_it_borrows_from(tmp_path: Path) -> None:
    table = _table(tmp_path / "g.csv", n=20)
    out = tmp_path / "out"
    written = import_profiles(operators=[table], out_dir=out, transfer=True, gpus=["H200"])
    assert sorted(path.name for path in written) == ["h100-sxm5-80gb.json", "h200-sxm.json"]
    assert load_profile(out / "h200-sxm.json").operators[0].transferred_from == "H100-SXM5-80GB"
    with pytest.raises(InputFileError, match=r"H200-SXM: no row of the tables is of it.*--transfer"):
        import_profiles(operators=[table], out_dir=tmp_path / "none", gpus=["H200"])


def _log(path: Path, gpu: str) -> Path:
    """What nccl-tests prints of an all-reduce over four ranks of one node, at 200 GB/s of bus bandwidth."""
    ranks = "".join(
        f"#  Rank  {i} Group  0 Pid 10{i} on  node0 device  {i} [0x0{i}] {gpu}\n" for i in range(4)
    )
    lines = [
        f"{2**p} {2**p // 4} float sum -1 {20.0 + 1.5 * 2.0**p / 2e5:.2f} 1.0 1.5 0" for p in range(10, 30, 2)
    ]
    path.write_text("# nThread 1 nGpus 4\nall_reduce_perf -b 1K -e 1G -f 4 -g 4\n" + ranks + "\n".join(lines))
    return path


def test_logs_of_nccl_tests_make_the_network_of_the_gpu_they_name(tmp_path: Path) -> None:
    log = _log(tmp_path / "nccl.log", "NVIDIA A100-SXM4-80GB")
    (path,) = import_profiles(collectives=[log], out_dir=tmp_path / "out")
    profile = load_profile(path)
    assert profile.name == "A100-SXM4-80GB"
    assert profile.network is not None
    assert [(fit.op, fit.link) for fit in profile.network.fits] == [("all_reduce", "nvlink3")]


def test_a_log_without_a_gpu_needs_its_name(tmp_path: Path) -> None:
    log = _log(tmp_path / "nccl.log", "")
    with pytest.raises(InputFileError, match="--gpu"):
        import_profiles(collectives=[log], out_dir=tmp_path / "out")
    (path,) = import_profiles(collectives=[log], out_dir=tmp_path / "out", gpus=["H200"])
    assert load_profile(path).name == "H200-SXM"
