"""Predicted against measured collectives: the shipped networks, or fits that did not see the row's size.

Cross-validated, each device's rows are dealt into folds by size (equal sizes share a fold) and every row is
scored by a fit of the others, never across ways of timing. `details.extrapolation` then holds fits on few
ranks against more: up to 4 ranks of a node against the larger groups, and the fewest nodes against more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.collective_samples import CollectiveSample
from calibrate.fitting.collectives import fit_collectives
from calibrate.fitting.size_curves import fold_numbers
from calibrate.importing.collective_tables import read_collective_table
from calibrate.importing.networks import linked_samples, with_links
from costmodel.errors import ForeshardError
from costmodel.hardware.collectives import collective_times
from costmodel.hardware.kinds import CollectiveGroup
from costmodel.hardware.network_schema import NetworkModel
from costmodel.hardware.node_links import device_network
from planner.validation.scoring import Report, ScoredRow, summarise

__all__ = ["score_sample", "validate_collectives"]

_FOLDS = 5
_FEW_RANKS = 4
_LARGE_BYTES = 64e6
_BY = ("source", "gpu", "kind", "ranks", "timing", "impl")


def validate_collectives(path: Path, *, cross_validate: bool = False, hardware: str | None = None) -> Report:
    """Report over a table of collectives; metric latency_us.

    `hardware`: price every row by this profile instead of the one its gpu column names. Rows that cannot be
    modelled are listed with their reason. InputFileError where the table cannot be read.
    """
    table = read_collective_table(path)
    rows: list[ScoredRow] = [
        ScoredRow(
            id=_line_of(problem), source=str(path.name), metric="latency_us", measured=None, skipped=problem
        )
        for problem in table.problems
    ]
    extrapolation: list[dict[str, Any]] = []
    devices: dict[str, list[CollectiveSample]] = defaultdict(list)
    for device in sorted({sample.device for sample in table.samples}):
        devices[device] = linked_samples(table, device, device_network(device))
    for device, samples in devices.items():
        if cross_validate:
            rows += _cross_validated(device, samples)
            extrapolation += _extrapolated(device, samples)
        else:
            network = _shipped_network(hardware or device)
            if isinstance(network, NetworkModel):
                # A link of a known kind in a shape that the profile does not list has its nominal price.
                priced = with_links(network, samples)
                rows += [score_sample(sample, priced) for sample in samples]
            else:
                rows += [_skip(sample, network) for sample in samples]
    order = {sample.row_id: i for i, sample in enumerate(table.samples)}
    rows.sort(key=lambda row: order.get(row.id, len(order)))
    details = {"extrapolation": extrapolation} if cross_validate else {}
    return Report.of(rows, by=_BY, details=details)


def score_sample(sample: CollectiveSample, network: NetworkModel) -> ScoredRow:
    """One row priced by a network; skipped with the reason where it cannot be."""
    if sample.quality:
        return _skip(sample, f"quality {sample.quality}: the source marks the row as unreliable")
    try:
        group = CollectiveGroup(n_ranks=sample.n_ranks, n_nodes=sample.n_nodes)
        estimate = collective_times(
            network,
            sample.op,
            np.array([sample.size_bytes]),
            group,
            sample.link or None,
            impl=sample.impl,
            timing=sample.timing,
            version=sample.version,
        )
    except ForeshardError as error:
        return _skip(sample, str(error))
    return ScoredRow(
        predicted=float(estimate.median_s[0]) * 1e6,
        low=float(estimate.low_s[0]) * 1e6,
        high=float(estimate.high_s[0]) * 1e6,
        **_common(sample),
    )


def _common(sample: CollectiveSample) -> dict[str, Any]:
    shape = f"{sample.n_ranks}x{sample.n_nodes}"
    return {
        "id": sample.row_id,
        "source": sample.source,
        "metric": "latency_us",
        "measured": sample.time_s * 1e6,
        "labels": {
            "gpu": sample.device,
            "kind": sample.op,
            "ranks": f"{sample.n_ranks} ranks, {sample.n_nodes} nodes",
            "timing": sample.timing,
            "impl": sample.impl,
            "shape": shape,
        },
    }


def _skip(sample: CollectiveSample, reason: str) -> ScoredRow:
    return ScoredRow(skipped=reason, **_common(sample))


def _line_of(problem: str) -> str:
    """The line number out of "file:line: reason"."""
    return problem.split(": ", 1)[0].rpartition(":")[2]


def _shipped_network(name: str) -> NetworkModel | str:
    """Network of the shipped profile (or profile file), or why there is none."""
    from costmodel.hardware.store import load_profile

    try:
        network = load_profile(name).network
    except ForeshardError as error:
        return str(error)
    if network is None:
        return f"profile {name!r} has no network; import collectives for it"
    return network if isinstance(network, NetworkModel) else NetworkModel.model_validate(network)


def _cross_validated(device: str, samples: Sequence[CollectiveSample]) -> list[ScoredRow]:
    rows = [score_sample(s, device_network(device)) for s in samples if s.quality]
    usable = [s for s in samples if not s.quality]
    if not usable:
        return rows
    base = with_links(device_network(device), usable)
    folds = fold_numbers(np.log2([s.size_bytes for s in usable]), _FOLDS)
    sizes: dict[tuple[str, ...], set[float]] = defaultdict(set)
    for sample in usable:
        sizes[sample.family("")].add(sample.size_bytes)
    for fold in range(_FOLDS):
        unseen = [s for s, number in zip(usable, folds, strict=True) if number == fold]
        seen = [s for s, number in zip(usable, folds, strict=True) if number != fold]
        if not unseen:
            continue
        network = fit_collectives(seen, base) if seen else base
        fitted = {(fit.op, fit.link, fit.impl, fit.timing) for fit in network.fits}
        for sample in unseen:
            if len(sizes[sample.family("")]) < 2 or sample.family("") not in fitted:
                rows.append(_skip(sample, "its family has one size only: nothing to hold it out from"))
            else:
                rows.append(score_sample(sample, network))
    return rows


def _extrapolated(device: str, samples: Sequence[CollectiveSample]) -> list[dict[str, Any]]:
    """Summaries of fits on few ranks (or nodes) scored on more, per op."""
    usable = [s for s in samples if not s.quality and not s.impl.startswith("custom")]
    found: list[dict[str, Any]] = []
    local = [s for s in usable if s.n_nodes == 1]
    found += _held_against(
        device,
        [s for s in local if s.n_ranks <= _FEW_RANKS],
        [s for s in local if s.n_ranks > _FEW_RANKS],
        f"up to {_FEW_RANKS} ranks -> more, one node",
    )
    between = [s for s in usable if s.n_nodes > 1 and s.n_ranks > s.n_nodes]
    fewest = min((s.n_nodes for s in between), default=0)
    found += _held_against(
        device,
        [s for s in usable if s.n_nodes <= fewest],
        [s for s in between if s.n_nodes > fewest and s.size_bytes >= _LARGE_BYTES],
        f"{fewest} nodes -> more, {_LARGE_BYTES / 1e6:.0f} MB and above",
    )
    return found


def _held_against(
    device: str, seen: Sequence[CollectiveSample], unseen: Sequence[CollectiveSample], what: str
) -> list[dict[str, Any]]:
    families = {s.family("") for s in seen}
    unseen = [s for s in unseen if s.family("") in families]
    if not seen or not unseen:
        return []
    wanted = {s.family("") for s in unseen}
    base = with_links(device_network(device), [*seen, *unseen])
    network = fit_collectives([s for s in seen if s.family("") in wanted], base)
    scored = [score_sample(sample, network) for sample in unseen]
    return [{"gpu": device, "what": what, **asdict(row)} for row in summarise(scored, ("kind", "ranks"))]
