"""Links by name: every entry of the data files is usable."""

from __future__ import annotations

import pytest

from costmodel.errors import UsageError
from costmodel.hardware.node_links import (
    device_family,
    device_network,
    inter_link,
    intra_link,
    intra_names,
    usual_interfaces,
)


def test_every_link_and_device_of_the_data_files_builds() -> None:
    for name in intra_names():
        link = intra_link(name)
        assert link.bytes_per_s > 1e9
        assert link.source
    for device in ("V100-SXM2-32GB", "A100-PCIe-80GB", "H100-NVL", "GB200", "MI250", "RTX 3090", "GTX-1650"):
        network = device_network(device)
        assert network.intra
        assert network.inter


def test_longest_family_wins_whatever_the_spelling() -> None:
    assert device_family("NVIDIA H100-NVL") == "H100-NVL"
    assert device_family("RTX-PRO-6000-Server") == "RTX-PRO-6000"
    assert device_family("Tesla V100-SXM2-16GB") == "V100-SXM2"
    assert device_family("Voodoo 2") is None


def test_line_rate_is_in_bytes() -> None:
    link = inter_link("roce-2x100g")
    assert (link.bytes_per_s, link.nics_per_node, link.kind) == (12.5e9, 2, "roce")


def test_an_exchange_between_nodes_is_limited_by_the_interfaces_or_the_library() -> None:
    wide, narrow = inter_link("infiniband-8x800g"), inter_link("infiniband-8x100g")
    assert wide.exchanged_bytes_per_s(8) == inter_link("infiniband-8x400g").exchanged_bytes_per_s(8)
    assert wide.exchanged_bytes_per_s(8) < wide.carried_bytes_per_s == wide.exchanged_bytes_per_s(72)
    assert narrow.exchanged_bytes_per_s(8) == narrow.carried_bytes_per_s
    assert wide.exchanged_bytes_per_s(8, 1e9) == 1e9  # measured to carry less
    plugin = inter_link("efa-8x400g")  # larger chunks: no limit of a rank
    assert plugin.exchanged_bytes_per_s(8) > 0.9 * 8 * 50e9


def test_nodes_of_other_sizes_have_as_many_interfaces_a_rank() -> None:
    eight, one = device_network("H100-SXM5-80GB"), device_network("V100-PCIe-32GB")
    assert usual_interfaces(eight, 4) == "infiniband-4x400g"
    assert usual_interfaces(eight, 1) == "infiniband-1x400g"
    assert usual_interfaces(eight, 8) is None
    assert usual_interfaces(device_network("GH200-96GB"), 4) == "infiniband-4x400g"
    assert usual_interfaces(one, 4) is None  # one interface is all there is to share


@pytest.mark.parametrize("name", ["infiniband", "carrier-pigeon-1x1g", "efa-4x", ""])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown link between nodes"):
        inter_link(name)


def test_unknown_intra_link_is_refused() -> None:
    with pytest.raises(UsageError, match="nvlink9"):
        intra_link("nvlink9")


def test_unknown_device_gets_pcie_of_its_host_link() -> None:
    assert device_network("Voodoo 2", host_bytes_per_s=32e9).intra[0].name == "pcie4"
    assert device_network("Voodoo 2").intra[0].name == "pcie3"
