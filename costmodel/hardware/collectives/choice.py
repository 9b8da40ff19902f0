"""Which fitted collective stands for a request, and what it stands in for where that one was not measured.

Order: the same op over the same link; another op over the same link with its own algorithm's steps and
volumes; the nominal link. Each step away widens the interval.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from costmodel.errors import UsageError
from costmodel.hardware.collectives.algorithms import ALGORITHMS, allowed_algorithms
from costmodel.hardware.collectives.constants import network_constants
from costmodel.hardware.kinds import CollectiveGroup
from costmodel.hardware.network_schema import CollectiveFit, Link, NetworkModel, PathFit

__all__ = ["FitChoice", "choose_fit", "nominal_fit"]

_TIMING_ORDER = ("nccl-tests", "kernel_only", "eager_loop", "torch_loop", "cuda_graph")
_HOST_BUSES = ("pcie", "pcie_peer", "pcie_host")
_STAND_INS = {
    "all_reduce": ("reduce_scatter", "all_gather"),
    "all_gather": ("reduce_scatter", "all_reduce"),
    "reduce_scatter": ("all_gather", "all_reduce"),
    "all_to_all": ("p2p", "all_gather", "all_reduce"),
    "broadcast": ("reduce", "all_gather", "all_reduce"),
    "reduce": ("broadcast", "reduce_scatter", "all_reduce"),
    "p2p": ("p2p_bidirectional", "all_to_all", "all_gather", "all_reduce"),
    "p2p_bidirectional": ("p2p", "all_to_all", "all_gather", "all_reduce"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FitChoice:
    """The fit to evaluate as `op`, and the extra spread of ln(time) for what it stands in for."""

    fit: CollectiveFit
    op: str
    extra_log_sigma: float = 0.0


def choose_fit(
    network: NetworkModel,
    op: str,
    group: CollectiveGroup,
    intra: Link,
    inter: Link | None,
    *,
    impl: str | None = None,
    timing: str | None = None,
) -> FitChoice:
    """The nearest fit of the network. UsageError where an implementation is named that was not measured."""
    link = inter if group.n_nodes > 1 and inter is not None else intra
    constants = network_constants()
    if impl is not None and impl.partition(":")[2] in ALGORITHMS:
        impl, _, algorithm = impl.partition(":")
        choice = choose_fit(network, op, group, intra, inter, impl=impl, timing=timing)
        return replace(choice, fit=_held_to(choice.fit, algorithm))
    if found := _best(network, op, link, group, impl, timing):
        off = timing is not None and found.timing != timing
        return FitChoice(fit=found, op=op, extra_log_sigma=constants.other_timing_log_sigma if off else 0.0)
    if impl is not None and impl not in ("nccl", "gloo"):
        known = sorted({f.impl for f in network.fits if f.op == op and f.link == link.name})
        raise UsageError(
            f"implementation {impl!r} of {op} was not measured over {link.name!r} of network "
            f"{network.name!r}; there are: {', '.join(known) or 'none'}"
        )
    pcie = next((other for other in network.intra if other.kind in _HOST_BUSES), None)
    beyond = intra.group_ranks is not None and group.ranks_per_node > intra.group_ranks
    if link is intra and beyond and pcie is not None:
        # A bridge joins a pair; a larger group's traffic crosses the host's bus.
        return choose_fit(network, op, group, pcie, inter, impl=impl, timing=timing)
    for other in _STAND_INS[op]:
        if found := _best(network, other, link, group, impl, timing):
            fit = _as_op(found, op, intra, group)
            choice = FitChoice(fit=fit, op=op, extra_log_sigma=constants.other_op_log_sigma)
            break
    else:
        choice = FitChoice(fit=nominal_fit(op, link, intra, group), op=op)
    if op != "all_to_all" or link is intra:
        return choice
    # Clusters and settings lie further apart in exchanges of all with all than ops do.
    fit = _exchanged(choice.fit, link, network.ranks_per_node)
    return replace(choice, fit=fit, extra_log_sigma=constants.exchange_log_sigma)


def _best(
    network: NetworkModel, op: str, link: Link, group: CollectiveGroup, impl: str | None, timing: str | None
) -> CollectiveFit | None:
    """The fit of an op over a link: asked-for timing first, then loops on the host clock, most samples."""

    def serves(fit: CollectiveFit) -> bool:
        local = group.ranks_per_node
        return any(p.min_ranks <= local <= (p.max_ranks or local) for p in fit.paths)

    found = [
        fit
        for fit in network.fits
        if fit.op == op
        and fit.link == link.name
        and serves(fit)
        and (fit.impl == impl if impl is not None else fit.impl in ("nccl", "gloo"))
    ]

    def order(fit: CollectiveFit) -> tuple[bool, int, int]:
        rank = _TIMING_ORDER.index(fit.timing) if fit.timing in _TIMING_ORDER else len(_TIMING_ORDER)
        return fit.timing != timing, rank, -fit.n_samples

    return min(found, key=order, default=None)


def _held_to(fit: CollectiveFit, algorithm: str) -> CollectiveFit:
    """Only the paths of one algorithm; its curves hold where the library could only have taken that one."""
    paths = tuple(path for path in fit.paths if path.algorithm == algorithm)
    if not paths:
        known = ", ".join(sorted({path.algorithm for path in fit.paths}))
        raise UsageError(f"{fit.op} over {fit.link!r} has no path by {algorithm!r}; there are: {known}")
    others = any(path.algorithm != algorithm for path in fit.paths)
    return fit.model_copy(update={"paths": paths, "curves": () if others else fit.curves})


def _as_op(fit: CollectiveFit, op: str, intra: Link, group: CollectiveGroup) -> CollectiveFit:
    """The same paths under the algorithms of another op; its curves do not carry over.

    A library that rings the measured op has more to choose from where `op` reduces to all: trees and the
    switch's reduction, priced at the rates that the rings reached over the same links.
    """
    allowed = allowed_algorithms(op, n_nodes=group.n_nodes, multicast=intra.multicast)
    same = tuple(path for path in fit.paths if path.algorithm in allowed)
    if not same:
        paths = tuple(p.model_copy(update={"algorithm": allowed[0]}) for p in fit.paths)
    else:
        known = {path.algorithm for path in same}
        rings = tuple(path for path in same if path.algorithm == "ring")
        paths = (*same, *(p for name in allowed if name not in known for p in _beside(rings, name, intra)))
    return fit.model_copy(update={"op": op, "paths": paths, "curves": ()})


def _beside(rings: tuple[PathFit, ...], algorithm: str, intra: Link) -> tuple[PathFit, ...]:
    """Paths of an algorithm that was not measured, from rings over the same links: their rates and steps;
    a switch's reduction at its own port rate and base latency, large messages only."""
    if algorithm not in ("nvls", "nvls_tree"):
        return tuple(path.model_copy(update={"algorithm": algorithm}) for path in rings)
    constants = network_constants()
    update = {
        "algorithm": algorithm,
        "base_s": constants.multicast_base_s,
        "intra_bytes_per_s": (intra.multicast_efficiency or 1.0) * intra.bytes_per_s,
        "own_bytes_per_s": None,
        "ramp_s": constants.ramp_s,
        "min_ranks": constants.multicast_min_ranks,
    }
    return tuple(path.model_copy(update=update) for path in rings if path.protocol == "simple")


