"""Time of collectives on a network: the fastest path that NCCL may take, corrected by what was measured.

t(size) = min over paths of PathFit (see `network_schema`), times exp(correction(size)) of the nearest
measured group. Evaluated on a grid of sizes, made monotone, never below what the nominal links carry, and
interpolated in log-log, so that time is continuous and rises with size across every protocol change.
"""

from __future__ import annotations

import math

import numpy as np

from costmodel.errors import UsageError
from costmodel.estimate import FloatArray, TimeEstimate
from costmodel.hardware.collectives.algorithms import PathShape, bus_factor, path_shape
from costmodel.hardware.collectives.choice import FitChoice, choose_fit
from costmodel.hardware.collectives.constants import network_constants
from costmodel.hardware.kinds import COLLECTIVE_KINDS, CollectiveGroup
from costmodel.hardware.network_schema import CollectiveFit, Link, NetworkModel, PathFit, SizeCurve
from costmodel.hardware.topology import link_capacity

__all__ = [
    "SIZE_GRID_BYTES",
    "busbw_bytes_per_s",
    "collective_times",
    "fastest_collective",
    "nic_fraction",
    "path_times",
]

_GRID_PER_OCTAVE = 8
_GRID = np.arange(0.0, 44.0 * _GRID_PER_OCTAVE + 1.0) / _GRID_PER_OCTAVE
SIZE_GRID_BYTES: FloatArray = np.exp2(_GRID)
"""Sizes that times are evaluated at; between them they are straight lines in logarithms."""


def busbw_bytes_per_s(op: str, size_bytes: FloatArray, time_s: FloatArray, n_ranks: int) -> FloatArray:
    """Bus bandwidth as nccl-tests prints it, bytes/s: factor(op, n) size / time."""
    return np.asarray(bus_factor(op, n_ranks) * np.asarray(size_bytes) / np.asarray(time_s))


def nic_fraction(op: str, link: Link, ranks_per_node: int, group: CollectiveGroup) -> float:
    """Share of a node's interfaces that one group of ranks can use.

    A rank drives the interfaces beside it (nics / ranks of them, at least one), so a group with one rank
    per node on a machine with 8 interfaces has 1/8, and so has a message between two ranks whatever the
    group; `nic_sharing` groups at once split what there is. `ranks_per_node`: of the machine.
    """
    local = 1 if op in ("p2p", "p2p_bidirectional") else group.ranks_per_node
    near = math.ceil(local * link.nics_per_node / ranks_per_node)
    return min(1.0, near / link.nics_per_node, 1.0 / group.nic_sharing)


def path_times(
    path: PathFit,
    shape: PathShape,
    size_bytes: FloatArray,
    *,
    intra_capacity: float = 1.0,
    inter_fraction: float = 1.0,
    intra_limit_bytes_per_s: float | None = None,
) -> FloatArray:
    """Seconds of one path, [n]. `intra_capacity`: rings or chain links of a mesh; 0 = cannot run.

    `intra_limit_bytes_per_s`: a slower link inside the node than the one the path was fitted on.
    """
    if shape.intra_volume > 0 and intra_capacity <= 0:
        return np.full_like(size_bytes, np.inf)
    busy = np.zeros_like(size_bytes)
    port = path.intra_bytes_per_s
    if intra_limit_bytes_per_s is not None:
        port = min(port or math.inf, intra_limit_bytes_per_s)
    if port is not None and shape.intra_volume > 0:
        busy = shape.intra_volume * size_bytes / (port * intra_capacity)
    if path.own_bytes_per_s is not None:
        busy = busy + shape.own_volume * size_bytes / path.own_bytes_per_s
    if path.inter_bytes_per_s is not None and shape.inter_volume > 0:
        between = shape.inter_volume * size_bytes / (path.inter_bytes_per_s * inter_fraction)
        busy = np.maximum(busy, between)
    times = path.base_s + shape.steps * path.step_s + shape.node_steps * path.node_step_s + busy
    if path.ramp_s:
        times = times + np.sqrt(path.ramp_s * busy)
    if path.spill_bytes_per_s:
        volume = max(shape.intra_volume, shape.inter_volume) * size_bytes
        times = times + np.maximum(0.0, volume - path.spill_bytes) / path.spill_bytes_per_s
    return np.asarray(times)


