"""Fits the paths of one collective over one link: latency per step, bandwidth, ramp, by least squares.

All group shapes are fitted together, so that what grows with the ranks (steps, volumes) is told from what
does not, and the fit carries to rank counts that were not measured. Parameters are fitted in logarithms,
drawn to the priors of `costmodel/data/network/constants.json`, as firmly as `prior_spreads.json` beside it
says, as far as the samples leave them open; the loss is on ln(time), robust (soft L1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.collective_samples import CollectiveSample
from costmodel.estimate import FloatArray
from costmodel.hardware.collectives.algorithms import path_shape
from costmodel.hardware.collectives.constants import prior_spreads
from costmodel.hardware.collectives.pricing import nic_fraction
from costmodel.hardware.kinds import CollectiveGroup
from costmodel.hardware.network_schema import Link, PathFit
from costmodel.hardware.topology import link_capacity

__all__ = ["PathPrior", "ShapeTable", "Wiring", "fit_paths", "median_times", "starting_paths"]

_FIELDS = (
    "base_s",
    "step_s",
    "node_step_s",
    "intra_bytes_per_s",
    "inter_bytes_per_s",
    "ramp_s",
    "own_bytes_per_s",
)
_NO_TIME_S = 1e-12
_STEP_ORDER = ("ll", "ll128", "simple")


@dataclass(frozen=True, slots=True, kw_only=True)
class PathPrior:
    """One path with the values its fit starts from and is drawn to.

    `shared`: paths of one name share step-free parameters (both bandwidths and the ramp) under one fit.
    `log_sigma`: spread of ln(parameter), where it differs from the usual one; 0 = held.
    """

    path: PathFit
    shared: str = ""
    log_sigma: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """The links under a family of samples; `ranks_per_node` of the machine, `inter` None inside a node."""

    intra: Link
    inter: Link | None = None
    ranks_per_node: int = 8

    def nic_fraction(self, sample: CollectiveSample) -> float:
        """Share of the node's interfaces behind a sample's group."""
        if self.inter is None:
            return 1.0
        group = CollectiveGroup(n_ranks=sample.n_ranks, n_nodes=sample.n_nodes)
        return nic_fraction(sample.op, self.inter, max(self.ranks_per_node, group.ranks_per_node), group)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeTable:
    """Samples as columns, [n]; `allowed` [paths, n] says which paths may have carried each."""

    size_bytes: FloatArray
    log_time: FloatArray
    weight: FloatArray
    steps: FloatArray
    node_steps: FloatArray
    intra: FloatArray
    """[paths, n] bytes over the busiest port, divided by the mesh's capacity."""
    own: FloatArray
    """[paths, n] bytes a rank passes to itself."""
    inter: FloatArray
    """[paths, n] bytes over the busiest node, divided by the share of its interfaces in use."""
    allowed: np.ndarray[tuple[int, int], np.dtype[np.bool_]]

    @classmethod
    def of(cls, samples: Sequence[CollectiveSample], paths: Sequence[PathFit], wiring: Wiring) -> ShapeTable:
        """Table of samples of one op over their links."""
        n = len(samples)
        steps, nodes, intra, inter, own = (np.zeros((len(paths), n)) for _ in range(5))
        allowed = np.zeros((len(paths), n), dtype=np.bool_)
        for (i, path), (j, sample) in itertools.product(enumerate(paths), enumerate(samples)):
            local = sample.n_ranks // sample.n_nodes
            if not path.min_ranks <= local <= (path.max_ranks or local):
                continue
            if sample.algorithm and sample.algorithm != path.algorithm:
                continue
            capacity = link_capacity(wiring.intra, path.algorithm, local)
            shape = path_shape(path.algorithm, sample.op, sample.n_ranks, sample.n_nodes)
            if capacity <= 0 and shape.intra_volume > 0:
                continue
            allowed[i, j] = True
            steps[i, j], nodes[i, j] = shape.steps, shape.node_steps
            intra[i, j] = shape.intra_volume * sample.size_bytes / max(capacity, 1e-9)
            own[i, j] = shape.own_volume * sample.size_bytes
            inter[i, j] = shape.inter_volume * sample.size_bytes / wiring.nic_fraction(sample)
        # Curves of many sizes must not outvote short ones of other rank counts.
        shapes = [(s.n_ranks, s.n_nodes, s.source, s.version) for s in samples]
        counts = {shape: shapes.count(shape) for shape in set(shapes)}
        return cls(
            size_bytes=np.array([s.size_bytes for s in samples]),
            log_time=np.log([s.time_s for s in samples]),
            weight=np.array([min(1.0, math.sqrt(12.0 / counts[shape])) for shape in shapes]),
            steps=steps,
            node_steps=nodes,
            intra=intra,
            inter=inter,
            own=own,
            allowed=allowed,
        )


def median_times(table: ShapeTable, values: FloatArray) -> FloatArray:
    """Seconds of the fastest allowed path for each sample; `values` [paths, 7] in the order of a PathFit."""
    base, step, node_step, port, node, ramp, own = (values[:, i : i + 1] for i in range(7))
    busy = np.maximum(table.intra / port + table.own / own, table.inter / node)
    times = base + table.steps * step + table.node_steps * node_step + busy + np.sqrt(ramp * busy)
    return np.asarray(np.where(table.allowed, times, np.inf).min(axis=0))


def starting_paths(prior: Sequence[PathPrior]) -> FloatArray:
    """[paths, 7] of the priors; an absent limit is a very wide one."""
    rows = []
    for entry in prior:
        row = [getattr(entry.path, name) for name in _FIELDS]
        row = [math.inf if v is None else max(v, _NO_TIME_S) for v in row]
        rows.append([1e18 if math.isinf(v) else v for v in row])
    return np.array(rows)


