"""A device's network out of tables of measured collectives: links named, families fitted, gaps transferred.

A device without samples takes its links from the datasheet and its paths from the nearest measured device
whose link is of the same kind, bandwidths scaled by the nominal links and the interval widened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from calibrate.collective_samples import CollectiveSample
from calibrate.fitting.collectives import fit_collectives
from calibrate.importing.collective_tables import CollectiveTable
from costmodel.hardware.collectives.constants import network_constants
from costmodel.hardware.network_schema import CollectiveFit, Link, NetworkModel
from costmodel.hardware.node_links import device_network, inter_link

__all__ = ["fit_network", "import_network", "linked_samples", "transfer_fits", "with_links"]

_FABRICS = (
    ("tcpxo", "tcpxo"),
    ("tcpx", "tcpx"),
    ("efa", "efa"),
    ("roce", "roce"),
    ("ib", "infiniband"),
    ("infiniband", "infiniband"),
    ("ethernet", "ethernet"),
)
_LINE_RATES = tuple(gbit * 1e9 / 8 for gbit in (100, 200, 400, 800, 1600))
"""Of one network interface, bytes/s (Ethernet and InfiniBand HDR, NDR, XDR)."""


def import_network(gpu_name: str, table: CollectiveTable | None) -> NetworkModel:
    """Network of `gpu_name` fitted on its rows of the table, with every variant of its node; by its nominal
    links where there is no table."""
    return device_network(gpu_name) if table is None else fit_network(gpu_name, table)


def fit_network(gpu_name: str, table: CollectiveTable) -> NetworkModel:
    """Network of one device out of a table of several: own rows fitted, other devices' fits transferred.

    All devices of a table are fitted together once, whichever is asked for first.
    """
    return _completed(gpu_name, _fit_devices(table.samples))


@lru_cache(maxsize=4)
def _fit_devices(samples: tuple[CollectiveSample, ...]) -> dict[str, NetworkModel]:
    """Device name as the table words it -> its network with fits of its own rows."""
    networks = {}
    for name in sorted({sample.device for sample in samples}):
        base = device_network(name)
        own = _linked(samples, name, base)
        networks[name] = fit_collectives(own, with_links(base, own))
    return networks


def _completed(gpu_name: str, fitted: dict[str, NetworkModel]) -> NetworkModel:
    """The device's own network, or its nominal one, with what it lacks taken from the nearest others."""
    network = fitted.get(gpu_name) or device_network(gpu_name)
    donors = [fitted[name] for name in _by_distance(sorted(set(fitted) - {gpu_name}), network)]
    return transfer_fits(network, donors)


def _by_distance(names: Sequence[str], network: NetworkModel) -> list[str]:
    """Devices with the nearest nominal link inside the node first."""

    def distance(name: str) -> float:
        ratio = device_network(name).intra[0].bytes_per_s / network.intra[0].bytes_per_s
        return max(ratio, 1.0 / ratio)

    return sorted(names, key=lambda name: (distance(name), name))


def linked_samples(table: CollectiveTable, gpu_name: str, base: NetworkModel) -> list[CollectiveSample]:
    """The device's samples, each with the name of its link in the network."""
    return _linked(table.samples, gpu_name, base)


def _linked(samples: Sequence[CollectiveSample], gpu_name: str, base: NetworkModel) -> list[CollectiveSample]:
    return [replace(sample, link=_link_name(sample, base)) for sample in samples if sample.device == gpu_name]


def _link_name(sample: CollectiveSample, base: NetworkModel) -> str:
    """Name of the link that the table's words mean for this sample."""
    words = sample.link.lower()
    if sample.n_nodes == 1:
        if "nvlink" not in words and "pcie" in words:
            return next((link.name for link in base.intra if link.kind == "pcie"), base.intra[0].name)
        return base.intra[0].name
    lines = re.search(r"(\d+)\s*x\s*(\d+)\s*g", words)
    kind = next((name for word, name in _FABRICS if re.search(rf"\b{word}\b", words)), None)
    if lines is None or kind is None:
        return "unspecified"
    return f"{kind}-{lines.group(1)}x{lines.group(2)}g"


def with_links(base: NetworkModel, samples: Sequence[CollectiveSample]) -> NetworkModel:
    """The network with every link between nodes that its samples name."""
    known = {link.name for link in (*base.intra, *base.inter)}
    missing = sorted({sample.link for sample in samples} - known)
    links = [_at_least_as_measured(inter_link(name), samples) for name in missing]
    return base.model_copy(update={"inter": (*base.inter, *links)})


