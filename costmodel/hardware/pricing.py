"""Seconds for operators on a profile: the fit that was measured on them, else the nearest one.

Order of fall-back, each step widening the interval:

1. a fit of this kind, variant, dtype and (where asked) timing;
2. another variant of the kind (gemm nn and tn from nt);
3. another dtype: fp16 and bf16 stand for each other; any other one lends its efficiencies but not its
   correction, and the target's own peak and element width count (where time is traffic, dtype matters less
   than kind and variant: there this step comes before 2, and the correction stays);
4. another kind of the same form (bmm from gemm, one memory-bound kind from another);
5. the form's start parameters on the datasheet.

At each step what was measured on the device itself comes before what was transferred to it. A fit to a few
derived efficiencies counts near their sizes; away from them the nearest timed fit decides (`hardware.reach`).

Ways of timing never mix: with `timing`, fits of that timing come first and another one is used only in its
absence. Without, what is asked for is the kernel's own time: captured graphs first, then profiler times,
and from fits that hold the host's dispatch the kernel's part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from costmodel.errors import UsageError
from costmodel.estimate import FloatArray, TimeEstimate
from costmodel.hardware.attained import at_attained_rate
from costmodel.hardware.cores import usable_cores
from costmodel.hardware.device import dtype_fallbacks, element_bytes, peak_flop_per_s
from costmodel.hardware.fallback import fallback_spread
from costmodel.hardware.forms.base import FORMS, Dims, Form, load_forms
from costmodel.hardware.forms.evaluate import evaluate_fit, form_of
from costmodel.hardware.kinds import OPERATOR_KINDS
from costmodel.hardware.matrix_units import as_products, products_variant
from costmodel.hardware.reach import nearness, samples_of_kind
from costmodel.hardware.schema import DeviceSpec, HardwareProfile, OperatorFit, Residual

__all__ = ["choose_fit", "contended_s", "datasheet_fit", "long_run_s", "operator_times", "streams"]

_TIMINGS = ("cuda_graph", "kernel_only", "eager_loop", "torch_loop", "event_eager", "derived_from_efficiency")
"""Nearest to the kernel's own time first."""
_BLOCK = 8192
_THREADS = 4
_HALF = ("bf16", "fp16")
_PRODUCTS = ("gemm", "bmm")
_AS_KIND = {"grouped_gemm": "bmm", "unmodelled": "elementwise"}
"""Kinds that fall to another one where no form is registered for them."""


def operator_times(
    profile: HardwareProfile,
    kind: str,
    variant: str,
    dtype: str,
    dims: Mapping[str, ArrayLike],
    timing: str | None = None,
    *,
    framework: str | Sequence[str] | None = None,
) -> TimeEstimate:
    """Median and spread [n] of operators of one kind, variant and dtype.

    `dims`: each size of the kind -> array [n] (or one number). `timing`: as measured that way; None = the
    kernel alone. `framework`: whose kernels, where several were fitted (the first that was).
    Raises UsageError on an unknown kind or a missing size.
    """
    sizes = _sizes(kind, dims)
    n = len(next(iter(sizes.values()))) if sizes else 1
    if kind == "host":
        return TimeEstimate(median_s=np.zeros(n), log_sigma=np.zeros(n))
    asked = kind
    kind, sizes = _as_priced_kind(kind, variant, sizes)
    fit = choose_fit(profile, kind, variant, dtype, timing)
    if fit is None:
        fit = datasheet_fit(profile.device, kind, variant, dtype)
    estimate = _evaluated(fit, profile.device, sizes, n, framework, timing is None)
    if fit.samples_at and fit.timing != timing:
        timed = _chosen(_Same(profile), kind, variant, dtype, timing, True)
        if timed is not None:
            beyond = _evaluated(timed, profile.device, sizes, n, framework, timing is None)
            estimate = _blended(estimate, beyond, nearness(fit.samples_at, kind, sizes))
    return estimate.shifted(profile.log_shifts.get(asked, 0.0))


def _blended(near: TimeEstimate, far: TimeEstimate, weight: FloatArray) -> TimeEstimate:
    """`near` by weight [n], `far` by the rest, in ln(time)."""
    log_s = weight * np.log(near.median_s) + (1.0 - weight) * np.log(far.median_s)
    sigma = weight * near.log_sigma + (1.0 - weight) * far.log_sigma
    common = weight * near.common + (1.0 - weight) * far.common
    return TimeEstimate(median_s=np.exp(log_s), log_sigma=sigma, common_log_sigma=common)


def contended_s(
    profile: HardwareProfile,
    kind: str,
    variant: str,
    dtype: str,
    dims: Mapping[str, ArrayLike],
    times_s: FloatArray,
) -> FloatArray:
    """Seconds [n] of `times_s` [n] that operators wait for memory because all local ranks use it at once.

    A rank that waits less than half its time has the others idle to thank for no more than the other half.
    """
    per_byte_s = profile.contention_s_per_byte
    if not per_byte_s:
        return np.zeros_like(times_s)
    priced, sizes = _as_priced_kind(kind, variant, _sizes(kind, dims))
    return np.minimum(per_byte_s * form_of(priced).least_bytes(sizes, dtype, variant), 0.5 * times_s)