def _exchanged(fit: CollectiveFit, link: Link, ranks_per_node: int) -> CollectiveFit:
    """A fit of another op, or none, at what its rates between nodes come to in an exchange of all."""
    paths = tuple(
        path.model_copy(
            update={"inter_bytes_per_s": link.exchanged_bytes_per_s(ranks_per_node, path.inter_bytes_per_s)}
        )
        if path.inter_bytes_per_s
        else path
        for path in fit.paths
    )
    return fit.model_copy(update={"paths": paths})


def nominal_fit(op: str, link: Link, intra: Link, group: CollectiveGroup) -> CollectiveFit:
    """Paths from the nominal link alone: its latency per step and `efficiency` of its bandwidth, or the
    rank's part of what the node's ranks share."""
    constants = network_constants()
    port = intra.bytes_per_s * intra.efficiency
    if intra.shared_bytes_per_s is not None:
        port = min(port, intra.shared_bytes_per_s / group.ranks_per_node)
    between = group.n_nodes > 1
    ring = PathFit(
        algorithm="ring",
        protocol="simple",
        base_s=constants.base_s,
        step_s=intra.latency_s,
        node_step_s=link.latency_s if between else 0.0,
        intra_bytes_per_s=port,
        inter_bytes_per_s=link.carried_bytes_per_s if between else None,
        ramp_s=constants.ramp_s,
        min_ranks=1,
    )
    algorithms = allowed_algorithms(op, n_nodes=group.n_nodes, multicast=intra.multicast)
    paths = tuple(path for name in algorithms for path in _beside((ring,), name, intra))
    return CollectiveFit(
        op=op,
        link=link.name,
        timing="nominal",
        paths=paths,
        log_sigma=constants.nominal_log_sigma,
        source=f"nominal link: {link.source}",
    )
