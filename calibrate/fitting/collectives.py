"""Fits the collectives of a network: paths over all group shapes, then a size curve for each.

One fit per op, link, implementation and way of timing; these never mix. Residuals and intervals come from
folds over sizes in which no size is scored by a fit that saw it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.collective_samples import CollectiveSample, usable_samples
from calibrate.fitting.collective_paths import (
    PathPrior,
    ShapeTable,
    Wiring,
    fit_paths,
    median_times,
    starting_paths,
)
from calibrate.fitting.collective_priors import hypotheses
from calibrate.fitting.size_curves import CurveFit, fit_curve, fold_numbers, spread_of
from costmodel.errors import MeasurementError
from costmodel.estimate import Z90, FloatArray
from costmodel.hardware.collectives.constants import network_constants
from costmodel.hardware.network_schema import (
    CollectiveFit,
    NetworkModel,
    NetworkResidual,
    PathFit,
    SizeCurve,
)

__all__ = ["FamilyFit", "fit_collectives", "fit_family"]

_FOLDS = 5
_MIN_CURVE_SAMPLES = 4
_Shape = tuple[int, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyFit:
    """Paths and curves of one family of samples; `times` evaluates them as the profile does."""

    paths: tuple[PathFit, ...]
    curves: dict[_Shape, CurveFit]
    wiring: Wiring

    def path_log_times(self, samples: Sequence[CollectiveSample]) -> FloatArray:
        """ln seconds of the fastest path for each sample."""
        table = ShapeTable.of(samples, self.paths, self.wiring)
        values = starting_paths([PathPrior(path=path, log_sigma={}) for path in self.paths])
        return np.log(median_times(table, values))

    def log_times(self, samples: Sequence[CollectiveSample]) -> FloatArray:
        """ln seconds with the curve of each sample's own group shape, where there is one."""
        result = self.path_log_times(samples)
        for i, sample in enumerate(samples):
            curve = self.curves.get((sample.n_ranks, sample.n_nodes, sample.version))
            if curve is not None and not sample.algorithm:
                result[i] += curve.at(np.array([np.log2(sample.size_bytes)]))[0]
        return result


