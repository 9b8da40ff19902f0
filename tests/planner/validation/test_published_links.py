"""Links between nodes, from a row's wording."""

from __future__ import annotations

import pytest

from planner.validation.published.links import link_between


@pytest.mark.parametrize(
    ("wording", "link"),
    [
        ("8x NDR 400 Gb/s", "infiniband-8x400g"),
        ("4x HDR200", "infiniband-4x200g"),
        ("Ethernet 100GbE", "ethernet-1x100g"),
        ("RoCE 8x400G", "roce-8x400g"),
        ("8x HDR InfiniBand 200 Gb/s per node", "infiniband-8x200g"),
        ("2x 200 Gb/s InfiniBand per node", "infiniband-2x200g"),
        ("400 Gbps per node, RoCE", "roce-8x400g"),
        ("400 Gb/s per node", "infiniband-2x200g"),
        ("1.6 Tb/s per node", "infiniband-8x200g"),
        ("50 GB/s per GPU", "infiniband-8x400g"),
        ("200 Gbit/s per GPU", "infiniband-8x200g"),
        ("2 x 25GbE", "ethernet-2x25g"),
        ("fast", None),
        ("400 Gb/s per node, an interface of its own per GPU", "infiniband-2x200g"),
        ("0 Gb/s per node", None),
        ("0x 400 Gb/s", None),
    ],
)
def test_links_between_nodes(wording: str, link: str | None) -> None:
    assert link_between(wording) == link


def test_a_rate_of_a_node_is_shared_by_its_gpus() -> None:
    assert link_between("1600 Gb/s per node", gpus_per_node=4) == "infiniband-4x400g"
    assert link_between("400 Gb/s per GPU", gpus_per_node=4) == "infiniband-4x400g"