def _at_least_as_measured(link: Link, samples: Sequence[CollectiveSample]) -> Link:
    """A link of unstated rate, at the line rate that its fastest message between two ranks needs."""
    rates = [s.size_bytes / s.time_s for s in samples if s.link == link.name and s.op == "p2p"]
    if link.name != "unspecified" or not rates or max(rates) <= link.bytes_per_s:
        return link
    line = next((rate for rate in _LINE_RATES if rate >= max(rates)), max(rates))
    return link.model_copy(update={"bytes_per_s": line})


def transfer_fits(network: NetworkModel, donors: Sequence[NetworkModel]) -> NetworkModel:
    """`network` with fits for its bare links from the first donor that has one of the same kind.

    Libraries' own kernels (custom:...) carry over between switched links, all of one donor, to a device that
    has none: the libraries run them wherever a switch joins the ranks. Bandwidths scale with the nominal
    links; curves carry over; the spread widens by the constants' `other_device_log_sigma`.
    """
    have = {(fit.op, fit.link, _maker(fit)) for fit in network.fits}
    own_kernels: dict[tuple[str, str], str] = {}
    extra: dict[tuple[str, str, str], CollectiveFit] = {}
    for between, links in ((False, network.intra), (True, network.inter)):
        for link in links:
            for donor in donors:
                for fit in donor.fits:
                    source = _link_of(donor, fit, between)
                    key = fit.op, link.name, fit.impl
                    if source is None or not _alike(source, link) or key in extra:
                        continue
                    if (fit.op, link.name, _maker(fit)) in have:
                        continue
                    if bool(source.mesh) != bool(link.mesh) or fit.residual is None:
                        continue
                    if _maker(fit) == "custom":
                        if link.kind != "nvswitch":
                            continue
                        if own_kernels.setdefault((fit.op, link.name), donor.name) != donor.name:
                            continue
                    elif fit.impl != "nccl" or fit.timing != "nccl-tests":
                        continue
                    inside = network.intra[0].bytes_per_s / donor.intra[0].bytes_per_s
                    port = inside if between else link.bytes_per_s / source.bytes_per_s
                    moved = _scaled(fit, source, link, port, donor.name)
                    if between and fit.op == "all_to_all":
                        ranks = donor.ranks_per_node, network.ranks_per_node
                        moved = _exchanged(fit, moved, source, link, ranks)
                    extra[key] = moved
    fits = (*network.fits, *(extra[key] for key in sorted(extra)))
    return network.model_copy(update={"fits": fits})


def _maker(fit: CollectiveFit) -> str:
    """nccl, gloo or custom."""
    return fit.impl.partition(":")[0]


def _alike(source: Link, link: Link) -> bool:
    """Whether fits carry over: one kind of link, and TCPX is no plain Ethernet."""
    families = [name.partition("-")[0] for name in (source.name, link.name)]
    return source.kind == link.kind and (
        not {"ethernet", "tcpx", "tcpxo"} & set(families) or families[0] == families[1]
    )


def _link_of(network: NetworkModel, fit: CollectiveFit, between: bool) -> Link | None:
    links = network.inter if between else network.intra
    return next((link for link in links if link.name == fit.link), None)


def _exchanged(
    fit: CollectiveFit, moved: CollectiveFit, source: Link, link: Link, ranks: tuple[int, int]
) -> CollectiveFit:
    """All with all between nodes moved by what both links exchange; `ranks` of a node of either. One
    cluster's settings say little of another's: as wide as they lie apart."""
    ratio = link.exchanged_bytes_per_s(ranks[1]) / source.exchanged_bytes_per_s(ranks[0])
    paths = tuple(
        there.model_copy(update={"inter_bytes_per_s": here.inter_bytes_per_s * ratio})
        if here.inter_bytes_per_s
        else there
        for here, there in zip(fit.paths, moved.paths, strict=True)
    )
    sigma = network_constants().exchange_log_sigma
    return moved.model_copy(update={"paths": paths, "curves": (), "extra_log_sigma": sigma})


def _scaled(fit: CollectiveFit, source: Link, link: Link, port: float, donor: str) -> CollectiveFit:
    """A fit moved to another link; `port`: ratio of the nominal rates inside the node."""
    line = (link.bytes_per_s * link.nics_per_node) / (source.bytes_per_s * source.nics_per_node)
    paths = tuple(
        path.model_copy(
            update={
                "intra_bytes_per_s": path.intra_bytes_per_s * port if path.intra_bytes_per_s else None,
                "own_bytes_per_s": path.own_bytes_per_s * port if path.own_bytes_per_s else None,
                "inter_bytes_per_s": path.inter_bytes_per_s * line if path.inter_bytes_per_s else None,
            }
        )
        for path in fit.paths
    )
    return fit.model_copy(
        update={
            "link": link.name,
            "paths": paths,
            "curves": () if abs(line - 1.0) > 0.5 else fit.curves,
            "residual": None,
            "transferred_from": f"{donor} over {source.name}",
            "extra_log_sigma": network_constants().other_device_log_sigma,
        }
    )
