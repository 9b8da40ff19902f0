"""Rates that large products attain on boards whose operators no table holds: one figure of a public loop.

A borrowed fit says what another device's kernels reach of its peak. What a board reaches of its own is
often published as one number, the best rate of a large square product, and one number settles what a
datasheet cannot say: how high the board clocks (RTX 3090: 1.06 of its datasheet's tensor rate), what its
units share (fp32 on consumer Ampere and Ada: 0.65), and what its power allows. A borrowed fit of products is
scaled so that its best large square product runs at the published rate,

    compute_efficiency *= published / fitted        sustained_fraction = what long ones keep of it

and fits of other arithmetic (attention, convolution, experts) by how the share of the peak changes between
the device that lends the fit and the one that borrows it. A board without a figure takes the share of the
nearest one of its architecture: as it is where their watts per peak FLOP/s are alike, and as the most it can
reach where the lender has more of them to spend. The figures: `costmodel/data/attained.json`.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from costmodel.hardware.datasheets import datasheets, find_datasheet
from costmodel.hardware.device import math_dtype, peak_flop_per_s, units_of
from costmodel.hardware.distance import device_distance, other_generation
from costmodel.hardware.fallback import fallback_spread
from costmodel.hardware.forms.evaluate import evaluate_fit, form_of
from costmodel.hardware.schema import DeviceSpec, OperatorFit

__all__ = ["AttainedShare", "at_attained_rate", "attained_share", "best_share"]

_FILE = Path(__file__).resolve().parent.parent / "data" / "attained.json"
_SIDES = np.array([1024.0, 2048.0, 4096.0, 8192.0, 10240.0])
"""Sizes of the published loops."""
_PRODUCTS = ("gemm", "bmm")
_SUSTAINED = "sustained_fraction"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Rate(_Frozen):
    best_flop_per_s: float = Field(gt=0)
    held: float | None = Field(default=None, gt=0, le=1)


class _Board(_Frozen):
    source: str
    rates: dict[str, _Rate]


class _Table(_Frozen):
    source: str
    lender_power_ratio: float
    lender_power_ratio_source: str
    same_units_log_ratio: float
    same_units_log_ratio_source: str
    scatter_log_ratio: float
    scatter_log_ratio_source: str
    devices: dict[str, _Board]


class AttainedShare(NamedTuple):
    """What large products reach of a device's datasheet peak."""

    best: float
    """Of the sizes in the loop."""
    held: float | None
    """Share of `best` that long products keep; None where no more than the best is published."""
    board: str
    """Whose figure it is."""
    at_most: bool
    """A board with more power for its peak lends it: a limit, not a figure of the device."""


@lru_cache(maxsize=1)
def _table() -> _Table:
    return _Table.model_validate(json.loads(_FILE.read_text(encoding="utf-8")))


def _published(name: str, dtype: str) -> AttainedShare | None:
    board = _table().devices.get(name)
    rate = board.rates.get(dtype) if board else None
    if rate is None:
        return None
    peak = peak_flop_per_s(datasheets()[name].device, dtype)
    return AttainedShare(rate.best_flop_per_s / peak, rate.held, name, at_most=False)


def attained_share(device: DeviceSpec, dtype: str) -> AttainedShare | None:
    """Published share of `device`'s peak in `dtype`, or the nearest board's; None where nobody's will do."""
    wanted = math_dtype(dtype)
    unpacked = wanted != dtype.partition("+")[0]  # weights of four bits are widened on the way to fp16 units
    if unpacked or wanted not in device.peak_flop_per_s:
        return None
    sheet = find_datasheet(device.name)
    if sheet is not None and (own := _published(sheet.device.name, wanted)):
        return own
    found: list[tuple[float, str, AttainedShare]] = []
    most = _table().lender_power_ratio
    for name in _table().devices:
        lender = datasheets()[name].device
        apart = device_distance(lender, device)
        share = _published(name, wanted)
        if share is None or apart >= other_generation() or not _same_units(lender, device, wanted):
            continue
        lenders_w, own_w = _watts_per_peak(lender, wanted), _watts_per_peak(device, wanted)
        if lenders_w * most < own_w or own_w == 0.0:
            continue
        found.append((apart, name, share._replace(at_most=lenders_w > own_w * most)))
    return min(found)[2] if found else None


