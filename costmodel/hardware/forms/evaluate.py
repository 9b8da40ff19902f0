"""What a fit says: physical form, host floor of its way of timing, and corrections, put together.

Ways of timing that hold the host's dispatch have a parameter `floor_s` beside the form's own:

    event_eager             total = kernel + floor     events around one operator on an idle device
    eager_loop, torch_loop  total = (kernel^4 + floor^4)^(1/4)     a loop runs at the slower of the two

On a CPU dispatch is part of the operator and the form's own launch time holds it. A correction that was
fitted to the total counts for the kernel by the kernel's share of the total.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from costmodel.estimate import FloatArray, TimeEstimate
from costmodel.hardware.forms.base import FORMS, Dims, Form, Parameter, datasheet_floor_s, load_forms
from costmodel.hardware.forms.correction import evaluate_correction, evaluate_update
from costmodel.hardware.schema import Adjustment, DeviceSpec, OperatorFit

__all__ = [
    "FLOOR",
    "adjustment_for",
    "evaluate_fit",
    "floor_parameter",
    "form_of",
    "timed_s",
    "with_floor_s",
]

FLOOR = "floor_s"
_ADDED = ("event_eager",)
_SLOWER = ("eager_loop", "torch_loop")
_BLEND = 4.0
_LEAST_SIGMA = 1e-9


def form_of(kind: str) -> Form:
    """The form that prices an operator kind. UsageError where there is none."""
    if kind not in FORMS:
        load_forms()
    return FORMS[kind]


def floor_parameter(device: DeviceSpec, timing: str) -> Parameter | None:
    """The host floor that samples of this timing hold, or None."""
    if device.kind == "cpu" or timing not in (*_ADDED, *_SLOWER):
        return None
    return Parameter(name=FLOOR, start=2e-5, low=1e-6, high=1e-3, doc="host dispatch in the measured time")


def timed_s(
    form: Form,
    theta: Mapping[str, float],
    device: DeviceSpec,
    dims: Dims,
    dtype: str,
    variant: str,
    timing: str,
) -> tuple[FloatArray, FloatArray]:
    """(total, kernel) seconds of the physical form, each [n]; equal where the timing holds no host time."""
    kernel_s = form.physical(theta, device, dims, dtype, variant)
    return with_floor_s(kernel_s, theta, timing), kernel_s


def with_floor_s(kernel_s: FloatArray, theta: Mapping[str, float], timing: str) -> FloatArray:
    """Kernels' seconds [n] with the host's floor as the timing holds it; as they are where it holds none."""
    floor_s = theta.get(FLOOR)
    if floor_s is None:
        return kernel_s
    if timing in _ADDED:
        return kernel_s + floor_s
    return np.asarray((kernel_s**_BLEND + floor_s**_BLEND) ** (1.0 / _BLEND), dtype=np.float64)


def adjustment_for(
    adjustments: Sequence[Adjustment], framework: str | Sequence[str] | None
) -> Adjustment | None:
    """The adjustment of a framework: as named, else of another version of it, else None.

    Names are `library-version`, with `:kernel` behind where the library has several. `framework` may be
    several names, the first one that was measured counts; one without a kernel stands for the kernel that was
    measured most, and a kernel may be a pattern (`vllm:*trtllm*`).
    """
    for name in (framework,) if isinstance(framework, str) else framework or ():
        exact = [a for a in adjustments if a.framework == name]
        wanted = _without_version(name)
        pattern = wanted + "*" if wanted.endswith(":") else wanted
        same = [a for a in adjustments if fnmatchcase(_without_version(a.framework), pattern)]
        same.sort(key=lambda a: -len(a.correction.weights))  # centres are taken in proportion to the samples
        if found := (*exact, *same):
            return found[0]
    return None


def _without_version(framework: str) -> str:
    library, _, kernel = framework.partition(":")
    return re.split(r"-?v?\d", library, maxsplit=1)[0] + ":" + kernel


def evaluate_fit(
    fit: OperatorFit,
    device: DeviceSpec,
    dims: Dims,
    *,
    framework: str | Sequence[str] | None = None,
    device_only: bool = False,
) -> TimeEstimate:
    """Time of operators under a fit, as its timing would show it, or of the kernel (`device_only`).

    `framework`: whose kernels; None or one that was not fitted = the mean over those that were. Never
    below what the datasheet allows, of a machine that is faster by its `log_offset`. What the fit leaves of
    its samples is each size's own (left-out rows of ten tables, half an e-fold of size and more apart, err
    independently: correlations within 0.07, most within 0.02); what transfer, another variant or another type
    leaves unknown is common to all. On a CPU all is: neighbours' load while it was measured is. Where later
    measurements changed the fit, what they leave is all that is unknown near them, and as much of it common
    as was before.
    """
    form = form_of(fit.kind)
    total_s, kernel_s = timed_s(form, fit.parameters, device, dims, fit.dtype, fit.variant, fit.timing)
    n = len(total_s)
    shift, sigma = np.zeros(n), np.full(n, fit.residual.log_sigma)
    if fit.correction is not None:
        features = form.features(device, dims, fit.dtype, fit.variant)
        shift, sigma = evaluate_correction(fit.correction, features)
        adjustment = adjustment_for(fit.adjustments, framework)
        if adjustment is not None:
            more, sigma = evaluate_correction(adjustment.correction, features)
            shift = shift + more
    whole = np.hypot(sigma, fit.extra_log_sigma)
    common = np.full(n, fit.extra_log_sigma)
    if fit.update is not None:
        features = form.features(device, dims, fit.dtype, fit.variant)
        more, left = evaluate_update(fit.update, features, whole)
        shift = shift + more
        common, whole = common * left / np.maximum(whole, _LEAST_SIGMA), left
    shift = shift + fit.log_offset
    median_s = total_s * np.exp(shift)
    if device_only and FLOOR in fit.parameters:
        median_s = kernel_s * np.exp(shift * kernel_s / total_s)
        whole = np.hypot(whole, fit.residual.log_sigma * (1.0 - kernel_s / total_s))
    floor_s = datasheet_floor_s(form, device, dims, fit.dtype, fit.variant, fit.peak_ratio)
    floor_s = floor_s * math.exp(min(0.0, fit.log_offset))
    return TimeEstimate(
        median_s=np.maximum(median_s, floor_s),
        log_sigma=whole,
        common_log_sigma=whole if device.kind == "cpu" else common,
    )