def fit_paths(
    samples: Sequence[CollectiveSample],
    prior: Sequence[PathPrior],
    wiring: Wiring,
    *,
    near: Sequence[PathFit] | None = None,
    seed: int = 0,
) -> tuple[tuple[PathFit, ...], float]:
    """(paths, cost) fitted to samples of one op, implementation and timing.

    `near`: start from these paths alone instead of trying several starts (folds of one fit).

    `cost` is the robust loss plus the priors' penalty: what hypotheses about the algorithms compare by.
    """
    from scipy.optimize import least_squares

    spreads = prior_spreads()
    table = ShapeTable.of(samples, [entry.path for entry in prior], wiring)
    start = starting_paths(prior)
    spread = np.array(
        [[entry.log_sigma.get(name, spreads.usual[name]) for name in _FIELDS] for entry in prior]
    )
    absent = np.array([[not getattr(entry.path, name) for name in _FIELDS] for entry in prior])
    index, slots = _free(prior, spread, absent)

    low_latency, bulk = _protocol_pairs([entry.path for entry in prior], _STEP_ORDER[:2], _STEP_ORDER[2:])
    quick, slow = _protocol_pairs([entry.path for entry in prior], _STEP_ORDER[:1], _STEP_ORDER[1:])

    def unpack(x: FloatArray) -> FloatArray:
        values = start.copy()
        values[index >= 0] *= np.exp(x[index[index >= 0]])
        return values

    def residuals(x: FloatArray) -> FloatArray:
        error = (np.log(median_times(table, unpack(x))) - table.log_time) / spreads.time_log_sigma
        # Soft L1 by hand, so that the priors keep their squares.
        robust = np.sign(error) * np.sqrt(2.0 * (np.sqrt(1.0 + error**2) - 1.0))
        values = unpack(x)
        above = np.log(values[low_latency, 3:5] / (spreads.flag_share * values[bulk, 3:5]))
        order = np.maximum(0.0, above).ravel() / spreads.time_log_sigma
        # Flags beside the data are there to make a step short: LL's is the shortest (_STEP_ORDER).
        behind = np.log(values[quick, 1] / values[slow, 1])
        order = np.concatenate([order, np.maximum(0.0, behind) / spreads.step_order_log_sigma])
        return np.concatenate([table.weight * robust, x / slots, order])

    best = None
    rng = np.random.default_rng(seed)
    for attempt in range(1 if near is not None else 3):
        x0 = np.zeros(len(slots)) if attempt == 0 else rng.normal(0.0, 0.5, len(slots)) * np.minimum(slots, 1)
        if attempt == 1:
            # All of the shortest time may be start-up that no step explains (proxies, sockets).
            shortest = 0.8 * float(np.exp(table.log_time.min()))
            bases = index[:, 0]
            x0[bases[bases >= 0]] = np.log(shortest / start[bases >= 0, 0])
        if near is not None:
            x0 = _position_of(near, prior, start, index, len(slots))
        solution = least_squares(residuals, x0, max_nfev=25 if near is not None else 60)
        if best is None or solution.cost < best.cost:
            best = solution
    assert best is not None
    values = unpack(best.x)
    fitted = []
    for row, entry, missing in zip(values, prior, absent, strict=True):
        update = {
            name: float(value) for name, value, gone in zip(_FIELDS, row, missing, strict=True) if not gone
        }
        fitted.append(entry.path.model_copy(update=update))
    return tuple(fitted), float(best.cost)


def _protocol_pairs(
    paths: Sequence[PathFit], left: Sequence[str], right: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Positions of all pairs of paths of one algorithm and range of ranks, with protocols of either side."""
    pairs = [
        (i, j)
        for (i, one), (j, other) in itertools.permutations(enumerate(paths), 2)
        if one.protocol in left
        and other.protocol in right
        and (one.algorithm, one.min_ranks) == (other.algorithm, other.min_ranks)
    ]
    return [i for i, _ in pairs], [j for _, j in pairs]


def _free(
    prior: Sequence[PathPrior], spread: FloatArray, absent: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int64]], FloatArray]:
    """Number of the free parameter behind each [path, field] (-1: held), and each one's prior spread."""
    index = np.full(spread.shape, -1, dtype=np.int64)
    known: dict[tuple[str, str], int] = {}
    slots: list[float] = []
    for i, entry in enumerate(prior):
        for j, name in enumerate(_FIELDS):
            if absent[i, j] or spread[i, j] <= 0:
                continue
            group = entry.shared if name.endswith("per_s") or name == "ramp_s" else ""
            if name == "own_bytes_per_s":
                # One ratio of own copy to link for all protocols: samples tell no more.
                group = "all"
            key = (group or f"path {i}", name)
            if key not in known:
                known[key] = len(slots)
                slots.append(float(spread[i, j]))
            index[i, j] = known[key]
    return index, np.array(slots)


def _position_of(
    paths: Sequence[PathFit],
    prior: Sequence[PathPrior],
    start: FloatArray,
    index: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    n: int,
) -> FloatArray:
    """The free parameters at which the priors become `paths`."""
    values = starting_paths(
        [PathPrior(path=path, log_sigma=entry.log_sigma) for path, entry in zip(paths, prior, strict=True)]
    )
    x = np.zeros(n)
    x[index[index >= 0]] = np.log(values[index >= 0] / start[index >= 0])
    return x
