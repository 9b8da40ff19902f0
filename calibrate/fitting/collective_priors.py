"""Which paths a collective may take over a link, and where their parameters start.

Latencies and protocol ratios come from `costmodel/data/network/constants.json`, how firmly a fit is drawn to
them from `prior_spreads.json` beside it, bandwidths from the link.
Between nodes the samples rarely say whether a ring or a tree carried them (two nodes' trees move half of
what a ring moves), so there are several hypotheses and the fit takes the likeliest under the link's prior.
"""

from __future__ import annotations

from collections.abc import Sequence

from calibrate.collective_samples import CollectiveSample
from calibrate.fitting.collective_paths import PathPrior
from costmodel.hardware.collectives.algorithms import allowed_algorithms
from costmodel.hardware.collectives.constants import (
    NetworkConstants,
    ProtocolPrior,
    network_constants,
    prior_spreads,
)
from costmodel.hardware.network_schema import Link, PathFit

__all__ = ["hypotheses"]

_HOST_KINDS = ("shared_memory", "loopback")
_HOST_ALGORITHMS = {
    "all_reduce": "ring",
    "all_gather": "ring",
    "reduce_scatter": "ring",
    "all_to_all": "direct",
    "broadcast": "binomial",
    "reduce": "binomial",
    "p2p": "direct",
    "p2p_bidirectional": "direct",
}
_PAIRED_KINDS = ("pcie", "nvlink_bridge")


def hypotheses(
    op: str,
    impl: str,
    samples: Sequence[CollectiveSample],
    intra: Link,
    inter: Link | None,
    ranks_per_node: int = 8,
) -> list[list[PathPrior]]:
    """Sets of paths, each a possible explanation of the samples; one set where nothing is in doubt.

    `ranks_per_node`: of the machine.
    """
    constants = network_constants()
    if impl == "gloo" or (inter is None and intra.kind in _HOST_KINDS):
        return [[_host_prior(op, intra, inter, constants)]]
    if impl.startswith("custom"):
        return [_custom_priors(intra, constants)]
    if inter is None:
        return [_node_priors(op, intra, constants)]
    held = {s.algorithm for s in samples} - {""}
    if op == "all_to_all":
        return [_exchange_priors(samples, intra, inter, ranks_per_node)]
    if op != "all_reduce":
        return [_between_priors(allowed_algorithms(op, n_nodes=2, multicast=False), samples, intra, inter)]
    every = allowed_algorithms(op, n_nodes=2, multicast=intra.multicast)
    sets = [every] if held else [("ring",), ("ring", "tree"), every]
    return [_between_priors(algorithms, samples, intra, inter) for algorithms in dict.fromkeys(sets)]


def _path(
    prior: ProtocolPrior, algorithm: str, intra: Link, *, ranks: tuple[int, int | None] = (2, None)
) -> PathFit:
    # On slower links than a switch's ports a copy in memory takes no time worth fitting.
    copies = intra.kind == "nvswitch"
    own_rate = network_constants().own_rate_ratio * prior.bandwidth_fraction * intra.bytes_per_s
    # Pairwise exchanges launch side by side: a peer costs a fraction of a ring step.
    scale = prior_spreads().direct_step_share if algorithm == "direct" else 1.0
    return PathFit(
        algorithm=algorithm,
        protocol=prior.protocol,
        base_s=prior.base_s,
        step_s=prior.step_s * scale,
        intra_bytes_per_s=prior.bandwidth_fraction * intra.bytes_per_s,
        own_bytes_per_s=own_rate if copies else None,
        ramp_s=prior.ramp_s,
        min_ranks=ranks[0],
        max_ranks=ranks[1],
    )


def _node_priors(op: str, intra: Link, constants: NetworkConstants) -> list[PathPrior]:
    spreads = prior_spreads()
    algorithm = allowed_algorithms(op, n_nodes=1, multicast=False)[0]
    ranges: list[tuple[int, int | None]] = [(2, None)]
    if intra.kind in _PAIRED_KINDS:
        # Beyond a pair traffic crosses host bridges, at another rate.
        ranges = [(2, 2), (3, None)]
    priors = []
    for ranks in ranges:
        for prior in constants.priors:
            wide = spreads.beyond_a_pair if ranks[0] > 2 else spreads.node
            if intra.kind == "nvswitch" and prior.protocol == "simple":
                wide = spreads.switch
            path = _path(prior, algorithm, intra, ranks=ranks)
            priors.append(PathPrior(path=path, log_sigma=wide))
    if op == "all_reduce" and intra.mesh:
        simple = constants.priors[-1]
        path = _path(simple, "tree", intra)
        priors.append(PathPrior(path=path, log_sigma=spreads.mesh, shared="mesh"))
        ring = len(constants.priors) - 1
        priors[ring] = PathPrior(path=priors[ring].path, log_sigma=spreads.mesh, shared="mesh")
    if op == "all_reduce" and intra.multicast:
        priors.append(_multicast_prior("nvls", intra, None, constants))
    return priors


