"""A base profile brought up to date by a few measurements at the very sizes that matter.

The base's fit is the prior, the ratios of measured to predicted time its data: a Gaussian process with a part
that all sizes of a fit share and a part that decays with distance (Matern-3/2 in the fit's own features, as
its correction is), which is what the profile evaluates (Rasmussen and Williams 2006, eq. 2.25).

    ln t = ln base + offset + sum_j w_j K(|x - x_j| / length)

Operators that were not measured move by how much slower this machine is than the base's; on a CPU, whose
cores also dispatch and copy, host costs and transfers do too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from calibrate.assemble import (
    collective_samples,
    contention_of,
    environment_of,
    nominal_network,
    operator_tables,
    rank_log_sigma_of,
)
from calibrate.decision import noise_log_sigma
from calibrate.drift import YARDSTICK
from calibrate.host_costs import host_costs, overlap_of
from calibrate.runner import ALONE
from calibrate.timing import IQR_OF_NORMAL
from costmodel.errors import UsageError
from costmodel.estimate import FloatArray
from costmodel.hardware.collectives import collective_times
from costmodel.hardware.fallback import fallback_spread
from costmodel.hardware.forms.correction import kernel
from costmodel.hardware.forms.evaluate import evaluate_fit, form_of
from costmodel.hardware.kinds import CollectiveGroup
from costmodel.hardware.network_schema import CollectiveFit, NetworkModel, SizeCurve
from costmodel.hardware.pricing import choose_fit, datasheet_fit
from costmodel.hardware.schema import Correction, Overlap

if TYPE_CHECKING:
    from calibrate.collective_samples import CollectiveSample
    from calibrate.environment import Machine
    from calibrate.journal import Sample
    from calibrate.samples import SampleTable
    from costmodel.hardware.schema import DeviceSpec, HardwareProfile, HostValue, OperatorFit

__all__ = ["require_same_kind", "updated_collective", "updated_fit", "updated_profile"]

_LENGTH = 0.5
"""Distance in features (logarithms of sizes) over which a size tells of another: what errors have in common
over longer distances the base's own correction has taken out."""
_OCTAVES = 2.0
"""The same for the size of a transfer, in doublings."""
_FEWEST_WAITS = 20
_LEAST_SIGMA = 0.004


def updated_profile(
    base: HardwareProfile,
    name: str,
    machine: Machine,
    samples: Sequence[Sample],
    wanted: frozenset[str],
    *,
    shared: float,
    new: Sequence[Sample] | None = None,
) -> HardwareProfile:
    """`base` with what the samples say. `wanted`: keys of the operator and collective samples that count.
    `shared`: share of a fit's variance that is common to all its sizes. `new`: of the operators and
    collectives what `base` does not hold yet, where it was made from some of the samples.

    Raises UsageError where the base is of another kind of device.
    """
    require_same_kind(base, machine)
    counted = [_as_of_mean(s) for s in (samples if new is None else new) if s.key in wanted]
    operators, machine_shift = _operators(base, counted, shared)
    cores_shift = machine_shift if machine.device_kind == "cpu" else 0.0
    overlap = overlap_of(samples)
    waits = [s for s in samples if s.waiting > 0]
    alone = any(s.setting == ALONE and s.kind != YARDSTICK for s in samples)
    return base.model_copy(
        update={
            "name": name,
            "aliases": (),
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "source": f"{base.source}; own measurement of {len(counted)} deciding sizes",
            "operators": operators,
            "borrowed": (),
            "host": {**_slower_host(base.host, cores_shift), **host_costs(samples)},
            "network": _network(base.network, machine, counted, shared, cores_shift),
            "overlap": base.overlap if overlap == Overlap() else overlap,
            "contention_s_per_byte": contention_of(samples)
            if alone
            else base.contention_s_per_byte * math.exp(cores_shift),
            "rank_log_sigma": rank_log_sigma_of(samples, machine.world_size)
            if len(waits) >= _FEWEST_WAITS
            else base.rank_log_sigma,
            "yardstick_s": {s.setting: s.time_s for s in samples if s.kind == YARDSTICK} or base.yardstick_s,
            "environment": environment_of(machine),
            "provenance": {
                **base.provenance,
                "base": base.name,
                "n_deciding_samples": len(counted),
                "n_deciding_visits": sum(s.n_visits for s in counted),
            },
        }
    )


def require_same_kind(base: HardwareProfile, machine: Machine) -> None:
    """Raises UsageError where a base profile is of another kind of device than this machine's."""
    if base.device.kind != machine.device_kind:
        raise UsageError(
            f"base profile {base.name!r} is of a {base.device.kind} device, this machine's is "
            f"{machine.device_kind}; measure on a machine like that, or give --base a profile of a device "
            "like this one"
        )


