"""Fitting a form's parameters: robust least squares of ln(time), all parameters on a log scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from calibrate.samples import SampleTable
from costmodel.estimate import FloatArray
from costmodel.hardware.forms.base import Dims, Form, Parameter
from costmodel.hardware.forms.evaluate import floor_parameter, with_floor_s
from costmodel.hardware.schema import DeviceSpec

__all__ = ["features_of", "fit_parameters", "free_parameters", "predict_s"]

_SUBSET = 1200
_STARTS = 3
_STEPS = 40
_POLISH_STEPS = 60
_WARM_STEPS = 12
_OUTLIER_SCALE = 0.1
_START_SPREAD = 0.5
_LAUNCH = "launch_s"


def predict_s(form: Form, theta: Mapping[str, float], device: DeviceSpec, table: SampleTable) -> FloatArray:
    """Seconds [n] of the physical form for every row of one group, with its timing's host floor."""
    return _predictor(form, device, table)(theta)


def _predictor(
    form: Form, device: DeviceSpec, table: SampleTable
) -> Callable[[Mapping[str, float]], FloatArray]:
    """`predict_s` of one table as a function of theta."""
    dtype, timing = str(table.dtype[0]), str(table.timing[0])
    parts = []
    for variant in np.unique(table.variant):
        rows = np.flatnonzero(table.variant == variant)
        dims = {name: values[rows] for name, values in table.dims.items()}
        parts.append((rows, form.prepared(device, dims, dtype, str(variant))))

    def seconds(theta: Mapping[str, float]) -> FloatArray:
        kernel_s = np.empty(len(table))
        for rows, one_s in parts:
            kernel_s[rows] = one_s(theta)
        return with_floor_s(kernel_s, theta, timing)

    return seconds


def features_of(form: Form, device: DeviceSpec, table: SampleTable) -> FloatArray:
    """The form's features [n, f] of every row of one group, whose variants may differ."""
    dtype = str(table.dtype[0])
    return _each_variant(table, lambda dims, variant: form.features(device, dims, dtype, variant))


def _each_variant(table: SampleTable, function: Callable[[Dims, str], FloatArray]) -> FloatArray:
    variants = np.unique(table.variant)
    if len(variants) == 1:
        return function(table.dims, str(variants[0]))
    out: FloatArray | None = None
    for variant in variants:
        rows = np.flatnonzero(table.variant == variant)
        part = function({name: values[rows] for name, values in table.dims.items()}, str(variant))
        if out is None:
            out = np.empty((len(table), *part.shape[1:]))
        out[rows] = part
    assert out is not None
    return out


def free_parameters(
    form: Form, device: DeviceSpec, table: SampleTable
) -> tuple[tuple[Parameter, ...], dict[str, float]]:
    """(parameters to fit, values held). Where the host floor is fitted, the launch time is held.

    The two would trade against each other: the samples show only their sum.
    """
    parameters = form.parameters(device, str(table.dtype[0]), str(table.variant[0]))
    floor = floor_parameter(device, str(table.timing[0]))
    if floor is None:
        return parameters, {}
    held = {p.name: p.start for p in parameters if p.name == _LAUNCH}
    return (*(p for p in parameters if p.name not in held), floor), held


def fit_parameters(
    form: Form,
    device: DeviceSpec,
    table: SampleTable,
    *,
    start: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Parameters that fit the rows of one group (soft L1 loss of ln(time), several starts).

    With `start` (say from a fit of nearly the same rows) only a few steps are made from there.
    """
    rng = np.random.default_rng(seed)
    if len(table) > _SUBSET:
        table = table.take(np.sort(rng.permutation(len(table))[:_SUBSET]))
    free, held = free_parameters(form, device, table)
    if not free:
        return held
    low = np.log([p.low for p in free])
    high = np.log([p.high for p in free])
    margin = 1e-6 * np.maximum(high - low, 1e-3)
    names = [p.name for p in free]
    log_time = np.log(table.time_s)
    seconds = _predictor(form, device, table)

    def residual(x: FloatArray) -> FloatArray:
        theta = dict(zip(names, np.exp(x).tolist(), strict=True)) | held
        return np.asarray(np.log(seconds(theta)) - log_time)

    def solve(x0: FloatArray, steps: int) -> tuple[float, FloatArray]:
        from scipy.optimize import least_squares

        result = least_squares(
            residual,
            np.clip(x0, low + margin, high - margin),
            bounds=(low, high),
            loss="soft_l1",
            f_scale=_OUTLIER_SCALE,
            x_scale="jac",
            max_nfev=steps,
            ftol=1e-5,
            xtol=1e-5,
        )
        return float(result.cost), np.asarray(result.x)

    if start is not None:
        _, best = solve(np.log([start.get(p.name, p.start) for p in free]), _WARM_STEPS)
    else:
        first = np.log([p.start for p in free])
        starts = [first]
        starts += [first + rng.normal(0.0, _START_SPREAD, len(free)) for _ in range(_STARTS - 1)]
        tried = [solve(x0, _STEPS) for x0 in starts]
        _, best = solve(min(tried, key=lambda cost_x: cost_x[0])[1], _POLISH_STEPS)
    return dict(zip(names, np.exp(best).tolist(), strict=True)) | held