def collective_times(
    network: NetworkModel,
    op: str,
    size_bytes: FloatArray,
    group: CollectiveGroup,
    variant: str | None = None,
    *,
    impl: str | None = None,
    timing: str | None = None,
    version: str | None = None,
) -> TimeEstimate:
    """Time of one collective for each size, seconds, shape [n]; 0 for a group of one rank.

    `size_bytes` as nccl-tests: full gathered buffer for all_gather and reduce_scatter, each rank's buffer
    for all_reduce, all that one rank sends for all_to_all, one message for p2p. `variant`: see
    `NetworkModel.variants`. `impl`, `timing`, `version` pick a fit where several were measured; by default
    NCCL (gloo on a CPU) as nccl-tests times it. UsageError for an unknown op or a group the network cannot
    hold.
    """
    if op not in COLLECTIVE_KINDS:
        raise UsageError(f"unknown collective {op!r}; there are: {', '.join(COLLECTIVE_KINDS)}")
    sizes = np.atleast_1d(np.asarray(size_bytes, dtype=np.float64))
    if group.n_ranks == 1 or not len(sizes):
        return TimeEstimate(median_s=np.zeros_like(sizes), log_sigma=np.zeros_like(sizes))
    intra, inter = network.links(variant)
    if group.n_nodes > 1 and inter is None:
        raise UsageError(
            f"{op} over {group.n_nodes} nodes, but network {network.name!r} has no link between nodes; "
            f"variants are: {', '.join(network.variants())}"
        )
    choice = choose_fit(network, op, group, intra, inter, impl=impl, timing=timing)
    grid_s, grid_sigma = _grid_times(network, choice, group, intra, inter, version)
    at = np.log2(np.maximum(sizes, 1.0))
    times = np.exp(np.interp(at, _GRID, np.log(grid_s)))
    beyond = at > _GRID[-1]
    times = np.where(beyond, times * np.exp2(np.maximum(0.0, at - _GRID[-1])), times)
    if group.n_nodes > 1 and group.nic_sharing > 1:
        times = times * network.concurrent_slowdown
    sigma = np.interp(at, _GRID, grid_sigma)
    empty = sizes <= 0
    return TimeEstimate(median_s=np.where(empty, 0.0, times), log_sigma=np.where(empty, 0.0, sigma))


def fastest_collective(
    network: NetworkModel,
    op: str,
    size_bytes: FloatArray,
    group: CollectiveGroup,
    variant: str | None = None,
    *,
    impls: tuple[str, ...] = (),
) -> TimeEstimate:
    """As `collective_times`, by the fastest of the default and of those `impls` (a framework's own kernels)
    that were measured over the link of a group inside a node."""
    best = collective_times(network, op, size_bytes, group, variant)
    if group.n_nodes > 1 or group.n_ranks == 1:
        return best
    link = network.links(variant)[0].name
    measured = {fit.impl for fit in network.fits if fit.op == op and fit.link == link}
    for impl in impls:
        if impl not in measured:
            continue
        other = collective_times(network, op, size_bytes, group, variant, impl=impl)
        faster = other.median_s < best.median_s
        best = TimeEstimate(
            median_s=np.where(faster, other.median_s, best.median_s),
            log_sigma=np.where(faster, other.log_sigma, best.log_sigma),
        )
    return best


def _grid_times(
    network: NetworkModel,
    choice: FitChoice,
    group: CollectiveGroup,
    intra: Link,
    inter: Link | None,
    version: str | None,
) -> tuple[FloatArray, FloatArray]:
    """Time and spread on the grid of sizes."""
    fit = choice.fit
    between = inter if group.n_nodes > 1 else None
    fraction = 1.0
    if between is not None:
        fraction = nic_fraction(choice.op, between, network.ranks_per_node, group)
    limit = None
    if between is not None and intra is not network.intra[0]:
        limit = intra.bytes_per_s * intra.efficiency
    best = np.full_like(SIZE_GRID_BYTES, np.inf)
    for path in _between_racks(fit.paths, group):
        if not path.min_ranks <= group.ranks_per_node <= (path.max_ranks or group.ranks_per_node):
            continue
        if path.algorithm in ("nvls", "nvls_tree") and not intra.multicast:
            continue
        shape = path_shape(path.algorithm, choice.op, group.n_ranks, group.n_nodes)
        times = path_times(
            path,
            shape,
            SIZE_GRID_BYTES,
            intra_capacity=link_capacity(intra, path.algorithm, group.ranks_per_node),
            inter_fraction=fraction,
            intra_limit_bytes_per_s=limit,
        )
        best = np.minimum(best, times)
    if not np.all(np.isfinite(best)):
        raise UsageError(
            f"no path of {choice.op} over link {fit.link!r} of network {network.name!r} serves "
            f"{group.n_ranks} ranks on {group.n_nodes} nodes; measure it, or use another variant: "
            f"{', '.join(network.variants())}"
        )
    ratio, sigma = _correction(fit, group, version, mesh=bool(intra.mesh) and between is None)
    sigma = np.sqrt(sigma**2 + choice.extra_log_sigma**2)
    # A size never takes longer than a larger one: a library could send the larger buffer. Outliers are
    # slow ones (a first touch, a neighbour), so the lower envelope is also the sounder of the two.
    times = np.minimum.accumulate((best * np.exp(ratio))[::-1])[::-1]
    return np.maximum(times, _floor(choice.op, group, intra, between, fraction)), sigma