def _as_of_mean(sample: Sample) -> Sample:
    """With the spread of what all its visits together say, not of one of them."""
    return replace(sample, spread=IQR_OF_NORMAL * noise_log_sigma([sample]))


def _slower_host(host: Mapping[str, HostValue], shift: float) -> dict[str, HostValue]:
    return {
        name: cost.model_copy(update={"value_s": cost.value_s * math.exp(shift)})
        for name, cost in host.items()
    }


def _slower_transfers(fit: CollectiveFit, shift: float) -> CollectiveFit:
    """The fit with every transfer longer by the factor exp(shift)."""
    factor = math.exp(shift)
    paths = tuple(
        path.model_copy(
            update={
                name: value / factor if name.endswith("bytes_per_s") else value * factor
                for name, value in path
                if name.endswith("_s") and value is not None
            }
        )
        for path in fit.paths
    )
    return fit.model_copy(update={"paths": paths})


def _operators(
    base: HardwareProfile, samples: Sequence[Sample], shared: float
) -> tuple[tuple[OperatorFit, ...], float]:
    """Fits of the measured groups updated, the others moved by how much slower this machine is; and that."""
    groups: list[tuple[OperatorFit, SampleTable]] = []
    for kind, table in operator_tables(samples, base.device.name).items():
        for group, rows in table.groups():
            fit = choose_fit(base, kind, group.variant, group.dtype, group.timing)
            groups.append((fit or datasheet_fit(base.device, kind, group.variant, group.dtype), rows))
    machine_shift = _machine_shift(groups, base.device, shared)
    updated = {
        (fit.kind, fit.variant, fit.dtype): updated_fit(
            fit, base.device, rows, shared=shared, shift=machine_shift
        )
        for fit, rows in groups
    }
    kept = [
        fit.model_copy(update={"log_offset": fit.log_offset + machine_shift})
        for fit in base.operators
        if (fit.kind, fit.variant, fit.dtype) not in updated
    ]
    return (*kept, *updated.values()), machine_shift


def _machine_shift(
    groups: Sequence[tuple[OperatorFit, SampleTable]], device: DeviceSpec, shared: float
) -> float:
    """Expected ln of how much slower this machine is: the mean of the groups' ratios, each weighted by how
    little its fit may err, drawn to zero by how little machines differ."""
    weighted = total = 0.0
    for fit, rows in groups:
        sigma = evaluate_fit(fit, device, rows.dims).log_sigma
        weight = 1.0 / float(np.mean(sigma**2)) / (shared + (1.0 - shared) / len(rows))
        weighted += weight * float(_log_ratio(fit, device, rows).mean())
        total += weight
    return weighted / (total + 1.0 / fallback_spread().transfer_other_architecture_log_sigma ** 2)


def _log_ratio(fit: OperatorFit, device: DeviceSpec, rows: SampleTable) -> FloatArray:
    return np.asarray(np.log(rows.time_s / evaluate_fit(fit, device, rows.dims).median_s))


def updated_fit(
    fit: OperatorFit, device: DeviceSpec, rows: SampleTable, *, shared: float, shift: float = 0.0
) -> OperatorFit:
    """The fit conditioned on rows of its kind, variant and dtype, whose spread is that of their times' mean.
    `shared`: as in `updated_profile`; `shift`: expected ln(measured / base)."""
    features = form_of(fit.kind).features(device, rows.dims, fit.dtype, fit.variant)
    ratio = _log_ratio(fit, device, rows) - shift
    sigma = evaluate_fit(fit, device, rows.dims).log_sigma
    length = np.full(features.shape[1], _LENGTH)
    x = features / length
    correlation = shared + (1.0 - shared) * kernel(x, x)
    noise = (rows.spread / IQR_OF_NORMAL) ** 2
    variance = float(np.mean(sigma**2))
    solved = np.linalg.inv(variance * correlation + np.diag(noise))
    alpha = solved @ ratio
    offset = shared * variance * float(alpha.sum())
    weights = (1.0 - shared) * variance * alpha
    explained = variance * np.einsum("ij,jk,ik->i", correlation, solved, correlation)
    # far from all of them only what sizes share is known better
    explained_far = shared**2 * variance * float(solved.sum())
    left = np.maximum(sigma * np.sqrt(np.clip(1.0 - explained, 0.0, 1.0)), _LEAST_SIGMA)
    update = Correction(
        length=tuple(map(float, length)),
        centres=tuple(tuple(round(float(v), 4) for v in row) for row in x),
        weights=tuple(float(f"{v:.5g}") for v in weights),
        sigmas=tuple(float(f"{v:.4g}") for v in left),
        far_sigma=float(f"{np.sqrt(max(0.0, 1.0 - explained_far)):.4g}"),
        limit=float(f"{max(float(np.abs(ratio).max()), _LEAST_SIGMA):.4g}"),
    )
    return fit.model_copy(
        update={
            "update": update if fit.update is None else _joined(fit.update, update),
            "log_offset": fit.log_offset + shift + offset,
            "n_samples": fit.n_samples + len(rows),
            "source": f"{fit.source}; own measurement",
        }
    )


