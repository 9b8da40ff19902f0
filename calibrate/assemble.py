"""From samples to a profile: operator fits, host costs, network, overlap, contention."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from calibrate.drift import YARDSTICK
from calibrate.environment import Machine
from calibrate.host_costs import host_costs, overlap_of
from calibrate.journal import Sample
from calibrate.parallel_fits import fit_groups
from calibrate.runner import ALONE, TOGETHER
from calibrate.samples import SampleTable
from costmodel.errors import MeasurementError
from costmodel.estimate import expected_max
from costmodel.hardware.forms.base import load_forms
from costmodel.hardware.kinds import COLLECTIVE_KINDS, OPERATOR_KINDS
from costmodel.hardware.schema import DeviceSpec, Environment, HardwareProfile

if TYPE_CHECKING:
    from calibrate.collective_samples import CollectiveSample
    from costmodel.hardware.network_schema import NetworkModel
    from costmodel.hardware.schema import OperatorFit

__all__ = [
    "assemble_profile",
    "collective_samples",
    "contention_of",
    "environment_of",
    "measured_rates",
    "nominal_network",
    "operator_tables",
    "rank_log_sigma_of",
]

_SOURCE = "own measurement"
_FEWEST_ROWS = 4
_FASTEST_SHARE = 0.9
"""Quantile of the rates measured on large operands that stands for what the device can do."""


def assemble_profile(
    name: str,
    machine: Machine,
    samples: Sequence[Sample],
    *,
    progress: Callable[[str], None] | None = None,
) -> HardwareProfile:
    """Fit everything that the samples allow; kinds without samples are left to the profile's fall-backs."""
    device = _device(machine, samples)
    operators = _fit_operators(samples, device, progress)
    return HardwareProfile(
        name=name,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        source=_SOURCE,
        device=device,
        operators=tuple(operators),
        host=host_costs(samples),
        network=_network(machine, samples, progress),
        overlap=overlap_of(samples),
        contention_s_per_byte=contention_of(samples),
        rank_log_sigma=rank_log_sigma_of(samples, machine.world_size),
        yardstick_s={
            ALONE if machine.world_size == 1 else s.setting: s.time_s for s in samples if s.kind == YARDSTICK
        },
        environment=environment_of(machine),
        provenance={
            "world_size": machine.world_size,
            "cores": machine.cores,
            "n_samples": len(samples),
            "n_visits": sum(s.n_visits for s in samples),
        },
    )


def environment_of(machine: Machine) -> Environment:
    """What a profile says of the machine it was taken on."""
    return Environment(
        device=machine.device,
        threads=machine.threads,
        torch=machine.torch,
        backend=machine.backend,
        driver=machine.driver,
        os_kernel=machine.os_kernel,
        load=round(machine.load, 3),
    )


def operator_tables(samples: Sequence[Sample], device: str) -> dict[str, SampleTable]:
    """One table per operator kind, of what was measured with all ranks at work."""
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.kind in OPERATOR_KINDS and sample.kind != "host" and sample.setting == TOGETHER:
            kinds.setdefault(sample.kind, []).append(sample)
    tables = {}
    for kind, rows in kinds.items():
        tables[kind] = SampleTable.of(
            kind,
            {name: [float(r.dims[name]) for r in rows] for name in OPERATOR_KINDS[kind].dims},
            time_s=[r.time_s for r in rows],
            variant=[r.variant for r in rows],
            dtype=[r.dtype for r in rows],
            timing=[r.timing for r in rows],
            device=device,
            source=_SOURCE,
            framework="torch",
            spread=[r.spread for r in rows],
        )
    return tables


def collective_samples(samples: Sequence[Sample], machine: Machine) -> list[CollectiveSample]:
    """The collectives among the samples, as one node's."""
    from calibrate.collective_samples import CollectiveSample

    return [
        CollectiveSample(
            op=s.kind,
            n_ranks=s.dims["n_ranks"],
            size_bytes=float(s.dims["size_bytes"]),
            dtype=s.dtype,
            time_s=s.time_s,
            rel_spread=s.spread,
            timing=s.timing,
            impl=machine.backend,
            device=machine.device,
            source=_SOURCE,
        )
        for s in samples
        if s.kind in COLLECTIVE_KINDS
    ]


def _fit_operators(
    samples: Sequence[Sample], device: DeviceSpec, progress: Callable[[str], None] | None
) -> list[OperatorFit]:
    from costmodel.hardware.forms.base import load_forms

    forms = load_forms()
    groups = [
        rows
        for kind, table in operator_tables(samples, device.name).items()
        if kind in forms
        for _, rows in table.groups()
        if len(rows) >= _FEWEST_ROWS
    ]
    if progress is not None:
        progress(f"fitting {len(groups)} groups of operators")
    return fit_groups(groups, device)