def _multicast_prior(
    algorithm: str, intra: Link, inter: Link | None, constants: NetworkConstants
) -> PathPrior:
    path = PathFit(
        algorithm=algorithm,
        protocol="simple",
        base_s=constants.multicast_base_s,
        node_step_s=constants.priors[-1].node_step_s + inter.latency_s if inter else 0.0,
        intra_bytes_per_s=(intra.multicast_efficiency or 1.0) * intra.bytes_per_s,
        inter_bytes_per_s=inter.carried_bytes_per_s if inter else None,
        ramp_s=constants.ramp_s,
        min_ranks=constants.multicast_min_ranks,
    )
    sigma = dict(prior_spreads().multicast)
    if inter:
        sigma |= {"inter_bytes_per_s": _inter_log_sigma(inter), **prior_spreads().multicast_between}
    return PathPrior(path=path, log_sigma=sigma, shared="between" if inter else "")


def _inter_log_sigma(inter: Link) -> float:
    """How far large transfers stray from the usual efficiency: a share of what is left to the line rate."""
    spreads = prior_spreads()
    return max(spreads.least_inter_log_sigma, spreads.inter_share_of_lost * (1.0 - inter.efficiency))


def _between_priors(
    algorithms: Sequence[str], samples: Sequence[CollectiveSample], intra: Link, inter: Link
) -> list[PathPrior]:
    """Paths between nodes. One rank per node has fewer channels than several: its paths are its own."""
    constants, spreads = network_constants(), prior_spreads()
    local = {s.n_ranks // s.n_nodes for s in samples}
    ranges: list[tuple[int, int | None]] = [(1, None)]
    if 1 in local and len(local) > 1:
        ranges = [(1, 1), (2, None)]
    priors = []
    for algorithm in algorithms:
        if algorithm == "nvls_tree":
            prior = _multicast_prior(algorithm, intra, inter, constants)
            # NVLS inside has its own port rate; only the line between nodes is shared.
            priors.append(PathPrior(path=prior.path, log_sigma=prior.log_sigma, shared="nvls"))
            continue
        for ranks in ranges:
            for protocol in constants.priors:
                simple = protocol.protocol == "simple"
                share = 1.0 if simple else protocol.bandwidth_fraction
                path = _path(protocol, algorithm, intra, ranks=ranks).model_copy(
                    update={
                        "node_step_s": protocol.node_step_s + inter.latency_s,
                        "inter_bytes_per_s": inter.carried_bytes_per_s * share,
                    }
                )
                alone = ranks == (1, 1)
                sigma = dict(spreads.between)
                if simple:
                    sigma |= spreads.between_simple
                if simple and not alone:
                    sigma["inter_bytes_per_s"] = _inter_log_sigma(inter)
                shared = f"between {ranks[0]}" if simple else ""
                priors.append(PathPrior(path=path, log_sigma=sigma, shared=shared))
    return priors


def _exchange_priors(
    samples: Sequence[CollectiveSample], intra: Link, inter: Link, ranks_per_node: int
) -> list[PathPrior]:
    """Paths of all with all between nodes: large messages at what the link exchanges, as far from it as
    clusters and settings lie apart."""
    constants = network_constants()
    priors = []
    for prior in _between_priors(("direct",), samples, intra, inter):
        if prior.path.protocol == "simple":
            rate = inter.exchanged_bytes_per_s(ranks_per_node)
            path = prior.path.model_copy(update={"inter_bytes_per_s": rate})
            sigma = dict(prior.log_sigma) | {"inter_bytes_per_s": constants.exchange_log_sigma}
            prior = PathPrior(path=path, log_sigma=sigma, shared=prior.shared)
        priors.append(prior)
    return priors


def _custom_priors(intra: Link, constants: NetworkConstants) -> list[PathPrior]:
    """One-shot (every rank reads all buffers) and two-shot kernels of inference engines."""
    simple = constants.priors[-1]
    return [
        PathPrior(
            path=_path(simple, algorithm, intra).model_copy(update={"base_s": constants.priors[0].base_s}),
            log_sigma=prior_spreads().custom,
        )
        for algorithm in ("one_shot", "direct")
    ]


def _host_prior(op: str, intra: Link, inter: Link | None, constants: NetworkConstants) -> PathPrior:
    link = inter or intra
    path = PathFit(
        algorithm=_HOST_ALGORITHMS[op],
        protocol="simple",
        base_s=link.latency_s,
        step_s=link.latency_s,
        node_step_s=link.latency_s if inter else 0.0,
        intra_bytes_per_s=intra.bytes_per_s * intra.efficiency,
        inter_bytes_per_s=inter.carried_bytes_per_s if inter else None,
        ramp_s=constants.ramp_s,
        min_ranks=1,
    )
    return PathPrior(path=path, log_sigma=prior_spreads().host)
