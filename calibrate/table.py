"""Measured collectives beside their fit, as nccl-tests prints them, and how noisy the machine was.

Data only; rendering is the planner's.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from calibrate.drift import fitted_samples
from calibrate.journal import Sample, read_journal, samples_path
from costmodel.hardware.kinds import COLLECTIVE_KINDS

if TYPE_CHECKING:
    from costmodel.hardware.schema import HardwareProfile

__all__ = ["CollectiveRow", "CollectiveTable", "Noise", "collective_table", "noise"]

_QUIET_SPREAD = 0.05
_NOISY_SPREAD = 0.15
_LOADED = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveRow:
    """One collective at one size. Bandwidths are per rank, one direction."""

    op: str
    n_ranks: int
    size_bytes: int
    time_s: float
    spread_fraction: float
    algbw_bytes_per_s: float
    busbw_bytes_per_s: float
    fit_s: float
    error_fraction: float
    """fit_s / time_s - 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Spread of all samples. `verdict`: quiet, fair or noisy; `advice` says what to do about it."""

    verdict: Literal["quiet", "fair", "noisy"]
    median_spread_fraction: float
    p90_spread_fraction: float
    load_per_core: float
    n_samples: int
    advice: str

    def __str__(self) -> str:
        return (
            f"noise: {self.verdict} (spread of {self.n_samples} samples: median "
            f"{100 * self.median_spread_fraction:.1f} %, 90th percentile "
            f"{100 * self.p90_spread_fraction:.1f} %; load per core before measuring "
            f"{self.load_per_core:.2f}). {self.advice}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveTable:
    """Rows by collective, ranks and size; `verdict` is the noise verdict in one line."""

    rows: tuple[CollectiveRow, ...]
    noise: Noise

    @property
    def verdict(self) -> str:
        """One line for the reader."""
        return str(self.noise)


def collective_table(profile_path: Path) -> CollectiveTable:
    """The samples beside a profile against the profile's own fit.

    Raises InputFileError where the samples are missing, ProfileError where the profile is.
    """
    from costmodel.hardware.store import load_profile

    machine, visits = read_journal(samples_path(Path(profile_path)))
    samples = fitted_samples(machine, visits)
    profile = load_profile(Path(profile_path))
    rows = [_row(s, profile) for s in samples if s.kind in COLLECTIVE_KINDS]
    order = {kind: i for i, kind in enumerate(COLLECTIVE_KINDS)}
    rows.sort(key=lambda r: (order[r.op], r.n_ranks, r.size_bytes))
    return CollectiveTable(rows=tuple(rows), noise=noise(samples, machine.load))


def noise(samples: Sequence[Sample], load_per_core: float) -> Noise:
    """How far repeats of the same measurement lie apart on this machine."""
    spreads = sorted(s.spread for s in samples if s.kind != "probe")
    median = statistics.median(spreads) if spreads else 0.0
    p90 = spreads[int(0.9 * (len(spreads) - 1))] if spreads else 0.0
    verdict: Literal["quiet", "fair", "noisy"] = "fair"
    advice = "Intervals are widened accordingly."
    if median > _NOISY_SPREAD or load_per_core > _LOADED:
        verdict = "noisy"
        advice = (
            "Stop other work on this machine and calibrate again with --fresh, or give a larger --budget."
        )
    elif median <= _QUIET_SPREAD:
        verdict, advice = "quiet", "Nothing to do."
    return Noise(
        verdict=verdict,
        median_spread_fraction=median,
        p90_spread_fraction=p90,
        load_per_core=load_per_core,
        n_samples=len(spreads),
        advice=advice,
    )


def _row(sample: Sample, profile: HardwareProfile) -> CollectiveRow:
    from costmodel.hardware.collectives.algorithms import bus_factor

    n_ranks, size = sample.dims["n_ranks"], sample.dims["size_bytes"]
    fit_s = _fit_s(sample, profile)
    rate = size / sample.time_s
    return CollectiveRow(
        op=sample.kind,
        n_ranks=n_ranks,
        size_bytes=size,
        time_s=sample.time_s,
        spread_fraction=sample.spread,
        algbw_bytes_per_s=rate,
        busbw_bytes_per_s=rate * bus_factor(sample.kind, n_ranks),
        fit_s=fit_s,
        error_fraction=fit_s / sample.time_s - 1.0,
    )


def _fit_s(sample: Sample, profile: HardwareProfile) -> float:
    """The profile's time for this collective; NaN where it has no network."""
    import numpy as np

    from costmodel.hardware.collectives.pricing import collective_times
    from costmodel.hardware.kinds import CollectiveGroup
    from costmodel.hardware.network_schema import NetworkModel

    if not isinstance(profile.network, NetworkModel):
        return float("nan")
    estimate = collective_times(
        profile.network,
        sample.kind,
        np.array([float(sample.dims["size_bytes"])]),
        CollectiveGroup(n_ranks=sample.dims["n_ranks"]),
        timing=sample.timing,
    )
    return float(estimate.median_s[0])