def _device(machine: Machine, samples: Sequence[Sample]) -> DeviceSpec:
    """Datasheet limits of a known device; of any other, the best rates that were measured on it, those of the
    probe where nothing else was. MeasurementError where not even that was."""
    from costmodel.hardware.datasheets import find_datasheet

    known = find_datasheet(machine.device)
    if known is not None:
        return known.device
    rates = measured_rates(samples)
    flow = [
        s.dims["bytes"] / s.time_s for s in samples if s.kind == "memory" and s.variant in ("copy", "read")
    ]
    probes = [s for s in samples if s.kind == "probe"]
    products = [s.dims["flop"] / s.time_s for s in probes if s.variant == "gemm"]
    copies = [s.dims["bytes"] / s.time_s for s in probes if s.variant == "copy"]
    to_host = [s.dims["bytes"] / s.time_s for s in samples if s.variant == "device_to_host"]
    large = [
        s.dims["bytes"] / s.time_s
        for s in samples
        if s.setting == TOGETHER and s.dims.get("bytes", 0) > machine.cache_bytes
    ]
    if not flow and large:
        flow = [float(np.quantile(large, _FASTEST_SHARE))]
    if not (flow or copies) or not (rates or products):
        raise MeasurementError(
            f"{machine.device}: no rate of its memory or of its arithmetic was measured; calibrate again "
            "without --only"
        )
    measured = "highest rate measured, all ranks at once"
    return DeviceSpec(
        kind="cuda" if machine.device_kind == "cuda" else "rocm" if machine.device_kind == "rocm" else "cpu",
        name=machine.device,
        architecture=machine.os_kernel.split()[-1] if machine.device_kind == "cpu" else machine.device_kind,
        memory_bytes=machine.memory_bytes,
        memory_bytes_per_s=max(flow or copies),
        peak_flop_per_s=rates or {"fp32": max(products)},
        multiprocessors=machine.multiprocessors,
        l2_bytes=machine.cache_bytes,
        boost_hz=machine.clock_hz,
        host_bytes_per_s=max(to_host, default=None),
        sources={"peak_flop_per_s": measured, "memory_bytes_per_s": measured},
    )


def measured_rates(samples: Sequence[Sample]) -> dict[str, float]:
    """dtype -> highest FLOP/s of any kind: a library's convolution may outrun its GEMM."""
    from costmodel.hardware.forms.base import load_forms

    forms = load_forms()
    rates: dict[str, float] = {}
    for kind, table in operator_tables(samples, "").items():
        if kind not in forms:
            continue
        for group, rows in table.groups():
            best = float(np.max(forms[kind].flop(rows.dims, group.variant) / rows.time_s))
            rates[group.dtype] = max(rates.get(group.dtype, 0.0), best)
    return {dtype: rate for dtype, rate in rates.items() if rate > 0.0}


def _network(
    machine: Machine, samples: Sequence[Sample], progress: Callable[[str], None] | None
) -> NetworkModel | None:
    """The node's links, fitted to the collectives there are; None with one rank."""
    measured = collective_samples(samples, machine)
    if not measured:
        return None
    from calibrate.fitting.collectives import fit_collectives

    return fit_collectives(measured, nominal_network(machine, measured), progress=progress)


def nominal_network(machine: Machine, samples: Sequence[CollectiveSample]) -> NetworkModel:
    """The links of a known device; of any other, one of the best latency and rate that were measured."""
    from costmodel.hardware.network_schema import Link, NetworkModel
    from costmodel.hardware.node_links import device_family, device_network

    if machine.device_kind != "cpu" and device_family(machine.device):
        return device_network(machine.device)
    from costmodel.hardware.collectives.algorithms import bus_factor

    latency_s = min(s.time_s for s in samples)
    rate = max(bus_factor(s.op, s.n_ranks) * s.size_bytes / s.time_s for s in samples)
    source = "best transfer measured"
    cpu = machine.device_kind == "cpu"
    link = Link(
        name="loopback" if cpu else "pcie",
        kind="loopback" if cpu else "pcie",
        latency_s=latency_s,
        bytes_per_s=rate,
        source=source,
    )
    return NetworkModel(name=machine.device, ranks_per_node=machine.world_size, intra=(link,), source=source)


def contention_of(samples: Sequence[Sample]) -> float:
    """Seconds per byte that all ranks at work cost over one alone, at least 0.

    The median over the cases measured in both settings, weighted by their bytes, of the kinds whose time is
    traffic: what others lose per byte drowns in the noise of their arithmetic.
    """

    def case(s: Sample) -> tuple[str, str, str, tuple[tuple[str, int], ...]]:
        return s.kind, s.variant, s.dtype, tuple(sorted(s.dims.items()))

    forms = load_forms()
    alone = {case(s): s.time_s for s in samples if s.setting == ALONE}
    costs: list[tuple[float, float]] = []
    for s in samples:
        if s.setting != TOGETHER or case(s) not in alone or s.kind not in forms or not forms[s.kind].streams:
            continue
        dims = {name: np.array([float(size)]) for name, size in s.dims.items()}
        size = float(forms[s.kind].least_bytes(dims, s.dtype, s.variant)[0])
        costs.append(((s.time_s - alone[case(s)]) / size, size))
    return max(0.0, _weighted_median(costs)) if costs else 0.0


def _weighted_median(pairs: Sequence[tuple[float, float]]) -> float:
    """The value at which half of the weight is reached; `pairs` of (value, weight)."""
    half, reached = 0.5 * sum(weight for _, weight in pairs), 0.0
    for value, weight in sorted(pairs):
        reached += weight
        if reached >= half:
            return value
    raise ValueError("needs at least one pair with a positive weight")


def rank_log_sigma_of(samples: Sequence[Sample], n_ranks: int) -> float:
    """Spread among ranks, from how long the slowest of them was awaited on average.

    The largest tenth of the waits is left out: one interrupted call is not how ranks differ.
    """
    waits = sorted(s.waiting for s in samples if s.setting == TOGETHER and s.kind in OPERATOR_KINDS)
    kept = waits[: math.ceil(0.9 * len(waits))]
    return statistics.fmean(kept) / expected_max(n_ranks) if kept and n_ranks > 1 else 0.0