def _joined(old: Correction, new: Correction) -> Correction:
    """Both shifts, one after the other: the new one was found on top of the old."""
    if old.length != new.length:
        raise UsageError("the base's own update has other lengths; calibrate it anew or take its own base")
    return Correction(
        length=new.length,
        centres=(*old.centres, *new.centres),
        weights=(*old.weights, *new.weights),
        sigmas=(*old.sigmas, *new.sigmas),
        far_sigma=old.far_sigma * new.far_sigma,
        limit=old.limit + new.limit,
    )


def _network(
    base: NetworkModel | None, machine: Machine, samples: Sequence[Sample], shared: float, shift: float
) -> NetworkModel | None:
    """The base's network with curves through what was measured, other transfers inside a node longer by
    exp(shift); else one of the samples alone."""
    measured = collective_samples(samples, machine)
    if base is not None:
        link = base.intra[0].name
        moved = tuple(_slower_transfers(f, shift) if f.link == link and shift else f for f in base.fits)
        base = base.model_copy(update={"fits": moved})
    if not measured:
        return base
    if base is None or base.ranks_per_node < machine.world_size:
        from calibrate.fitting.collectives import fit_collectives

        return fit_collectives(measured, nominal_network(machine, measured))
    fits = list(base.fits)
    for op in dict.fromkeys(s.op for s in measured):
        mine = [s for s in measured if s.op == op]
        place = next((i for i, f in enumerate(fits) if f.op == op and f.link == base.intra[0].name), None)
        if place is None:
            continue
        for n_ranks in sorted({s.n_ranks for s in mine}):
            of_group = [s for s in mine if s.n_ranks == n_ranks]
            fits[place] = updated_collective(base, fits[place], of_group, shared=shared)
    rate = max((_rate(s) for s in measured), default=0.0)
    nominal = base.intra[0].model_copy(update={"bytes_per_s": max(rate, base.intra[0].bytes_per_s)})
    return base.model_copy(update={"fits": tuple(fits), "intra": (nominal, *base.intra[1:])})


def _rate(sample: CollectiveSample) -> float:
    from costmodel.hardware.collectives.algorithms import bus_factor

    return bus_factor(sample.op, sample.n_ranks) * sample.size_bytes / sample.time_s


def updated_collective(
    network: NetworkModel, fit: CollectiveFit, samples: Sequence[CollectiveSample], *, shared: float
) -> CollectiveFit:
    """A collective's fit with its size curve drawn towards samples of one group inside a node.

    The ratio of measured to predicted time is a Gaussian process over log2(size), as in `updated_fit`; the
    samples' spread is that of their means.
    """
    n_ranks = samples[0].n_ranks
    sizes = np.array([s.size_bytes for s in samples])
    group = CollectiveGroup(n_ranks=n_ranks)
    before = collective_times(network, samples[0].op, sizes, group)
    ratio = np.log([s.time_s for s in samples]) - np.log(before.median_s)
    old = [c for c in fit.curves if (c.n_ranks, c.n_nodes) == (n_ranks, 1)]
    at = np.unique(np.concatenate([np.log2(sizes), *(np.array(c.log2_bytes) for c in old)]))
    x, grid = np.log2(sizes)[:, None] / _OCTAVES, at[:, None] / _OCTAVES
    prior = collective_times(network, samples[0].op, np.exp2(at), group).log_sigma
    variance = float(np.mean(before.log_sigma**2))
    covariance = variance * (shared + (1.0 - shared) * kernel(x, x))
    noise = np.array([s.rel_spread / IQR_OF_NORMAL for s in samples]) ** 2
    cross = variance * (shared + (1.0 - shared) * kernel(grid, x))
    gain = np.linalg.solve(covariance + np.diag(noise), cross.T).T
    explained = np.einsum("ij,ij->i", gain, cross) / variance
    there = np.mean([np.interp(at, c.log2_bytes, c.log_ratio) for c in old], axis=0) if old else 0.0
    curve = SizeCurve(
        n_ranks=n_ranks,
        n_nodes=1,
        log2_bytes=tuple(map(float, at)),
        log_ratio=tuple(float(v) for v in there + gain @ ratio),
        log_sigma=tuple(
            float(v) for v in np.maximum(prior * np.sqrt(np.clip(1.0 - explained, 0.0, 1.0)), _LEAST_SIGMA)
        ),
    )
    others = tuple(c for c in fit.curves if (c.n_ranks, c.n_nodes) != (n_ranks, 1))
    return fit.model_copy(update={"curves": (*others, curve), "n_samples": fit.n_samples + len(samples)})