def fit_family(
    samples: Sequence[CollectiveSample],
    priors: Sequence[Sequence[PathPrior]],
    wiring: Wiring,
    *,
    near: Sequence[PathFit] | None = None,
) -> FamilyFit:
    """Paths under the likeliest hypothesis, and a curve for each group shape with enough sizes.

    `near`: paths of a fit to more of the same samples; its hypothesis is kept and its values started from.
    """
    if near is not None:
        priors = [prior for prior in priors if _same_paths(prior, near)]
    fits = [fit_paths(samples, prior, wiring, near=near) for prior in priors]
    paths = min(fits, key=lambda fit: fit[1])[0]
    bare = FamilyFit(paths=paths, curves={}, wiring=wiring)
    log_ratio = np.log([s.time_s for s in samples]) - bare.path_log_times(samples)
    groups: dict[_Shape, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        if not sample.algorithm:
            groups[sample.n_ranks, sample.n_nodes, sample.version].append(i)
    curves = {}
    for shape, members in groups.items():
        sizes = np.log2([samples[i].size_bytes for i in members])
        if len(np.unique(sizes)) >= _MIN_CURVE_SAMPLES:
            curves[shape] = fit_curve(sizes, log_ratio[members])
    return FamilyFit(paths=paths, curves=curves, wiring=wiring)


def _same_paths(prior: Sequence[PathPrior], paths: Sequence[PathFit]) -> bool:
    def names(fits: Sequence[PathFit]) -> list[tuple[str, str, int | None]]:
        return [(fit.algorithm, fit.protocol, fit.max_ranks) for fit in fits]

    return names([entry.path for entry in prior]) == names(paths)


def fit_collectives(
    samples: Sequence[CollectiveSample],
    base: NetworkModel,
    *,
    progress: Callable[[str], None] | None = None,
) -> NetworkModel:
    """`base` with a fit for every family in the samples; fits of the same family are replaced.

    Samples with a `quality` reason are left out. MeasurementError where a sample names a link that the
    network has not.
    """
    families: dict[tuple[str, str, str, str], list[CollectiveSample]] = defaultdict(list)
    known = {link.name: link for link in (*base.intra, *base.inter)}
    for sample in usable_samples(samples):
        default = base.intra[0] if sample.n_nodes == 1 else next(iter(base.inter), None)
        if default is None:
            raise MeasurementError(
                f"{sample.op} over {sample.n_nodes} nodes, but network {base.name!r} has no link between "
                "nodes; add one to the network"
            )
        family = sample.family(default.name)
        if family[1] not in known:
            raise MeasurementError(
                f"sample over link {family[1]!r}, but network {base.name!r} has {', '.join(known)}"
            )
        families[family].append(sample)
    fits = {(fit.op, fit.link, fit.impl, fit.timing): fit for fit in base.fits}
    for family, members in sorted(families.items()):
        if progress:
            progress(" ".join(family))
        link = known[family[1]]
        between = link in base.inter
        wiring = Wiring(
            intra=base.intra[0] if between else link,
            inter=link if between else None,
            ranks_per_node=base.ranks_per_node,
        )
        fits[family] = _fit_one(family, members, wiring)
    return base.model_copy(update={"fits": tuple(fits[key] for key in sorted(fits))})


def _fit_one(
    family: tuple[str, str, str, str], samples: list[CollectiveSample], wiring: Wiring
) -> CollectiveFit:
    op, link, impl, timing = family
    priors = hypotheses(op, impl, samples, wiring.intra, wiring.inter, wiring.ranks_per_node)
    whole = fit_family(samples, priors, wiring)
    errors = _held_out_errors(samples, priors, wiring, whole.paths)
    constants = network_constants()
    bare = np.log([s.time_s for s in samples]) - whole.path_log_times(samples)
    return CollectiveFit(
        op=op,
        link=link,
        impl=impl,
        timing=timing,
        paths=tuple(_rounded(path) for path in whole.paths),
        curves=tuple(_curves(samples, whole, errors)),
        log_sigma=max(float(np.quantile(np.abs(bare), 0.9)) / Z90, 0.01),
        doubling_log_sigma=constants.doubling_log_sigma,
        residual=_residual(samples, whole, errors),
        n_samples=len(samples),
        source="; ".join(sorted({s.source for s in samples if s.source})) or "own measurement",
    )


def _held_out_errors(
    samples: Sequence[CollectiveSample],
    priors: Sequence[Sequence[PathPrior]],
    wiring: Wiring,
    near: Sequence[PathFit],
) -> FloatArray:
    """ln(measured / predicted) of each sample by a fit that saw no sample of its size; NaN if impossible."""
    log_time = np.log([s.time_s for s in samples])
    errors = np.full(len(samples), np.nan)
    folds = _folds(samples)
    for fold in range(_FOLDS):
        inside, outside = np.flatnonzero(folds == fold).tolist(), np.flatnonzero(folds != fold).tolist()
        if not len(inside) or len(outside) < _MIN_CURVE_SAMPLES:
            continue
        fit = fit_family([samples[i] for i in outside], priors, wiring, near=near)
        errors[inside] = log_time[inside] - fit.log_times([samples[i] for i in inside])
    return errors


def _folds(samples: Sequence[CollectiveSample]) -> NDArray[np.int64]:
    return fold_numbers(np.log2([s.size_bytes for s in samples]), _FOLDS)


def _curves(samples: Sequence[CollectiveSample], fit: FamilyFit, errors: FloatArray) -> list[SizeCurve]:
    curves = []
    usable = np.isfinite(errors)
    log2_bytes = np.log2([s.size_bytes for s in samples])
    for (n_ranks, n_nodes, version), curve in sorted(fit.curves.items()):
        own = np.array([(s.n_ranks, s.n_nodes, s.version) == (n_ranks, n_nodes, version) for s in samples])
        chosen = own & usable if (own & usable).sum() >= _MIN_CURVE_SAMPLES else usable
        if not chosen.any():
            continue
        sigma = spread_of(log2_bytes[chosen], errors[chosen])
        curves.append(curve.to_curve(n_ranks, n_nodes, version, sigma))
    return curves


def _residual(
    samples: Sequence[CollectiveSample], fit: FamilyFit, errors: FloatArray
) -> NetworkResidual | None:
    usable = np.isfinite(errors)
    if not usable.any():
        return None
    relative = np.exp(-errors[usable]) - 1.0
    bounds = np.zeros(len(samples))
    log2_bytes = np.log2([s.size_bytes for s in samples])
    for curve in _curves(samples, fit, errors):
        own = [
            i
            for i, s in enumerate(samples)
            if (s.n_ranks, s.n_nodes, s.version) == (curve.n_ranks, curve.n_nodes, curve.version)
        ]
        bounds[own] = Z90 * np.interp(log2_bytes[own], curve.log2_bytes, curve.log_sigma)
    return NetworkResidual(
        mape=float(np.mean(np.abs(relative))),
        median_ape=float(np.median(np.abs(relative))),
        bias=float(np.mean(relative)),
        coverage=float(np.mean(np.abs(errors[usable]) <= np.maximum(bounds[usable], 1e-9))),
        n=int(usable.sum()),
    )


def _rounded(path: PathFit) -> PathFit:
    """Four significant digits: what samples can tell."""
    fields = (
        "base_s",
        "step_s",
        "node_step_s",
        "intra_bytes_per_s",
        "inter_bytes_per_s",
        "ramp_s",
        "own_bytes_per_s",
    )
    values = {name: getattr(path, name) for name in fields}
    return path.model_copy(
        update={name: float(f"{value:.4g}") for name, value in values.items() if value is not None}
    )
