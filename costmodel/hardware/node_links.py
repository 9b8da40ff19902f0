"""The links of a device's node by name, from `costmodel/data/network/nodes.json` and `inter_links.json`.

>>> inter_link("infiniband-8x400g").bytes_per_s, inter_link("infiniband-8x400g").nics_per_node
(50000000000.0, 8)
>>> [link.name for link in device_network("H200-SXM").intra]
['nvlink4', 'pcie5']
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from importlib.resources import files
from typing import Any

from costmodel.errors import UsageError
from costmodel.hardware.network_schema import Link, MeshEdge, NetworkModel

__all__ = ["device_family", "device_network", "inter_link", "intra_link", "intra_names", "usual_interfaces"]

_INTER_NAME = re.compile(r"([a-z]+)-(\d+)x(\d+)g")


@lru_cache(maxsize=2)
def _data(name: str) -> dict[str, Any]:
    text = files("costmodel").joinpath(f"data/network/{name}.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def intra_names() -> tuple[str, ...]:
    """Names of the known links inside a node."""
    return tuple(_data("nodes")["links"])


def intra_link(name: str) -> Link:
    """A link inside a node. UsageError lists what there is."""
    links = _data("nodes")["links"]
    if name not in links:
        raise UsageError(f"unknown link inside a node {name!r}; there are: {', '.join(links)}")
    fields = dict(links[name])
    mesh = tuple(MeshEdge(a=a, b=b, n_links=n) for a, b, n in fields.pop("mesh", ()))
    return Link(name=name, mesh=mesh, **fields)


def inter_link(name: str) -> Link:
    """A link between nodes from its name: kind-<interfaces>x<Gbit/s>g, or "unspecified"."""
    kinds = _data("inter_links")["kinds"]
    found = _INTER_NAME.fullmatch(name)
    kind = found.group(1) if found else name
    if kind not in kinds or (found is None and name != "unspecified"):
        raise UsageError(
            f"unknown link between nodes {name!r}; say kind-<interfaces>x<Gbit/s>g with a kind of "
            f"{', '.join(k for k in kinds if k != 'unspecified')}, such as infiniband-8x400g"
        )
    fields = kinds[kind]
    nics, gbit = fields.get("nics_per_node"), fields.get("gbit_per_s")
    if found is not None:
        nics, gbit = int(found.group(2)), float(found.group(3))
    return Link(
        name=name,
        kind=fields["kind"],
        latency_s=fields["latency_s"],
        bytes_per_s=gbit * 1e9 / 8.0,
        efficiency=fields["efficiency"],
        exchange_efficiency=fields.get("exchange_efficiency"),
        rank_exchange_bytes_per_s=fields.get("rank_exchange_bytes_per_s"),
        nics_per_node=nics,
        source=fields["source"],
    )


def usual_interfaces(network: NetworkModel, ranks_per_node: int) -> str | None:
    """Name of the network's usual link between nodes of so many ranks: as many interfaces a rank as its own
    nodes have, one at least. None where nothing changes."""
    found = _INTER_NAME.fullmatch(network.inter[0].name) if network.inter else None
    if found is None:
        return None
    nics = max(1, round(int(found[2]) * ranks_per_node / network.ranks_per_node))
    return None if nics == int(found[2]) else f"{found[1]}-{nics}x{found[3]}g"


def device_family(device: str) -> str | None:
    """The entry of nodes.json whose name opens the device's (the longest that does); None where none does."""
    plain = _plain(device)
    matches = [name for name in _data("nodes")["devices"] if plain.startswith(_plain(name))]
    return max(matches, key=len, default=None)


def device_network(device: str, *, host_bytes_per_s: float | None = None) -> NetworkModel:
    """Nominal network of a device's usual node, with its variants and no fit.

    A device that nodes.json does not know gets PCIe of the generation its host link says.
    """
    family = device_family(device)
    if family is None:
        pcie = [intra_link(name) for name in intra_names() if intra_link(name).kind == "pcie"]
        target = host_bytes_per_s or min(link.bytes_per_s for link in pcie)
        nearest = min(pcie, key=lambda link: abs(link.bytes_per_s - target))
        return NetworkModel(
            name=device,
            ranks_per_node=8,
            intra=(nearest,),
            inter=(inter_link("ethernet-1x100g"), inter_link("ethernet-1x10g")),
            source="nominal: node of an unknown device, PCIe only",
        )
    entry = _data("nodes")["devices"][family]
    return NetworkModel(
        name=device,
        ranks_per_node=entry["ranks_per_node"],
        intra=tuple(intra_link(name) for name in entry["intra"]),
        inter=tuple(inter_link(name) for name in entry["inter"]),
        source=f"nominal links of a {family} node",
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("nvidia", "").replace("tesla", ""))