def long_run_s(
    profile: HardwareProfile, kind: str, variant: str, dtype: str, dims: Mapping[str, ArrayLike]
) -> FloatArray:
    """Least seconds [n] that products take in work long enough for the board's power limit to hold; 0 where
    the datasheet knows none, and for other kinds."""
    limit = profile.device.long_run_flop_per_s.get(dtype, 0.0) if kind in _PRODUCTS else 0.0
    sizes = _sizes(kind, dims)
    if not limit:
        return np.zeros(len(next(iter(sizes.values()))))
    return np.asarray(form_of(kind).flop(sizes, variant) / limit, dtype=np.float64)


def streams(kind: str) -> bool:
    """Whether an operator kind's time is its traffic."""
    forms = load_forms()
    priced = _AS_KIND.get(kind, kind)
    return kind != "host" and priced in forms and forms[priced].streams


def _evaluated(
    fit: OperatorFit,
    device: DeviceSpec,
    sizes: Dims,
    n: int,
    framework: str | Sequence[str] | None,
    device_only: bool,
) -> TimeEstimate:
    """Blocks that stay in cache, shared among threads (array arithmetic leaves the interpreter lock)."""
    if n <= _BLOCK:
        return evaluate_fit(fit, device, sizes, framework=framework, device_only=device_only)

    def one(start: int) -> TimeEstimate:
        part = {name: values[start : start + _BLOCK] for name, values in sizes.items()}
        return evaluate_fit(fit, device, part, framework=framework, device_only=device_only)

    form_of(fit.kind)  # registered before threads ask for it
    with ThreadPoolExecutor(max_workers=min(_THREADS, usable_cores())) as pool:
        parts = list(pool.map(one, range(0, n, _BLOCK)))
    return TimeEstimate(
        median_s=np.concatenate([part.median_s for part in parts]),
        log_sigma=np.concatenate([part.log_sigma for part in parts]),
        common_log_sigma=np.concatenate([part.common for part in parts]),
    )


def choose_fit(
    profile: HardwareProfile, kind: str, variant: str, dtype: str, timing: str | None = None
) -> OperatorFit | None:
    """The profile's nearest fit, restated for `kind`, `variant` and `dtype`; None where none can serve."""
    return _chosen(_Same(profile), kind, variant, dtype, timing, False)


@dataclass(frozen=True, slots=True, eq=False)
class _Same:
    """A profile as a key: equal to itself alone, so that its thousands of numbers are not compared."""

    profile: HardwareProfile

    def __hash__(self) -> int:
        return id(self.profile)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.profile is self.profile


@lru_cache(maxsize=4096)
def _chosen(
    of: _Same, kind: str, variant: str, dtype: str, timing: str | None, everywhere: bool
) -> OperatorFit | None:
    """`everywhere`: among fits alone that speak at every size."""
    profile = of.profile
    form = load_forms()[kind]
    others = dtype_fallbacks(dtype)
    best: tuple[tuple[float, ...], OperatorFit] | None = None
    for fit in profile.operators:
        same_form = fit.kind == kind or (fit.kind in FORMS and FORMS[fit.kind].name == form.name)
        if not same_form or fit.form != form.name or (everywhere and fit.samples_at):
            continue
        if fit.dtype != dtype and fit.dtype not in others:
            continue
        near = fit.dtype == dtype or (fit.dtype in _HALF and dtype in _HALF)
        other_dtype = 0 if near else 1 + others.index(fit.dtype)
        other_variant = 0 if variant in fit.variants else 1 + _rank(form.plain_variants, fit.variant)
        other_kind, of_another = int(fit.kind != kind), int(fit.transferred_from is not None)
        unlike = fit.transfer_distance if form.variants_alike else 0.0
        what = (
            (other_kind, other_variant, of_another, other_dtype)
            if form.streams
            else (other_dtype, other_kind, of_another, unlike, other_variant)
        )
        distance = (
            int(timing is not None and fit.timing != timing),
            *what,
            _rank(_TIMINGS, fit.timing),
            int(fit.dtype != dtype),
            -fit.n_samples,
        )
        if best is None or distance < best[0]:
            best = (distance, fit)
    if best is None:
        return None
    fit = best[1]
    restated = _restated(fit, profile.device, kind, variant, dtype, timing)
    like = products_variant(restated, fit.dtype, profile.device)
    products = None if like is None else choose_fit(profile, "gemm", like, dtype)
    if products is not None:
        return as_products(restated, products, profile.device)
    own_units = fit.dtype == dtype or (fit.dtype in _HALF and dtype in _HALF)
    if own_units and fit.transferred_from is None:
        return restated
    return at_attained_rate(restated, profile.device, fit.dtype)


def _rank(order: tuple[str, ...], name: str) -> int:
    return order.index(name) if name in order else len(order)


