"""Networks out of tables: names of links, transfer to devices without samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibrate.importing.collective_tables import read_collective_table
from calibrate.importing.collectives import read_collectives
from calibrate.importing.networks import import_network, linked_samples, with_links
from costmodel.hardware.collectives import collective_times
from costmodel.hardware.kinds import CollectiveGroup
from costmodel.hardware.node_links import device_network

HEAD = "gpu,n_gpus,n_nodes,op,message_bytes,latency_us,link,impl,timing,source\n"


def _ring_us(n: int, size: float) -> float:
    return 8.0 + 2 * (n - 1) * 1.0 + 2 * (n - 1) / n * size / 2.3e5 * 1.0


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "collectives.csv"
    lines = [
        f"A100-SXM4-80GB,{n},1,all_reduce,{2**p},{_ring_us(n, 2.0**p)},NVLink3,nccl,nccl-tests,made"
        for n in (2, 4)
        for p in range(10, 30, 2)
    ]
    lines += [
        f"A100-SXM4-80GB,16,2,all_reduce,{2**p},{60 + 2.0**p / 1e5},NVLink3 + 8x200G IB,nccl,nccl-tests,made"
        for p in range(20, 32, 2)
    ]
    path.write_text(HEAD + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("gpu", "nodes", "text", "name"),
    [
        ("H100-SXM5-80GB", 2, "NVLink4 + 8x400G IB (CX-7)", "infiniband-8x400g"),
        ("H100-SXM5-80GB", 2, "NVLink4 + 8x200G TCPXO (A3 Mega)", "tcpxo-8x200g"),
        ("H100-SXM5-80GB", 2, "NVLink4 + 32x100G EFA (p5)", "efa-32x100g"),
        ("B200", 2, "NVLink5 + 8x400G RoCE (GCP)", "roce-8x400g"),
        ("H100-SXM5-80GB", 2, "NVLink4 + IB (Nebius)", "unspecified"),
        ("H100-SXM5-80GB", 1, "NVLink4 (NVSwitch)", "nvlink4"),
        ("V100-SXM2-32GB", 1, "NVLink2 (hybrid cube mesh)", "nvlink2-cube-mesh"),
        ("L40S", 1, "PCIe4", "pcie4"),
        ("A100-PCIe-80GB", 1, "NVLink3 pairs + PCIe4", "nvlink3-pairs"),
        ("A100-SXM4-80GB", 1, "PCIe4", "pcie4"),
    ],
)
def test_names_of_links(tmp_path: Path, gpu: str, nodes: int, text: str, name: str) -> None:
    path = tmp_path / "c.csv"
    path.write_text(HEAD + f"{gpu},{2 * nodes},{nodes},all_reduce,1024,10,{text},nccl,nccl-tests,s\n")
    (sample,) = linked_samples(read_collective_table(path), gpu, device_network(gpu))
    assert sample.link == name


def test_own_rows_are_fitted(table: Path) -> None:
    network = import_network("A100-SXM4-80GB", read_collective_table(table))
    got = collective_times(network, "all_reduce", np.array([2.0**21]), CollectiveGroup(n_ranks=4)).median_s[0]
    assert got * 1e6 == pytest.approx(_ring_us(4, 2.0**21), rel=0.1)
    assert all(fit.source for fit in network.fits)


def test_a_device_without_rows_gets_its_own_links_and_a_wider_interval(table: Path) -> None:
    own, other = (
        import_network("A100-SXM4-80GB", read_collective_table(table)),
        import_network("H200-SXM", read_collective_table(table)),
    )
    size, group = np.array([2.0**28]), CollectiveGroup(n_ranks=4)
    here, there = (collective_times(n, "all_reduce", size, group) for n in (own, other))
    assert there.median_s[0] < here.median_s[0]  # 450 against 300 GB/s
    assert there.log_sigma[0] > here.log_sigma[0]
    fit = next(f for f in other.fits if f.link == "nvlink4")
    assert fit.transferred_from == "A100-SXM4-80GB over nvlink3"
    assert {link.name for link in other.intra} == {"nvlink4", "pcie5"}


def test_links_between_nodes_transfer_by_kind(table: Path) -> None:
    other = import_network("H200-SXM", read_collective_table(table))
    fitted = {f.link: f for f in other.fits}
    assert "infiniband-8x400g" in fitted
    assert "ethernet-1x100g" not in fitted  # another kind: nominal


def test_exchanges_carry_over_by_what_links_exchange(tmp_path: Path) -> None:
    path = tmp_path / "exchanges.csv"
    rows = [
        f"B200,16,2,alltoall,{2**p},{40 + 2.0**p / 4.5e4},NVLink5 + 8x400G IB (CX-7),nccl,nccl-tests,made"
        for p in range(12, 34)
    ]
    path.write_text(HEAD + "\n".join(rows) + "\n")
    table = read_collective_table(path)
    rate = {}
    for name in ("B200", "B300", "A100-SXM4-80GB"):
        network = import_network(name, table)
        fit = next(f for f in network.fits if f.op == "all_to_all" and f.link in
                   ("infiniband-8x400g", "infiniband-8x800g", "infiniband-8x200g"))  # fmt: skip
        rate[name] = next(p.inter_bytes_per_s for p in fit.paths if p.protocol == "simple")
        assert (fit.extra_log_sigma > 0.3) == (name != "B200")  # another cluster's settings
    assert rate["B300"] == pytest.approx(rate["B200"])  # a rank passes on no more
    assert rate["A100-SXM4-80GB"] <= 8 * 25e9


def test_kernels_of_libraries_carry_over_between_switched_links_only(table: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    lines = [
        f"A100-SXM4-80GB,{n},1,all_reduce,{2**p},{4 + 2.0**p / 1e5},NVLink3,custom:vllm-0.14.0:graph,"
        "cuda_graph,made"
        for n in (2, 4)
        for p in range(10, 24, 2)
    ]
    path.write_text(HEAD + "\n".join(lines) + "\n")
    both = read_collectives([table, path])
    switched, wired = (import_network(gpu, both) for gpu in ("H200-SXM", "V100-SXM2-32GB"))
    fit = next(f for f in switched.fits if f.impl == "custom:vllm:graph")
    assert fit.transferred_from == "A100-SXM4-80GB over nvlink3"
    assert fit.extra_log_sigma > 0
    assert not [f for f in wired.fits if f.impl.startswith("custom:")]
    measured = import_network("A100-SXM4-80GB", both)
    assert [f.transferred_from for f in measured.fits if f.impl.startswith("custom:")] == [None]


def test_no_table_gives_the_nominal_network() -> None:
    assert import_network("T4", None) == device_network("T4")


@pytest.mark.parametrize(("rate", "line"), [(11e9, 25e9), (36e9, 50e9), (300e9, 300e9)])
def test_a_link_of_unstated_rate_is_as_fast_as_was_measured(tmp_path: Path, rate: float, line: float) -> None:
    path = tmp_path / "c.csv"
    rows = [
        f"H100-SXM5-80GB,2,2,sendrecv,{2**p},{20 + 2.0**p / rate * 1e6},somewhere,nccl,kernel_only,made"
        for p in range(18, 34)
    ]
    path.write_text(HEAD + "\n".join(rows) + "\n")
    base = device_network("H100-SXM5-80GB")
    samples = linked_samples(read_collective_table(path), "H100-SXM5-80GB", base)
    network = with_links(base, samples)
    link = next(link for link in network.inter if link.name == "unspecified")
    assert link.bytes_per_s == pytest.approx(line, rel=0.01)