def _between_racks(paths: tuple[PathFit, ...], group: CollectiveGroup) -> tuple[PathFit, ...]:
    """Without trees where groups of more ranks than trees were built for span the network."""
    rings = tuple(path for path in paths if path.algorithm not in ("tree", "nvls_tree"))
    racks = group.n_nodes > 1 and group.ranks_per_node > network_constants().tree_max_ranks_per_node
    return rings if racks and rings else paths


def _floor(op: str, group: CollectiveGroup, intra: Link, inter: Link | None, fraction: float) -> FloatArray:
    """What the nominal links need at least, whatever the algorithm: each rank's data crosses once."""
    if op == "all_to_all":
        local = group.ranks_per_node
        inside = (local - 1) / group.n_ranks
        between = local * (group.n_ranks - local) / group.n_ranks
    else:
        inside = between = (
            0.5 * bus_factor(op, group.n_ranks) if op == "all_reduce" else bus_factor(op, group.n_ranks)
        )
    capacity = sum(e.n_links for e in intra.mesh) if intra.mesh else 1.0
    floor = np.zeros_like(SIZE_GRID_BYTES)
    if inter is None:
        floor = inside * SIZE_GRID_BYTES / (intra.bytes_per_s * capacity)
    else:
        line = inter.bytes_per_s * inter.nics_per_node * fraction
        floor = between * SIZE_GRID_BYTES / line
    return floor


def _correction(
    fit: CollectiveFit, group: CollectiveGroup, version: str | None, *, mesh: bool
) -> tuple[FloatArray, FloatArray]:
    """ln(time) correction and spread on the grid, from the curves of the nearest measured group shapes.

    Between two measured rank counts both are mixed by log2(n); beyond the last the nearest one stands, and
    the spread grows with the distance. On a mesh each count runs over links of its own, none nearer than
    another: the mean of all stands.
    """
    curves = _of_version(fit.curves, version)
    spread = math.hypot(fit.log_sigma, fit.extra_log_sigma)
    if not curves:
        return np.zeros_like(_GRID), np.full_like(_GRID, spread)
    exact = [c for c in curves if (c.n_ranks, c.n_nodes) == (group.n_ranks, group.n_nodes)]
    if exact:
        ratio, sigma = _mean_curve(exact)
        return ratio, np.hypot(sigma, fit.extra_log_sigma)
    distance = {c: _distance(c, group) for c in curves}
    nearest = min(distance.values())
    chosen = [c for c in curves if distance[c] <= nearest + 1e-9]
    ratio, sigma = _mean_curve(list(curves) if mesh else chosen)
    if group.n_nodes == 1 and not mesh:
        below = [c for c in curves if c.n_nodes == 1 and c.n_ranks < group.n_ranks]
        above = [c for c in curves if c.n_nodes == 1 and c.n_ranks > group.n_ranks]
        if below and above:
            low, high = max(c.n_ranks for c in below), min(c.n_ranks for c in above)
            share = math.log2(group.n_ranks / low) / math.log2(high / low)
            low_ratio, low_sigma = _mean_curve([c for c in below if c.n_ranks == low])
            high_ratio, high_sigma = _mean_curve([c for c in above if c.n_ranks == high])
            ratio = (1 - share) * low_ratio + share * high_ratio
            sigma = np.maximum(low_sigma, high_sigma)
    wide = math.hypot(spread, fit.doubling_log_sigma * nearest)
    return ratio, np.hypot(sigma, wide)


def _of_version(curves: tuple[SizeCurve, ...], version: str | None) -> tuple[SizeCurve, ...]:
    """Curves of one library version; of the newest where none is asked for or that one was not measured."""
    versions = {c.version for c in curves}
    if len(versions) < 2:
        return curves
    wanted = version if version in versions else max(versions, key=_version_key)
    return tuple(c for c in curves if c.version == wanted)


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _distance(curve: SizeCurve, group: CollectiveGroup) -> float:
    """Doublings between a measured group and this one, in ranks per node and in nodes."""
    local = curve.n_ranks / curve.n_nodes
    return abs(math.log2(group.ranks_per_node / local)) + abs(math.log2(group.n_nodes / curve.n_nodes))


def _mean_curve(curves: list[SizeCurve]) -> tuple[FloatArray, FloatArray]:
    ratios = [np.interp(_GRID, c.log2_bytes, c.log_ratio) for c in curves]
    sigmas = [np.interp(_GRID, c.log2_bytes, c.log_sigma) for c in curves]
    return np.mean(ratios, axis=0), np.max(sigmas, axis=0)