def _watts_per_peak(device: DeviceSpec, dtype: str) -> float:
    """Board power over peak, J per FLOP; 0 where the datasheet says no power."""
    return (device.power_w or 0.0) / peak_flop_per_s(device, dtype)


def _same_units(one: DeviceSpec, other: DeviceSpec, dtype: str) -> bool:
    """Whether both compute as much per clock and multiprocessor: A40 and RTX 3090 do in fp32, not in fp16."""
    per_clock = [
        peak_flop_per_s(device, dtype) / (device.multiprocessors * device.boost_hz) for device in (one, other)
    ]
    return abs(math.log(per_clock[0] / per_clock[1])) < _table().same_units_log_ratio


def at_attained_rate(fit: OperatorFit, device: DeviceSpec, measured_dtype: str) -> OperatorFit:
    """`fit`, lent by another device or restated from `measured_dtype`, at the rate known of `device`.

    As it is where none is known in its dtype, where the device that lends the fit is the one whose share
    would be taken or a twin whose own is the same, and where its time is no arithmetic.
    """
    rates = [name for name in form_of(fit.kind).rates if name in fit.parameters]
    share = attained_share(device, fit.dtype) if rates else None
    same_units = units_of(device, fit.dtype) == units_of(device, measured_dtype)
    if share is None or (share.board == fit.transferred_from and same_units):
        return fit
    theirs = _lenders_share(fit, device, measured_dtype)
    if same_units and theirs is not None and theirs.board == fit.transferred_from:
        near = fit.transfer_distance <= fallback_spread().transfer_near_distance
        if near and abs(math.log(share.best / theirs.best)) < _table().scatter_log_ratio:
            return fit  # of a twin, whose measurements say more than one figure does
    parameters = dict(fit.parameters)
    ceiling = limit = max(share.best, 1.0)
    if fit.kind in _PRODUCTS:
        now = parameters
        if share.held is not None and not share.at_most and _SUSTAINED in parameters:
            now = {**parameters, _SUSTAINED: 1.0}  # the best of a loop is a burst
            parameters[_SUSTAINED] = share.held
        factor = share.best / best_share(
            fit.model_copy(update={"parameters": now, "peak_ratio": ceiling}), device
        )
        limit = share.best
    else:
        factor = share.best / theirs.best if theirs is not None else 1.0
    if share.at_most and factor >= 1.0:
        return fit
    parameters |= {name: float(f"{parameters[name] * factor:.6g}") for name in rates}
    known = f"{fit.source}; {fit.dtype} products of {share.board}: {_table().devices[share.board].source}"
    return fit.model_copy(
        update={"parameters": parameters, "peak_ratio": float(f"{limit:.6g}"), "source": known}
    )


def _lenders_share(fit: OperatorFit, device: DeviceSpec, dtype: str) -> AttainedShare | None:
    """Share of its peak that the device which was measured reaches in the dtype that was, where known."""
    sheet = find_datasheet(fit.transferred_from or device.name)
    return attained_share(sheet.device, dtype) if sheet is not None else None


def best_share(fit: OperatorFit, device: DeviceSpec) -> float:
    """Share of the peak at which the fit runs its fastest square product of the published sizes."""
    ones = np.ones_like(_SIDES)
    sizes = {"batch": ones, "m": _SIDES, "n": _SIDES, "k": _SIDES, "transposed": 0.0 * ones}
    times_s = evaluate_fit(fit, device, sizes, device_only=True).median_s
    flop = form_of(fit.kind).flop(sizes, fit.variant)
    return float(np.max(flop / times_s) / peak_flop_per_s(device, fit.dtype))
