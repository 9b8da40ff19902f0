"""Fitting operator times: physical form, then corrections, then what their errors were.

    fit = fit_operator(group, device)             rows of one group (`fitting_groups`)
    check = cross_validate(group, device)         predictions of rows by fits that never saw their shape

Cross-validation is grouped by shape: all rows of one shape, whoever measured them, are in one fold. Its
residuals give the profile's error figures and intervals.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibrate.fitting.kernel_regression import Weighted, choose_centres, solve_weights, tune_shape
from calibrate.fitting.physical import features_of, fit_parameters, predict_s
from calibrate.fitting.spread import Spread, band, fit_spread
from calibrate.samples import SampleGroup, SampleTable
from costmodel.errors import MeasurementError
from costmodel.estimate import Z90, FloatArray
from costmodel.hardware.forms.base import Form
from costmodel.hardware.forms.evaluate import form_of
from costmodel.hardware.reach import sizes_of_samples
from costmodel.hardware.schema import (
    Adjustment,
    Correction,
    DeviceSpec,
    OperatorFit,
    RegionResidual,
    Residual,
)

__all__ = ["CrossValidation", "cross_validate", "fit_operator", "fitting_groups"]

FOLDS = 5
MIN_SHAPES_FOR_CORRECTION = 8
_MOST_FRAMEWORK_CENTRES = 180
_MIN_FRAMEWORK_ROWS = 24
_MIN_REGION_ROWS = 8
_MOST_ROWS = 8192
"""Rows a correction is solved on, about twenty per centre: more move its weights by less than their noise."""
_CENTRE_DECIMALS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Detail:
    """How fine a correction is."""

    most_centres: int
    shapes_per_centre: float
    tuned_rows: int
    shortest: float
    """Least length of its kernels, in features."""


_SMOOTH = _Detail(most_centres=420, shapes_per_centre=2.5, tuned_rows=360, shortest=1.0)
_STEPS_SHAPES = 150
"""Fewer shapes lie too far apart to show steps: what differs between neighbours is noise there."""
_STEPS = _Detail(most_centres=500, shapes_per_centre=1.0, tuned_rows=560, shortest=0.3)
"""For forms whose time climbs in steps, on tables dense enough to show them. Held-out error of fp16 GEMM
(445 shapes, H100): 6.5 % smooth, 6.1 % with a centre on every shape, 5.6 % with short lengths; of bf16 (B200)
0.1 % less by more tuned rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Core:
    """A fit without its spread."""

    theta: dict[str, float]
    shared: Weighted | None
    limit: float
    frameworks: Mapping[str, Weighted]

    def log_time(self, form: Form, device: DeviceSpec, table: SampleTable, x: FloatArray) -> FloatArray:
        """ln(seconds) [n] of rows of one group with features `x`."""
        out = np.log(predict_s(form, self.theta, device, table))
        if self.shared is not None:
            out = out + np.clip(self.shared(x), -self.limit, self.limit)
            for name, weighted in self.frameworks.items():
                rows = np.flatnonzero(table.framework == name)
                out[rows] += np.clip(weighted(x[rows]), -self.limit, self.limit)
        return np.asarray(out, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossValidation:
    """What each row of a group was predicted to take by fits that never saw its shape."""

    median_s: FloatArray
    log_sigma: FloatArray
    log_error: FloatArray
    """ln(predicted / measured)."""
    physical_log_error: FloatArray
    """The same of the physical form alone."""

    @property
    def coverage(self) -> float:
        """Share of rows inside their 90 % interval."""
        return float(np.mean(np.abs(self.log_error) <= Z90 * self.log_sigma))


def fit_operator(table: SampleTable, device: DeviceSpec, *, folds: int = FOLDS, seed: int = 0) -> OperatorFit:
    """Fit the rows of one group. MeasurementError where they are of several groups or none."""
    group = _one_group(table)
    form = form_of(table.kind)
    features = features_of(form, device, table)
    core = _fit_core(form, device, table, features, seed=seed)
    check = cross_validate(table, device, folds=folds, seed=seed, start=core)
    far = band(check.physical_log_error)
    if core.shared is not None and _hurts(check):
        core = _Core(theta=core.theta, shared=None, limit=core.limit, frameworks={})
        check = replace(
            check,
            median_s=table.time_s * np.exp(check.physical_log_error),
            log_sigma=np.full(len(table), far),
            log_error=check.physical_log_error,
        )
    error = -check.log_error
    correction = None
    adjustments: list[Adjustment] = []
    if core.shared is not None:
        spread = fit_spread(core.shared, features, error, far)
        correction = _correction(core.shared, spread, core.limit)
        for name, weighted in core.frameworks.items():
            rows = table.framework == name
            own = fit_spread(weighted, features[rows], error[rows], far)
            adjustments.append(
                Adjustment(
                    framework=name,
                    n_samples=int(rows.sum()),
                    correction=_correction(weighted, own, core.limit),
                )
            )
    fit = OperatorFit(
        kind=table.kind,
        variant=group.variant,
        also_variants=tuple(v for v in map(str, np.unique(table.variant)) if v != group.variant),
        dtype=group.dtype,
        timing=group.timing,
        form=form.name,
        parameters={name: float(f"{value:.6g}") for name, value in core.theta.items()},
        correction=correction,
        adjustments=tuple(adjustments),
        residual=_residual(form, device, table, group, check, folds),
        n_samples=len(table),
        source=", ".join(sorted({str(s) for s in table.source if s})),
    )
    if fit.is_derived:
        return fit.model_copy(update={"samples_at": sizes_of_samples(table.kind, table.dims)})
    return fit


def _hurts(check: CrossValidation) -> bool:
    """Whether held-out shapes are predicted worse with the correction than without."""
    return bool(np.mean(np.abs(check.log_error)) > np.mean(np.abs(check.physical_log_error)))


def cross_validate(
    table: SampleTable,
    device: DeviceSpec,
    *,
    folds: int = FOLDS,
    seed: int = 0,
    start: _Core | None = None,
) -> CrossValidation:
    """Predict each row of one group by a fit that saw no row of its shape, and its spread likewise.

    `start`: a fit whose parameters the folds' fits begin from, to save time.
    """
    _one_group(table)
    form = form_of(table.kind)
    features = features_of(form, device, table)
    shapes = table.shape_ids()
    n_shapes = int(shapes.max()) + 1
    folds = min(folds, n_shapes)
    fold = (np.random.default_rng(seed).permutation(n_shapes) % folds)[shapes]
    predicted = np.zeros(len(table))
    physical = np.zeros(len(table))
    cores: list[_Core] = []
    for number in range(folds):
        held_out = np.flatnonzero(fold == number)
        seen = np.flatnonzero(fold != number) if folds > 1 else held_out
        core = _fit_core(form, device, table.take(seen), features[seen], seed=seed, start=start)
        rows = table.take(held_out)
        predicted[held_out] = core.log_time(form, device, rows, features[held_out])
        physical[held_out] = np.log(predict_s(form, core.theta, device, rows))
        cores.append(core)
    measured = np.log(table.time_s)
    error = measured - predicted
    log_sigma = np.zeros(len(table))
    for number, core in enumerate(cores):
        held_out = fold == number
        others = ~held_out if folds > 1 else held_out
        log_sigma[held_out] = _held_out_spread(
            core, table, features, error, band((measured - physical)[others]), held_out, others
        )
    return CrossValidation(
        median_s=np.exp(predicted),
        log_sigma=log_sigma,
        log_error=-error,
        physical_log_error=physical - measured,
    )


def _held_out_spread(
    core: _Core,
    table: SampleTable,
    features: FloatArray,
    error: FloatArray,
    far: float,
    held_out: NDArray[np.bool_],
    others: NDArray[np.bool_],
) -> FloatArray:
    """Spread of the held-out rows from the errors of the other folds' rows."""
    if core.shared is None:
        return np.full(int(held_out.sum()), band(error[others]))
    out = fit_spread(core.shared, features[others], error[others], far)(features[held_out])
    labels = table.framework[held_out]
    for name, weighted in core.frameworks.items():
        rows = others & (table.framework == name)
        mine = labels == name
        if mine.any():
            own = fit_spread(weighted, features[rows], error[rows], far)
            out[mine] = own(features[held_out][mine])
    return out


def _fit_core(
    form: Form,
    device: DeviceSpec,
    table: SampleTable,
    features: FloatArray,
    *,
    seed: int,
    start: _Core | None = None,
) -> _Core:
    theta = fit_parameters(form, device, table, start=None if start is None else start.theta, seed=seed)
    target = np.log(table.time_s) - np.log(predict_s(form, theta, device, table))
    limit = float(np.abs(target).max())
    n_shapes = len(np.unique(features, axis=0))
    if n_shapes < MIN_SHAPES_FOR_CORRECTION:
        return _Core(theta=theta, shared=None, limit=limit, frameworks={})
    detail = _STEPS if form.steps and n_shapes >= _STEPS_SHAPES else _SMOOTH
    names, counts = np.unique(table.framework, return_counts=True)
    of_framework = {
        str(name): np.flatnonzero(table.framework == name)
        for name, count in zip(names, counts, strict=True)
        if len(names) > 1 and count >= _MIN_FRAMEWORK_ROWS
    }
    begin = None if start is None else start.shared
    shared = _regress(features, target, detail.most_centres, seed, begin, detail)
    left = target - shared(features) if of_framework else target
    frameworks = {}
    for name, rows in of_framework.items():
        begin = None if start is None else start.frameworks.get(name)
        frameworks[name] = _regress(features[rows], left[rows], _MOST_FRAMEWORK_CENTRES, seed, begin, detail)
    return _Core(theta=theta, shared=shared, limit=limit, frameworks=frameworks)


def _regress(
    features: FloatArray,
    target: FloatArray,
    most_centres: int,
    seed: int,
    start: Weighted | None,
    detail: _Detail,
) -> Weighted:
    shape = tune_shape(
        features,
        target,
        seed=seed,
        start=None if start is None else start.shape,
        rows=detail.tuned_rows,
        shortest=detail.shortest,
    )
    shape = replace(shape, length=np.array([float(f"{v:.5g}") for v in shape.length]))
    n_shapes = len(np.unique(features, axis=0))
    count = max(4, min(most_centres, int(n_shapes / detail.shapes_per_centre)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty cluster keeps its centre: harmless here
        centres = choose_centres(features / shape.length, count, seed=seed)
    if len(features) > _MOST_ROWS:
        some = np.sort(np.random.default_rng(seed).permutation(len(features))[:_MOST_ROWS])
        features, target = features[some], target[some]
    centres = np.round(centres, _CENTRE_DECIMALS)  # as stored: the weights are those of these very centres
    return solve_weights(shape, centres, features, target)


def _correction(weighted: Weighted, spread: Spread, limit: float) -> Correction:
    return Correction(
        length=tuple(map(float, weighted.shape.length)),
        centres=tuple(tuple(round(float(v), _CENTRE_DECIMALS) for v in row) for row in weighted.centres),
        weights=tuple(float(f"{v:.4g}") for v in weighted.weights),
        sigmas=tuple(float(f"{v:.3g}") for v in spread.sigmas),
        far_sigma=float(f"{spread.far_sigma:.4g}"),
        limit=float(f"{limit:.4g}"),
    )


def _residual(
    form: Form,
    device: DeviceSpec,
    table: SampleTable,
    group: SampleGroup,
    check: CrossValidation,
    folds: int,
) -> Residual:
    error = np.exp(check.log_error) - 1.0
    names = form.regions(device, table.dims, group.dtype, group.variant)
    regions = []
    for name in np.unique(names):
        rows = names == name
        if rows.sum() >= _MIN_REGION_ROWS:
            regions.append(
                RegionResidual(
                    region=str(name),
                    n=int(rows.sum()),
                    mape=round(float(np.abs(error[rows]).mean()), 5),
                    bias=round(float(error[rows].mean()), 5),
                    log_sigma=round(band(check.log_error[rows]), 5),
                )
            )
    return Residual(
        mape=round(float(np.abs(error).mean()), 5),
        median_ape=round(float(np.median(np.abs(error))), 5),
        bias=round(float(error.mean()), 5),
        log_sigma=round(band(check.log_error), 5),
        coverage=round(check.coverage, 4),
        folds=folds,
        regions=tuple(regions),
    )


def fitting_groups(table: SampleTable) -> Iterator[tuple[SampleGroup, SampleTable]]:
    """Each group of rows that one fit may hold; its `variant` is the plainest of its rows."""
    form = form_of(table.kind)
    if not form.pools_variants:
        yield from table.groups()
        return
    pooled: dict[tuple[str, str, str], list[SampleTable]] = {}
    for group, rows in table.groups():
        pooled.setdefault((group.device, group.dtype, group.timing), []).append(rows)
    for (device, dtype, timing), parts in pooled.items():
        variants = sorted(str(part.variant[0]) for part in parts)
        plain = [v for v in form.plain_variants if v in variants] or variants
        yield SampleGroup(device, plain[0], dtype, timing), SampleTable.concat(parts)


def _one_group(table: SampleTable) -> SampleGroup:
    groups = [group for group, _ in fitting_groups(table)] if len(table) else []
    if len(groups) != 1:
        raise MeasurementError(
            f"a fit takes rows of one device, variant, dtype and timing, got {len(groups)} groups: "
            f"{', '.join(map(str, groups[:3])) or 'no rows'}; split them with fitting_groups()"
        )
    return groups[0]