def _restated(
    fit: OperatorFit, device: DeviceSpec, kind: str, variant: str, dtype: str, timing: str | None
) -> OperatorFit:
    """The fit for another kind, variant or dtype, with what that leaves unknown added to its spread."""
    spread = fallback_spread()
    extra = []
    same_dtype = fit.dtype == dtype
    same_width = element_bytes(fit.dtype) == element_bytes(dtype) and (
        peak_flop_per_s(device, fit.dtype) == peak_flop_per_s(device, dtype)
    )
    if timing is not None and fit.timing != timing:
        extra.append(spread.timing_log_sigma)
    if fit.kind != kind:
        extra.append(spread.sibling_kind_log_sigma)
    if variant not in fit.variants:
        extra.append(spread.variant_log_sigma)
    if not same_dtype:
        extra.append(spread.same_width_dtype_log_sigma if same_width else spread.dtype_log_sigma)
    if not extra:
        return fit if fit.variant == variant else fit.model_copy(update={"variant": variant})
    same_features = _n_features(fit.kind, fit.variant, device) == _n_features(kind, variant, device)
    keeps = (same_dtype or same_width or FORMS[kind].streams) and fit.kind == kind and same_features
    wider = fit.widened(float(np.sqrt(np.sum(np.square(extra)))))
    return wider.model_copy(
        update={
            "kind": kind,
            "variant": variant,
            "dtype": dtype,
            "correction": fit.correction if keeps else None,
            "adjustments": fit.adjustments if keeps else (),
            "update": wider.update if same_features else None,
            "samples_at": samples_of_kind(fit.samples_at, fit.kind, kind),
        }
    )


def _n_features(kind: str, variant: str, device: DeviceSpec) -> int:
    """How many features a correction of this variant is fitted on: variants of a form can have their own."""
    one = dict.fromkeys(OPERATOR_KINDS[kind].dims, np.ones(1))
    return int(FORMS[kind].features(device, one, "fp32", variant).shape[1])


def datasheet_fit(device: DeviceSpec, kind: str, variant: str, dtype: str) -> OperatorFit:
    """A fit from nothing but the datasheet: the form's start parameters and a wide spread."""
    if kind not in FORMS:
        load_forms()
    form: Form = FORMS[kind]
    spread = fallback_spread().datasheet_log_sigma
    return OperatorFit(
        kind=kind,
        variant=variant,
        dtype=dtype,
        timing="datasheet",
        form=form.name,
        parameters={p.name: p.start for p in form.parameters(device, dtype, variant)},
        residual=Residual(mape=spread, median_ape=spread, bias=0.0, log_sigma=0.0, coverage=0.9, folds=0),
        n_samples=0,
        source="datasheet",
        extra_log_sigma=spread,
    )


def _sizes(kind: str, dims: Mapping[str, ArrayLike]) -> dict[str, FloatArray]:
    if kind not in OPERATOR_KINDS:
        raise UsageError(f"unknown operator kind {kind!r}; there are: {', '.join(OPERATOR_KINDS)}")
    wanted = OPERATOR_KINDS[kind].dims
    missing = [name for name in wanted if name not in dims and name != "transposed"]
    if missing:
        raise UsageError(f"{kind} needs sizes {', '.join(wanted)}; missing: {', '.join(missing)}")
    arrays = [np.atleast_1d(np.asarray(dims.get(name, 0.0), dtype=np.float64)) for name in wanted]
    if any(array.shape != arrays[0].shape for array in arrays):
        arrays = list(np.broadcast_arrays(*arrays))
    return dict(zip(wanted, map(np.ascontiguousarray, arrays), strict=True))


def _as_priced_kind(
    kind: str, variant: str, sizes: dict[str, FloatArray]
) -> tuple[str, dict[str, FloatArray]]:
    """Kinds without a form of their own as one that has: experts as a batch, unknown work as a copy.

    The rows that groups share are what the gradient of a weight (tn) is summed over: no matrix has rows of
    that length, which is any number. Groups without a row are not read; their gradients are written all the
    same.
    """
    if kind not in FORMS:
        load_forms()
    if kind in FORMS or kind not in _AS_KIND:
        return kind, sizes
    if kind == "grouped_gemm":
        groups = np.maximum(sizes["groups"], 1.0)
        rows = np.maximum(sizes["m"] / groups, 1.0)
        if variant == "tn":
            return "bmm", {"batch": groups, "m": sizes["n"], "n": sizes["k"], "k": rows}
        reached = groups * (1.0 - (1.0 - 1.0 / groups) ** sizes["m"])  # as `forms.moe` counts active experts
        groups = np.maximum(np.round(reached), 1.0)
        rows = np.maximum(sizes["m"] / groups, 1.0)
        return "bmm", {"batch": groups, "m": rows, "n": sizes["n"], "k": sizes["k"]}
    # half of the bytes read, half written, four bytes an element
    elements = np.maximum(sizes["bytes"] / 8.0, 1.0)
    return "elementwise", {"rows": np.ones_like(elements), "cols": elements, "bytes": sizes["bytes"]}
